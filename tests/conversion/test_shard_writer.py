"""A shard's file holds what was sent, past the page cache and through it."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest

import hubmerge
from hubmerge.conversion import shard_writer
from hubmerge.conversion.shard_writer import _DIRECT_BYTES, _Output
from hubmerge.system.linux_files import set_o_direct, start_writeback
from tests.support.checkpoints.fixtures import checkpoint_path

O_DIRECT = getattr(os, "O_DIRECT", 0)

# Below, at, and above what is collected for one write, and no multiple of a sector.
SIZES = ([], [1], [_DIRECT_BYTES], [_DIRECT_BYTES - 1, 2], [5, 3 * _DIRECT_BYTES + 7, 4096, 11])


def write(path: Path, sizes: list[int], *, is_direct: bool) -> bytes:
    """Write random blocks of these sizes; what was sent."""
    blocks = [random.Random(size).randbytes(size) for size in sizes]
    with path.open("xb", buffering=0) as file, _Output(file.fileno(), is_direct=is_direct) as out:
        for block in blocks:
            out.write(memoryview(block))
    return b"".join(blocks)


@pytest.mark.parametrize("is_direct", [True, False])
@pytest.mark.parametrize("sizes", SIZES)
def test_the_file_holds_what_was_sent(tmp_path: Path, sizes: list[int], is_direct: bool) -> None:
    """Whatever the sizes of the blocks: the end is no multiple of a sector."""
    sent = write(tmp_path / "file", sizes, is_direct=is_direct)
    assert (tmp_path / "file").read_bytes() == sent


def test_a_disk_that_refuses_direct_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It gets the same bytes through the page cache."""
    real, refused = os.write, []

    def refuse(fd: int, block: memoryview) -> int:
        if fcntl.fcntl(fd, fcntl.F_GETFL) & O_DIRECT:
            refused.append(len(block))
            raise OSError(errno.EINVAL, "Invalid argument")
        return real(fd, block)

    monkeypatch.setattr(os, "write", refuse)
    sent = write(tmp_path / "file", [3 * _DIRECT_BYTES + 7], is_direct=True)
    assert (tmp_path / "file").read_bytes() == sent
    assert refused in ([_DIRECT_BYTES], [])  # empty where the test's own disk has no direct writes


def test_a_direct_write_that_ends_early(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is left then begins where no sector does."""
    real = os.write
    monkeypatch.setattr(os, "write", lambda fd, block: real(fd, block[: max(1, len(block) - 4095)]))
    sent = write(tmp_path / "file", [2 * _DIRECT_BYTES + 9000], is_direct=True)
    assert (tmp_path / "file").read_bytes() == sent


def test_other_errors_are_not_retried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk is full for the page cache too."""

    def full(fd: int, block: memoryview) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OSError, match="No space left"):
        write(tmp_path / "file", [2 * _DIRECT_BYTES], is_direct=True)


def can_write_directly(folder: Path) -> bool:
    """Does this disk take writes past the page cache?"""
    with (folder / "probe").open("xb", buffering=0) as file:
        return set_o_direct(file.fileno(), True)


def test_a_conversion_writes_past_the_page_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All but the last piece of a shard."""
    if not can_write_directly(tmp_path):
        pytest.skip("not on this disk")
    real, direct = os.write, []

    def watch(fd: int, block: memoryview) -> int:
        direct.append(bool(fcntl.fcntl(fd, fcntl.F_GETFL) & O_DIRECT))
        return real(fd, block)

    monkeypatch.setattr(os, "write", watch)
    hubmerge.convert(checkpoint_path("several_shards"), tmp_path / "out")
    assert direct[:-1].count(True) > 3
    assert not direct[-1]


def resident(path: Path) -> float:
    """The part of a file that the page cache holds."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, mmap.MAP_PRIVATE) as mapped:
        pages = -(-len(mapped) // mmap.PAGESIZE)
        found = (ctypes.c_ubyte * pages)()
        start = ctypes.addressof(ctypes.c_char.from_buffer(mapped))
        mincore: Callable[..., int] = ctypes.CDLL(None).mincore
        assert mincore(ctypes.c_void_p(start), ctypes.c_size_t(len(mapped)), found) == 0
        return sum(page & 1 for page in found) / pages


@pytest.mark.skipif(not O_DIRECT, reason="Linux alone")
def test_what_is_read_next_stays_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The upload must not have to wait for the disk, which stores the shard meanwhile."""
    begun = []

    def begin(fd: int, offset: int, length: int) -> None:
        begun.append((offset, length))
        os.fsync(fd)  # what is stored already could be dropped
        start_writeback(fd, offset, length)

    monkeypatch.setattr(shard_writer, "_WRITEBACK_BYTES", 1 << 20)
    monkeypatch.setattr(shard_writer, "start_writeback", begin)
    write(tmp_path / "file", [1 << 20] * 8, is_direct=False)
    assert begun == [(n << 20, 1 << 20) for n in range(8)]
    assert resident(tmp_path / "file") == 1.0
