"""Write one shard: read and cast in the caller's thread, hash and write in two others.

Whatever the size of the shard, memory is a ring of `_BLOCKS` blocks, three blocks of scratch space,
and a buffer for one direct write. The file is written sequentially, which works on any filesystem.
It is called ``NAME.partial`` until it is complete and synced:

    1. NAME.partial is created and grows      a crash leaves NAME.partial, removed by the next run
    2. fsync(NAME.partial)                    the same
    3. rename to NAME                         a crash leaves either name, the content complete
    4. fsync(folder)                          NAME stays
"""

from __future__ import annotations

import errno
import hashlib
import mmap
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from hubmerge.checkpoint.boxes import BLOCK_BYTES
from hubmerge.checkpoint.data_files import DataFiles
from hubmerge.conversion.conveyor import Conveyor, Stage
from hubmerge.conversion.slabs import SCRATCH_BYTES, TensorReader, slabs
from hubmerge.planning.plan import PlannedShard
from hubmerge.system.disk import atomic_file
from hubmerge.system.linux_files import preallocate, set_o_direct, start_writeback

_BLOCKS = 8

# Writeback starts after this many bytes, so that the final fsync has little left to write.
_WRITEBACK_BYTES = 256 << 20

# The size of a direct write, a multiple of any disk's sector size. 8 MB took 15 % longer: the
# buffer was evicted from the core's cache between being filled and being written.
_DIRECT_BYTES = 2 << 20

# Memory that writing a shard needs in total.
BUFFER_BYTES = _BLOCKS * BLOCK_BYTES + SCRATCH_BYTES + _DIRECT_BYTES


@dataclass(frozen=True, slots=True)
class WrittenShard:
    """A complete shard; `size` in bytes."""

    filename: str
    size: int
    sha256: str


def write_shard(
    shard: PlannedShard,
    files: DataFiles,
    folder: Path,
    on_bytes: Callable[[int], None],
    *,
    keep_in_page_cache: bool = False,
) -> WrittenShard:
    """Write `shard` into `folder`.

    Args:
        on_bytes: called with the size of each block as it is written.
        keep_in_page_cache: keep the shard in the page cache, since it is about to be uploaded.

    Raises:
        DamagedFileError, UnsafeInputError: a stored chunk cannot be read as planned.
        InsufficientSpaceError: the disk is full; the partial shard is removed.
    """
    path = folder / shard.filename
    path.parent.mkdir(exist_ok=True)
    with atomic_file(path) as file:
        preallocate(file.fileno(), shard.size_bytes)
        output = _Output(file.fileno(), is_direct=not keep_in_page_cache)
        sha256 = _write(shard, files, output, on_bytes)
    return WrittenShard(shard.filename, shard.size_bytes, sha256)


def hash_shard(shard: PlannedShard, files: DataFiles, on_bytes: Callable[[int], None]) -> str:
    """Return the sha256 that `shard` would have, without writing it."""
    return _write(shard, files, None, on_bytes)


def _write(
    shard: PlannedShard,
    files: DataFiles,
    output: _Output | None,
    on_bytes: Callable[[int], None],
) -> str:
    digest = hashlib.sha256()
    stages: list[Stage] = [digest.update]
    with ExitStack() as until_done:
        if output is not None:
            until_done.enter_context(output)
            stages.append(output.write)
        conveyor = until_done.enter_context(Conveyor(stages, _BLOCKS, BLOCK_BYTES))
        for block, size_bytes in _blocks(shard, files, conveyor.block):
            conveyor.send(block, size_bytes)
            on_bytes(size_bytes)
    return digest.hexdigest()


def _blocks(
    shard: PlannedShard, files: DataFiles, take: Callable[[], memoryview]
) -> Iterator[tuple[memoryview, int]]:
    """Yield the content of the file in blocks, each with the number of bytes that are filled."""
    for start in range(0, len(shard.header), BLOCK_BYTES):
        header = shard.header[start : start + BLOCK_BYTES]
        block = take()
        block[: len(header)] = header
        yield block, len(header)
    scratch = memoryview(bytearray(SCRATCH_BYTES))
    for tensor in shard.tensors:
        reader = TensorReader(tensor, files, scratch)
        for slab in slabs(tensor):
            block = take()
            reader.read(slab, block[: slab.size_bytes])
            yield block, slab.size_bytes


class _Output:
    """A file that grows by blocks; a context manager that has written everything at its exit.

    Args:
        is_direct: bypass the page cache (O_DIRECT) if the filesystem supports it. The file is not
            read soon, so it should not evict the checkpoint from the page cache; and allocating a
            page for every 4 KB written is slow.
    """

    def __init__(self, fd: int, *, is_direct: bool) -> None:
        self._fd = fd
        self._size = self._in_writeback = 0  # bytes: written, and of these in writeback
        self._disk = ThreadPoolExecutor(1, "disk")
        self._is_direct = is_direct and set_o_direct(fd, True)
        # Mapped memory is page-aligned, as a direct write must be.
        self._buffer = memoryview(mmap.mmap(-1, _DIRECT_BYTES)) if self._is_direct else None
        self._filled = 0

    def write(self, block: memoryview) -> None:
        """Append `block`, which may be reused afterwards."""
        if self._buffer is None:
            self._append(block)
            return
        while block:
            head = block[: _DIRECT_BYTES - self._filled]
            self._buffer[self._filled : self._filled + len(head)] = head
            self._filled += len(head)
            block = block[len(head) :]
            if self._filled == _DIRECT_BYTES:
                self._append(self._buffer)
                self._filled = 0

    def _append(self, block: memoryview) -> None:
        while block:
            try:
                written = os.write(self._fd, block)
            except OSError as error:
                if not (self._is_direct and error.errno == errno.EINVAL):
                    raise
                # No direct write on this disk, or not at this offset.
                self._is_direct = set_o_direct(self._fd, False)
                continue
            self._size += written
            block = block[written:]
        if not self._is_direct:
            self._start_writeback()

    def _start_writeback(self) -> None:
        length = self._size - self._in_writeback
        if length >= _WRITEBACK_BYTES:
            self._disk.submit(start_writeback, self._fd, self._in_writeback, length)
            self._in_writeback = self._size

    def __enter__(self) -> _Output:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        with self._disk:
            if kind is None and self._buffer is not None:
                # The rest is not a multiple of the sector size.
                self._is_direct = set_o_direct(self._fd, False)
                self._append(self._buffer[: self._filled])
