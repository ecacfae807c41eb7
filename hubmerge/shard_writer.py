"""Writing one shard: read and cast in the caller's thread; hash and write in others.

Memory is a ring of `_BLOCKS` blocks and two blocks of work space, whatever the size of the shard.
The file is written append-only and in order, so any filesystem will do. It grows under the name
``NAME.partial``; it gets its own name only when it is complete and synced:

    1. NAME.partial is created and grows      a crash leaves NAME.partial, removed by the next run
    2. fsync(NAME.partial)                    the same
    3. rename to NAME                         a crash leaves either name, the content complete
    4. fsync(folder)                          NAME stays
"""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from errno import EDQUOT, EFBIG, ENOSPC
from pathlib import Path

from hubmerge.checkpoint.records import DataFiles
from hubmerge.errors import HubmergeError, NoRoomError
from hubmerge.plan import PlannedShard
from hubmerge.stream import BLOCK_BYTES, TensorReader, slabs

PARTIAL_SUFFIX = ".partial"
_BLOCKS = 8

# After so many bytes the disk is told to begin: the sync at the end then has little to wait for.
_WRITEBACK_BYTES = 256 << 20

# All the memory that writing a shard takes.
BUFFER_BYTES = (_BLOCKS + 2) * BLOCK_BYTES


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
) -> WrittenShard:
    """Write `shard` into `folder`.

    Args:
        on_bytes: told of each number of output bytes as they are written.

    Raises:
        DamagedFileError, UnsafeInputError: a stored chunk cannot be read as planned.
        NoRoomError: the disk is full; nothing is left of this shard.
    """
    path = folder / shard.filename
    partial = folder / (shard.filename + PARTIAL_SUFFIX)
    with disk_errors(partial):
        try:
            with open(partial, "wb", buffering=0) as file:
                sha256 = _write(shard, files, file.fileno(), on_bytes)
                os.fsync(file.fileno())
            partial.replace(path)
            sync_folder(folder)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
    return WrittenShard(shard.filename, shard.size_bytes, sha256)


def hash_shard(shard: PlannedShard, files: DataFiles, on_bytes: Callable[[int], None]) -> str:
    """The sha256 that `shard` has when it is written; nothing is written."""
    return _write(shard, files, None, on_bytes)


def _write(
    shard: PlannedShard, files: DataFiles, fd: int | None, on_bytes: Callable[[int], None]
) -> str:
    digest = hashlib.sha256()
    with (
        ThreadPoolExecutor(1, "hash") as hasher,
        ThreadPoolExecutor(1, "write") as writer,
        ThreadPoolExecutor(1, "disk") as disk,
    ):
        file = _Appended(fd, disk) if fd is not None else None
        in_flight: deque[list[Future[None]]] = deque()
        try:
            for block in _blocks(shard, files, in_flight):
                tasks = [hasher.submit(digest.update, block)]
                if file is not None:
                    tasks.append(writer.submit(file.write, block))
                in_flight.append(tasks)
                on_bytes(len(block))
            while in_flight:
                _finish(in_flight)
        finally:
            hasher.shutdown(cancel_futures=True)
            writer.shutdown(cancel_futures=True)
    return digest.hexdigest()


def _blocks(
    shard: PlannedShard, files: DataFiles, in_flight: deque[list[Future[None]]]
) -> Iterator[memoryview]:
    """The content of the file, block after block; a block is used again when it is written."""
    yield memoryview(shard.header)
    in_flight_blocks = _BLOCKS - 1
    buffers = [memoryview(bytearray(BLOCK_BYTES)) for _ in range(_BLOCKS)]
    scratch = memoryview(bytearray(2 * BLOCK_BYTES))
    turn = 0
    for tensor in shard.tensors:
        reader = TensorReader(tensor, files, scratch)
        for slab in slabs(tensor):
            if len(in_flight) > in_flight_blocks:
                _finish(in_flight)
            block = buffers[turn % _BLOCKS][: slab.size_bytes]
            turn += 1
            reader.read(slab, block)
            yield block


def _finish(in_flight: deque[list[Future[None]]]) -> None:
    for task in in_flight.popleft():
        task.result()


class _Appended:
    """A file that grows by blocks; `disk` begins to store them, which may wait for its queue."""

    def __init__(self, fd: int, disk: Executor) -> None:
        self._fd, self._disk = fd, disk
        self._size = self._begun = 0  # bytes: written, and of these given to the disk

    def write(self, block: memoryview) -> None:
        while block:
            written = os.write(self._fd, block)
            self._size += written
            block = block[written:]
        if self._size - self._begun >= _WRITEBACK_BYTES and hasattr(os, "posix_fadvise"):
            length = self._size - self._begun
            advice = os.POSIX_FADV_DONTNEED
            self._disk.submit(os.posix_fadvise, self._fd, self._begun, length, advice)
            self._begun = self._size


def sync_folder(folder: Path) -> None:
    """Make renames in `folder` survive a crash."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn the operating system's errors about writing `path` into ours."""
    try:
        yield
    except OSError as error:
        if error.errno in (ENOSPC, EDQUOT, EFBIG):
            raise NoRoomError(
                f"{path.name}: the disk is full ({error.strerror})",
                f"Free some room in {path.parent} and run the same command again; "
                "finished shards are kept.",
            ) from None
        raise HubmergeError(
            f"{path}: cannot be written: {error.strerror}",
            "When that is mended, run the same command again; finished shards are kept.",
        ) from None
