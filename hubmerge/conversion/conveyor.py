"""A ring of reusable buffers, passed through one thread per stage.

Each stage has a thread of its own, and sees the blocks in the order in which they were sent. So
memory is bounded by the blocks there are, and the caller waits if the stages are slower.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from queue import SimpleQueue
from types import TracebackType
from typing import NamedTuple

Stage = Callable[[memoryview], object]


class _Load(NamedTuple):
    block: memoryview
    content: memoryview
    """The filled part of `block`."""


class Conveyor:
    """A context manager; when it exits, all that was sent has been through all stages.

    Args:
        stages: called with each content, one after the other; an error of one ends all.
        blocks: how many there are.
        block_bytes: the size of each.
    """

    def __init__(self, stages: Sequence[Stage], blocks: int, block_bytes: int) -> None:
        self._free: SimpleQueue[memoryview] = SimpleQueue()
        for _ in range(blocks):
            self._free.put(memoryview(bytearray(block_bytes)))
        self._queues: list[SimpleQueue[_Load | None]] = [SimpleQueue() for _ in stages]
        self._failures: list[BaseException] = []
        self._threads = [
            threading.Thread(target=self._run, args=(number, stage), daemon=True)
            for number, stage in enumerate(stages)
        ]

    def block(self) -> memoryview:
        """Return a block to fill, when one is free; raise the error of a stage."""
        block = self._free.get()
        self._check()
        return block

    def send(self, block: memoryview, size_bytes: int) -> None:
        """Hand a block over, of which the first `size_bytes` are filled."""
        self._queues[0].put(_Load(block, block[:size_bytes]))

    def _run(self, number: int, stage: Stage) -> None:
        following = self._queues[number + 1 :]
        while (load := self._queues[number].get()) is not None:
            if not self._failures:
                try:
                    stage(load.content)
                except BaseException as error:  # noqa: BLE001 - raised again in the caller's thread
                    self._failures.append(error)
            if following:
                following[0].put(load)
            else:
                self._free.put(load.block)
        if following:
            following[0].put(None)

    def _check(self) -> None:
        if self._failures:
            raise self._failures[0]

    def __enter__(self) -> Conveyor:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is not None:
            self._failures.append(error)  # what is still on its way is not wanted any more
        self._queues[0].put(None)
        for thread in self._threads:
            thread.join()
        if error is None:
            self._check()
