"""Open the files of a checkpoint, which may be links, pipes or devices that somebody planted.

Every file of a checkpoint is opened here. A link may lead to another file of the checkpoint only;
reading a pipe or a device could block or never end.
"""

from __future__ import annotations

import os
import stat
from errno import EACCES, EMFILE, ENFILE, EPERM
from pathlib import Path

from hubmerge.errors import DamagedFileError, UnsafeInputError, from_os_error

_NOT_DAMAGE = (EACCES, EPERM, EMFILE, ENFILE)


def open_inside(folder: Path, name: str) -> int:
    """Open a regular file of a checkpoint for reading, and return its descriptor.

    Args:
        folder: the checkpoint's folder, resolved.
        name: path relative to it.

    Raises:
        DamagedFileError: it is missing, or cannot be opened.
        HubmergeError: this user or process may not open it.
        UnsafeInputError: it is not a regular file, or lies outside the folder.
    """
    path = folder / name
    try:
        is_inside = path.resolve().is_relative_to(folder)
    except (OSError, RuntimeError):  # a loop of links
        is_inside = False
    if not is_inside:
        raise UnsafeInputError(
            f"{name}: refused, the link leads outside the checkpoint",
            "Copy the file into the checkpoint's folder.",
        )
    try:
        # Checked before opening, since opening some devices has side effects.
        if not stat.S_ISREG(path.stat().st_mode):
            raise _irregular(name)
        # O_NONBLOCK: opening a pipe without a writer must not block.
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise DamagedFileError(name, "the data file is missing") from None
    except OSError as error:
        if error.errno in _NOT_DAMAGE:
            raise from_os_error(error, name) from None
        raise DamagedFileError(name, f"cannot be opened: {error.strerror}") from None
    if not stat.S_ISREG(os.fstat(fd).st_mode):  # replaced since the first check
        os.close(fd)
        raise _irregular(name)
    return fd


def read_inside(folder: Path, name: str, max_bytes: int) -> bytes:
    """Read a file of at most `max_bytes`; raise the errors of `open_inside`."""
    with open(open_inside(folder, name), "rb") as file:
        size_bytes = os.fstat(file.fileno()).st_size
        if size_bytes > max_bytes:
            raise UnsafeInputError(f"{name}: too large for such a file ({size_bytes:,} bytes)")
        try:
            return file.read(size_bytes)
        except OSError as error:
            raise DamagedFileError(name, f"cannot be read: {error.strerror}") from None


def _irregular(name: str) -> UnsafeInputError:
    return UnsafeInputError(f"{name}: refused, it is not a regular file")
