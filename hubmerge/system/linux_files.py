"""Linux system calls on open files that Python does not wrap; no-ops on other systems.

See fallocate(2), sync_file_range(2), open(2) and proc(5) in the Linux manual.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
from contextlib import suppress
from pathlib import Path

from hubmerge.errors import DISK_FULL

_FALLOC_FL_KEEP_SIZE = 1
_SYNC_FILE_RANGE_WRITE = 2


def preallocate(fd: int, size_bytes: int) -> None:
    """Reserve space for a file of that size, if the filesystem can; the file does not grow.

    A full disk shows before the work begins, and writing becomes cheaper. `os.posix_fallocate`
    would write the whole file on a filesystem that cannot reserve space.

    Raises:
        OSError: there is not enough space.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "fallocate"):
        return
    libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
    failed = libc.fallocate(fd, _FALLOC_FL_KEEP_SIZE, 0, size_bytes)
    if failed and ctypes.get_errno() in DISK_FULL:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def start_writeback(fd: int, offset: int, length: int) -> None:
    """Start writing a range of the file to disk; it stays in the page cache.

    Offset and length are in bytes. The call may wait for the disk's queue. The file's next fsync
    reports errors of the disk.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "sync_file_range"):
        libc.sync_file_range.argtypes = (
            ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint,
        )  # fmt: skip
        libc.sync_file_range(fd, offset, length, _SYNC_FILE_RANGE_WRITE)


def set_o_direct(fd: int, on: bool) -> bool:
    """Turn O_DIRECT on or off for an open file; return whether it is on."""
    flag = getattr(os, "O_DIRECT", 0)
    flags = fcntl.fcntl(fd, fcntl.F_GETFL)
    try:
        fcntl.fcntl(fd, fcntl.F_SETFL, flags | flag if on else flags & ~flag)
    except OSError:  # not on this filesystem
        return False
    return on and flag != 0


def read_position(path: Path) -> int:
    """Return how far this process has read a file that it has open, in bytes; 0 if unknown."""
    position = 0
    with suppress(OSError):
        status = path.stat()
        for entry in Path("/proc/self/fdinfo").iterdir():
            with suppress(OSError, ValueError):  # it may be closed meanwhile
                if os.path.samestat(os.fstat(int(entry.name)), status):
                    position = max(position, int(entry.read_text().split()[1]))
    return position
