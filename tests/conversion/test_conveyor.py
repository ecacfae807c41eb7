"""Blocks that go round: order, bounds, and errors from either side."""

from __future__ import annotations

import threading
import time

import pytest

from hubmerge.conversion.conveyor import Conveyor
from tests.support.patience import NET_SECONDS


def send(conveyor: Conveyor, content: bytes) -> memoryview:
    """Fill the next free block with `content` and hand it over."""
    block = conveyor.block()
    block[: len(content)] = content
    conveyor.send(block, len(content))
    return block


def test_every_stage_sees_all_in_order() -> None:
    """However the stages differ in speed, no block is filled again before the last has seen it."""
    first, last = [], []

    def slow(content: memoryview) -> None:
        time.sleep(0.001)
        last.append(bytes(content))

    wanted = [b"%d" % number * (number % 4) for number in range(60)]
    with Conveyor([lambda content: first.append(bytes(content)), slow], 3, 10) as conveyor:
        used = {id(send(conveyor, content)) for content in wanted}
    assert first == last == wanted
    assert len(used) == 3


def test_the_caller_waits_for_a_free_block() -> None:
    """No more than the given blocks are ever in use."""
    go_on = threading.Event()
    with Conveyor([lambda _content: go_on.wait(NET_SECONDS)], 2, 1) as conveyor:
        send(conveyor, b"a")
        send(conveyor, b"b")
        third = threading.Thread(target=send, args=(conveyor, b"c"))
        third.start()
        third.join(0.2)
        assert third.is_alive()
        go_on.set()
        third.join(NET_SECONDS)
        assert not third.is_alive()


@pytest.mark.parametrize("failing", [0, 1])
@pytest.mark.parametrize("at", [0, 3, 9])
def test_an_error_of_a_stage_reaches_the_caller(failing: int, at: int) -> None:
    """At once or at the end; nothing that was sent later is worked on, and no thread stays."""
    seen: list[list[bytes]] = [[], []]

    def stage(number: int, content: memoryview) -> None:
        if number == failing and bytes(content) == b"%d" % at:
            raise OSError("full")
        seen[number].append(bytes(content))

    def work() -> None:
        with Conveyor([lambda c: stage(0, c), lambda c: stage(1, c)], 2, 4) as conveyor:
            for number in range(10):
                send(conveyor, b"%d" % number)

    before = threading.active_count()
    with pytest.raises(OSError, match="full"):
        work()
    assert threading.active_count() == before
    assert seen[failing] == [b"%d" % number for number in range(at)]


def test_an_error_of_the_caller_ends_the_stages() -> None:
    """Its own error comes out, and no thread stays."""

    def work() -> None:
        with Conveyor([lambda _content: None], 2, 1) as conveyor:
            send(conveyor, b"a")
            raise KeyboardInterrupt

    before = threading.active_count()
    with pytest.raises(KeyboardInterrupt):
        work()
    assert threading.active_count() == before
