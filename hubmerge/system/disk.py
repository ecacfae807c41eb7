"""Files and folders that survive a crash: locks, atomic writes, hashes, free space.

The files in a folder are untrusted: no link is followed, and only regular files are read.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path

from hubmerge.errors import DISK_FULL, HubmergeError, InsufficientSpaceError, UsageError

PARTIAL_SUFFIX = ".partial"

_READ_BYTES = 1 << 21
_NO_TRAPS = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class FolderLock:
    """An exclusive lock on a folder, held through a file in it; a context manager.

    The lock ends with the process, however that ends. The holder may remove the file.

    Attributes:
        file: the lock file, open for reading and appending.

    Args:
        path: the lock file; created if missing.
        option: the command-line option that chooses another folder, for the hint.

    Raises:
        UsageError: another run holds the lock, or `path` is not a regular file.
    """

    def __init__(self, path: Path, option: str) -> None:
        with disk_errors(path):
            fd = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | _NO_TRAPS, 0o666)
        self.file = FileIO(fd, "a+b")
        try:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise UsageError(
                    f"{path}: not a regular file", f"Remove it, or use another {option}."
                )
            if not self._acquire(path):
                raise UsageError(
                    f"{path.parent}: another run is using this directory",
                    f"Wait for it to end, or use another {option}.",
                )
        except BaseException:
            self.file.close()
            raise

    def _acquire(self, path: Path) -> bool:
        try:
            fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The previous holder may have removed the file between our open and our lock.
            return os.path.samestat(os.fstat(self.file.fileno()), path.lstat())
        except OSError:
            return False

    def release(self) -> None:
        """Release the lock."""
        self.file.close()

    def __enter__(self) -> FolderLock:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


@contextmanager
def atomic_file(path: Path) -> Iterator[FileIO]:
    """Write a file whose name appears only when its content is complete and synced.

    Yields:
        ``NAME.partial``, open for writing; it is renamed at the end, and removed after an error.

    Raises:
        InsufficientSpaceError, HubmergeError: it cannot be written.
    """
    partial = path.with_name(path.name + PARTIAL_SUFFIX)
    with disk_errors(partial):
        try:
            partial.unlink(missing_ok=True)  # a link there would be followed
            with FileIO(partial, "xb") as file:
                yield file
                os.fsync(file.fileno())
            partial.replace(path)
            sync_folder(path.parent)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise


def write_all(file: FileIO, content: bytes) -> None:
    """Write the whole content to an unbuffered file, whose `write` may stop early."""
    rest = memoryview(content)
    while rest:
        rest = rest[file.write(rest) :]


def sync_folder(folder: Path) -> None:
    """Make renames in `folder` survive a crash."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def open_regular(path: Path) -> FileIO:
    """Open a regular file for reading; raise OSError for a link, a pipe or a folder."""
    file = FileIO(os.open(path, os.O_RDONLY | _NO_TRAPS))
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError(f"{path}: not a regular file")
    return file


def sha256_of(file: FileIO) -> str:
    """Return the sha256 of the rest of an open file, in hex."""
    digest = hashlib.sha256()
    while block := file.read(_READ_BYTES):
        digest.update(block)
    return digest.hexdigest()


def content_ids(content: bytes) -> tuple[str, str]:
    """Return the content's sha256 and its git blob id; a listing of the Hub has one of them."""
    blob = b"blob %d\0" % len(content) + content
    git_id = hashlib.sha1(blob, usedforsecurity=False).hexdigest()
    return hashlib.sha256(content).hexdigest(), git_id


def is_file_of_size(path: Path, size_bytes: int) -> bool:
    """Return whether `path` is a regular file, not a link, of this size."""
    try:
        status = path.lstat()
    except OSError:
        return False
    return stat.S_ISREG(status.st_mode) and status.st_size == size_bytes


def check_space(folder: Path, needed_bytes: int, option: str) -> None:
    """Raise InsufficientSpaceError if the disk of `folder`, which need not exist, has less free.

    Args:
        option: the command-line option that moves the folder to another disk.
    """
    while not folder.exists():
        folder = folder.parent
    free_bytes = shutil.disk_usage(folder).free
    if free_bytes < needed_bytes:
        raise InsufficientSpaceError(
            f"{folder}: not enough disk space: {needed_bytes:,} bytes are needed, "
            f"{free_bytes:,} are free",
            f"Free some space, or use {option} on another disk.",
        )


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Translate OSErrors about writing `path` into errors of hubmerge."""
    try:
        yield
    except OSError as error:
        if error.errno == errno.EFBIG:
            raise InsufficientSpaceError(
                f"{path.name}: the filesystem does not allow a file of this size "
                f"({error.strerror})",
                "Use a smaller --shard-size, or another disk.",
            ) from None
        if error.errno in DISK_FULL:
            raise InsufficientSpaceError(
                f"{path.name}: the disk is full ({error.strerror})",
                f"Free some space in {path.parent} and rerun; finished shards are kept.",
            ) from None
        raise HubmergeError(
            f"{path}: cannot be written: {error.strerror}",
            "Fix the cause and rerun; finished shards are kept.",
        ) from None
