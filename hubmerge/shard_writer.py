"""Writing one shard: read and cast in the caller's thread; hash, then write, in others.

Memory is `_BLOCKS` blocks that go round and two blocks of work space, whatever the shard's size.
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
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from hubmerge.checkpoint.records import DataFiles
from hubmerge.conveyor import Conveyor, Stage
from hubmerge.errors import DISK_FULL, HubmergeError, NoRoomError
from hubmerge.plan import PlannedShard
from hubmerge.stream import BLOCK_BYTES, TensorReader, slabs

PARTIAL_SUFFIX = ".partial"
_BLOCKS = 8

# After so many bytes the disk is told to begin: the sync at the end then has little to wait for.
_WRITEBACK_BYTES = 256 << 20

# fallocate(2): set room aside, and leave the size of the file as it is.
_FALLOC_FL_KEEP_SIZE = 1

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
            partial.unlink(missing_ok=True)  # a link there would be followed
            with open(partial, "xb", buffering=0) as file:
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
    stages: list[Stage] = [digest.update]
    with ExitStack() as until_done:
        if fd is not None:
            _reserve(fd, shard.size_bytes)
            disk = until_done.enter_context(ThreadPoolExecutor(1, "disk"))
            stages.append(_Appended(fd, disk).write)
        conveyor = until_done.enter_context(Conveyor(stages, _BLOCKS, BLOCK_BYTES))
        for block, size_bytes in _blocks(shard, files, conveyor.block):
            conveyor.send(block, size_bytes)
            on_bytes(size_bytes)
    return digest.hexdigest()


def _blocks(
    shard: PlannedShard, files: DataFiles, take: Callable[[], memoryview]
) -> Iterator[tuple[memoryview, int]]:
    """The content of the file, block after block, and how many bytes of each are filled."""
    for start in range(0, len(shard.header), BLOCK_BYTES):
        piece = shard.header[start : start + BLOCK_BYTES]
        block = take()
        block[: len(piece)] = piece
        yield block, len(piece)
    scratch = memoryview(bytearray(2 * BLOCK_BYTES))
    for tensor in shard.tensors:
        reader = TensorReader(tensor, files, scratch)
        for slab in slabs(tensor):
            block = take()
            reader.read(slab, block[: slab.size_bytes])
            yield block, slab.size_bytes


def _reserve(fd: int, size_bytes: int) -> None:
    """Have the filesystem set room aside for the whole file, where it can; its size stays 0.

    A disk that is too full says so before the work, and writing to it is cheaper. Not
    `os.posix_fallocate`: where the filesystem cannot do it, that writes the whole file once more.

    Raises:
        OSError: there is not so much room.
    """
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "fallocate"):  # only Linux has it
        return
    libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
    if libc.fallocate(fd, _FALLOC_FL_KEEP_SIZE, 0, size_bytes) and ctypes.get_errno() in DISK_FULL:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


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
        if error.errno in DISK_FULL:
            raise NoRoomError(
                f"{path.name}: the disk is full ({error.strerror})",
                f"Free some room in {path.parent} and run the same command again; "
                "finished shards are kept.",
            ) from None
        raise HubmergeError(
            f"{path}: cannot be written: {error.strerror}",
            "When that is mended, run the same command again; finished shards are kept.",
        ) from None
