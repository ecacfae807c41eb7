"""Writing one shard: read and cast in the caller's thread; hash, then write, in others.

Memory is `_BLOCKS` blocks that go round, two blocks of work space, and what is collected for one
write past the page cache, whatever the shard's size.
The file is written append-only and in order, so any filesystem will do. It grows under the name
``NAME.partial``; it gets its own name only when it is complete and synced:

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
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from hubmerge.checkpoint.records import DataFiles
from hubmerge.conversion.conveyor import Conveyor, Stage
from hubmerge.conversion.slabs import BLOCK_BYTES, TensorReader, slabs
from hubmerge.errors import DISK_FULL, HubmergeError, InsufficientSpaceError
from hubmerge.planning.plan import PlannedShard
from hubmerge.system.linux_files import preallocate, set_o_direct, start_writeback

PARTIAL_SUFFIX = ".partial"
_BLOCKS = 8

# After so many bytes the disk is told to begin: the sync at the end then has little to wait for.
_WRITEBACK_BYTES = 256 << 20

# What is written past the page cache goes in pieces of this size, a multiple of any disk's sector.
# 8 MB took 15 % longer: it leaves the core's cache between being collected and being written.
_DIRECT_BYTES = 2 << 20

# All the memory that writing a shard takes.
BUFFER_BYTES = (_BLOCKS + 2) * BLOCK_BYTES + _DIRECT_BYTES


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
        on_bytes: told of each number of output bytes as they are written.
        keep_in_page_cache: keep it in the page cache, since it is about to be uploaded.

    Raises:
        DamagedFileError, UnsafeInputError: a stored chunk cannot be read as planned.
        InsufficientSpaceError: the disk is full; nothing is left of this shard.
    """
    path = folder / shard.filename
    partial = folder / (shard.filename + PARTIAL_SUFFIX)
    with disk_errors(partial):
        try:
            partial.unlink(missing_ok=True)  # a link there would be followed
            with open(partial, "xb", buffering=0) as file:
                preallocate(file.fileno(), shard.size_bytes)
                output = _Output(file.fileno(), is_direct=not keep_in_page_cache)
                sha256 = _write(shard, files, output, on_bytes)
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


class _Output:
    """A file that grows by blocks; a context manager: when it is left, all has been written.

    Args:
        is_direct: write past the page cache (O_DIRECT), where the filesystem can. Nobody reads the
            file soon, so it need not push the checkpoint out of memory; and a machine that has to
            find fresh memory for every page is slow at it.
    """

    def __init__(self, fd: int, *, is_direct: bool) -> None:
        self._fd = fd
        self._size = self._begun = 0  # bytes: written, and of these given to the disk
        self._disk = ThreadPoolExecutor(1, "disk")
        self._is_direct = is_direct and set_o_direct(fd, True)
        # Mapped memory begins on a page, as a direct write must.
        self._collected = memoryview(mmap.mmap(-1, _DIRECT_BYTES)) if self._is_direct else None
        self._filled = 0

    def write(self, block: memoryview) -> None:
        """Append `block`; it may be changed afterwards."""
        if self._collected is None:
            self._append(block)
            return
        while block:
            piece = block[: _DIRECT_BYTES - self._filled]
            self._collected[self._filled : self._filled + len(piece)] = piece
            self._filled += len(piece)
            block = block[len(piece) :]
            if self._filled == _DIRECT_BYTES:
                self._append(self._collected)
                self._filled = 0

    def _append(self, block: memoryview) -> None:
        while block:
            try:
                written = os.write(self._fd, block)
            except OSError as error:
                if not (self._is_direct and error.errno == errno.EINVAL):
                    raise
                self._is_direct = set_o_direct(
                    self._fd, False
                )  # this disk cannot, or not from here
                continue
            self._size += written
            block = block[written:]
        if not self._is_direct:
            self._begin_storing()

    def _begin_storing(self) -> None:
        length = self._size - self._begun
        if length >= _WRITEBACK_BYTES:
            self._disk.submit(start_writeback, self._fd, self._begun, length)
            self._begun = self._size

    def __enter__(self) -> _Output:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        with self._disk:
            if kind is None and self._collected is not None:
                self._is_direct = set_o_direct(
                    self._fd, False
                )  # the end is no multiple of a sector
                self._append(self._collected[: self._filled])


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
        if error.errno == errno.EFBIG:
            raise InsufficientSpaceError(
                f"{path.name}: this disk takes no file of that size ({error.strerror})",
                "Use a smaller --shard-size, or another disk.",
            ) from None
        if error.errno in DISK_FULL:
            raise InsufficientSpaceError(
                f"{path.name}: the disk is full ({error.strerror})",
                f"Free some room in {path.parent} and run the same command again; "
                "finished shards are kept.",
            ) from None
        raise HubmergeError(
            f"{path}: cannot be written: {error.strerror}",
            "When that is mended, run the same command again; finished shards are kept.",
        ) from None
