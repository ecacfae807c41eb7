"""Where the output goes: a full disk, a terminal that closes, a reader that leaves."""

from __future__ import annotations

import fcntl
import os
import struct
import subprocess
import termios
from contextlib import suppress
from pathlib import Path

import pytest

from tests.support.faults.conversion import (
    INDEX,
    REPOSITORY,
    SHARD_SIZE,
    command,
    push,
    source,
)
from tests.support.patience import NET_SECONDS


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux has it")
def test_a_log_that_is_full_does_not_end_the_work(tmp_path: Path) -> None:
    """Lines about the progress are not worth a conversion of hours."""
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command(*push(source(), tmp_path / "out")), stderr=full, check=False,
                              stdout=subprocess.PIPE, text=True, cwd=REPOSITORY)  # fmt: skip
    assert done.returncode == 0
    assert done.stdout.startswith("✓ Converted")


@pytest.mark.parametrize("shard_size", ["1000000", str(SHARD_SIZE)])
def test_a_terminal_that_goes_does_not_end_the_work(shard_size: str, tmp_path: Path) -> None:
    """The laptop is closed, the run on the node goes on."""
    ours, theirs = os.openpty()
    arguments = [*push(source(), tmp_path / "out"), "--shard-size", shard_size]
    process = subprocess.Popen(command(*arguments, slow=True), stderr=theirs,
                               stdout=subprocess.PIPE, cwd=REPOSITORY)  # fmt: skip
    os.close(theirs)
    assert os.read(ours, 1)
    os.close(ours)
    stdout, _ = process.communicate(timeout=NET_SECONDS)
    assert process.returncode == 0
    assert stdout.startswith("✓ Converted".encode())


def test_a_conversion_has_no_bar_for_uploads(tmp_path: Path) -> None:
    """On a terminal; nothing is uploaded."""
    ours, theirs = os.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("4H", 24, 80, 0, 0))  # rows, columns
    process = subprocess.Popen(command(*push(source(), tmp_path / "out")), stderr=theirs,
                               stdout=subprocess.PIPE, cwd=REPOSITORY)  # fmt: skip
    os.close(theirs)
    shown = b""
    with suppress(OSError):  # which is how a terminal's other end says that it has gone
        while piece := os.read(ours, 4096):
            shown += piece
    os.close(ours)
    process.communicate()
    assert b"Converted 100%" in shown
    assert b"Uploaded" not in shown


def test_a_reader_that_leaves_is_no_traceback() -> None:
    """`hubmerge inspect | head -0`: exit 1, and silence."""
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(command("inspect", "--load-dir", source()), stdout=write, check=False,
                          stderr=subprocess.PIPE, text=True, cwd=REPOSITORY)  # fmt: skip
    os.close(write)
    assert done.returncode == 1
    assert done.stderr == ""


@pytest.mark.parametrize("debug", ["", "1"])
def test_output_that_cannot_be_written_is_no_traceback(debug: str) -> None:
    """A full disk behind `> file` is said in words, exit 1."""
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command("inspect", "--load-dir", source()), stdout=full, check=False,
                              stderr=subprocess.PIPE, text=True, cwd=REPOSITORY,
                              env=os.environ | {"HF_DEBUG": debug})  # fmt: skip
    assert done.returncode == 1
    assert done.stderr == "Error: the output cannot be written: No space left on device\n"


@pytest.mark.parametrize("closed", ["stdout", "stderr"])
def test_a_closed_stream_is_no_error(closed: str, tmp_path: Path) -> None:
    """`>&-` and `2>&-`: the work is done all the same."""
    number = {"stdout": 1, "stderr": 2}[closed]
    shell = f'exec "$@" {number}>&-'
    done = subprocess.run(["bash", "-c", shell, "-", *command(*push(source(), tmp_path / "out"))],
                          capture_output=True, text=True, check=False, cwd=REPOSITORY)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / INDEX).exists()
