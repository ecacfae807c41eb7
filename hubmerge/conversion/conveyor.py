"""A ring of reusable buffers, passed through one thread per stage.

Each stage runs in its own thread and receives the blocks in the order in which they were sent.
Memory is bounded by the number of blocks; the caller waits if the stages are slower.
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
    """A context manager; at its exit, every block that was sent has passed all stages.

    Args:
        stages: called in turn with the content of each block; an error in one stops them all.
        blocks: the number of blocks.
        block_bytes: the size of each block.
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
        """Wait for a free block and return it; raise the error of a stage that failed."""
        block = self._free.get()
        self._check()
        return block

    def send(self, block: memoryview, size_bytes: int) -> None:
        """Pass on a block of which the first `size_bytes` are filled."""
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
            self._failures.append(error)  # blocks still in flight are discarded
        self._queues[0].put(None)
        for thread in self._threads:
            thread.join()
        if error is None:
            self._check()
