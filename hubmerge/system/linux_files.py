"""What Linux can do with an open file beyond what Python has names for; elsewhere, nothing is done.

See fallocate(2), sync_file_range(2) and open(2) of the Linux manual.
"""

from __future__ import annotations

import ctypes
import fcntl
import os

from hubmerge.errors import DISK_FULL

_FALLOC_FL_KEEP_SIZE = 1
_SYNC_FILE_RANGE_WRITE = 2


def preallocate(fd: int, size_bytes: int) -> None:
    """Have the filesystem set room aside for a file of that size, where it can; its size stays.

    A disk that is too full says so before the work, and writing to it is cheaper. Not
    `os.posix_fallocate`: where the filesystem cannot do it, that writes the whole file once more.

    Raises:
        OSError: there is not so much room.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "fallocate"):
        return
    libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
    failed = libc.fallocate(fd, _FALLOC_FL_KEEP_SIZE, 0, size_bytes)
    if failed and ctypes.get_errno() in DISK_FULL:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def start_writeback(fd: int, offset: int, length: int) -> None:
    """Have the disk begin to store a part of the file, which stays in the page cache.

    Offset and length in bytes. It may have to wait for the disk's queue. An error of the disk is
    not lost: the file's next fsync raises it.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "sync_file_range"):
        libc.sync_file_range.argtypes = (
            ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint,
        )  # fmt: skip
        libc.sync_file_range(fd, offset, length, _SYNC_FILE_RANGE_WRITE)


def set_o_direct(fd: int, on: bool) -> bool:
    """Write past the page cache (O_DIRECT) from now on, or through it; is it past it now?"""
    flag = getattr(os, "O_DIRECT", 0)
    flags = fcntl.fcntl(fd, fcntl.F_GETFL)
    try:
        fcntl.fcntl(fd, fcntl.F_SETFL, flags | flag if on else flags & ~flag)
    except OSError:  # not on this filesystem
        return False
    return on and flag != 0
