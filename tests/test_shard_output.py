"""A shard's file holds what was sent, past the page cache and through it."""

from __future__ import annotations

import errno
import fcntl
import os
import random
from pathlib import Path

import pytest

from hubmerge.shard_writer import _DIRECT_BYTES, _Output

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
        if fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_DIRECT:
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
