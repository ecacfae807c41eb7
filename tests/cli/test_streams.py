"""Where the output goes: a full disk, a terminal that closes, a reader that leaves."""

from __future__ import annotations

import fcntl
import os
import re
import struct
import subprocess
import sys
import termios
import time
from contextlib import suppress
from pathlib import Path

import pytest

from hubmerge.progress_bars import Bars
from tests.support.faults.conversion import (
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


@pytest.mark.parametrize("columns", [46, 80, 200])
def test_bars_keep_speed_and_time_left(columns: int) -> None:
    """Whatever the terminal's width, and while the conversion waits for uploads."""
    code = """
import time
from hubmerge.progress_bars import Bars
with Bars(uploads=True) as bars:
    bars.status("Reading checkpoint…")
    bars.start(10**9, 2)
    for _ in range(4):
        time.sleep(0.15)
        bars.converted(10**8)
        bars.uploaded_bytes(10**7)
    bars.waiting(True)
"""
    shown = on_a_terminal([sys.executable, "-c", code], columns)
    assert "Reading checkpoint…" in shown
    lines = [line for line in re.split(r"[\r\n]", shown) if "Waiting for upload" in line]
    assert lines
    assert re.search(r"40%.*[MG]B/s, \d\d:\d\d", lines[-1])
    assert all(len(line) <= columns for line in lines)


def test_a_log_has_a_line_now_and_then_although_nothing_moves(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With its time, and what is converted and uploaded."""
    monkeypatch.setattr("hubmerge.progress_bars.LOG_EVERY_SECONDS", 0.05)
    with Bars(uploads=True) as bars:
        bars.start(2000, 1)
        bars.converted(1000)
        time.sleep(0.3)
    shown = capsys.readouterr().err
    assert re.search(r"\d\d:\d\d:\d\d converted 1.0 KB of 2.0 KB, uploaded 0 B", shown)


def on_a_terminal(argv: list[str], columns: int) -> str:
    """What a process shows on a terminal of its own."""
    ours, theirs = os.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("4H", 24, columns, 0, 0))
    process = subprocess.Popen(argv, stderr=theirs, stdout=subprocess.PIPE, cwd=REPOSITORY)
    os.close(theirs)
    shown = b""
    with suppress(OSError):  # which is how a terminal's other end says that it has gone
        while piece := os.read(ours, 4096):
            shown += piece
    os.close(ours)
    process.communicate()
    return shown.decode()


def test_a_conversion_has_no_bar_for_uploads(tmp_path: Path) -> None:
    """On a terminal; nothing is uploaded."""
    shown = on_a_terminal(command(*push(source(), tmp_path / "out")), 80)
    assert "Converted 100%" in shown
    assert "Uploaded" not in shown
