"""Run a command in a fresh process and measure it from outside.

This module and its callers must stay small in memory: Linux counts what a process held before
`exec` towards its peak, and between `vfork` and `exec` that is the parent's memory.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parents[2]
RSS_UNIT_BYTES = 1 if sys.platform == "darwin" else 1024


class CommandFailedError(Exception):
    """A measured command did not end well."""


@dataclass(frozen=True)
class Measured:
    """One run of one command, or the fastest of several."""

    wall_seconds: float
    peak_bytes: int
    stdout: str
    slowest_seconds: float

    def report(self) -> dict[str, Any]:
        """The JSON object that the command printed last."""
        text = self.stdout.strip()
        start = 0 if text.startswith("{") else text.rindex("\n{") + 1
        report: dict[str, Any] = json.loads(text[start:])
        return report


def measure(command: Sequence[str]) -> Measured:
    """Wall time and peak memory (children included) of a Python command, after a sync."""
    os.sync()  # so that the writeback of the last run does not disturb this one
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        started = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, *command], stdout=out, stderr=err, cwd=REPOSITORY
        )
        _, status, usage = os.wait4(process.pid, 0)
        wall_seconds = time.perf_counter() - started
        process.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        err.seek(0)
        if process.returncode:
            raise CommandFailedError(
                f"{' '.join(command)}: exit {process.returncode}\n{err.read()}"
            )
        peak_bytes = usage.ru_maxrss * RSS_UNIT_BYTES
        return Measured(wall_seconds, peak_bytes, out.read(), wall_seconds)


def best_of(rounds: int, command: Sequence[str], output: Path | None = None) -> Measured:
    """The fastest of some runs, and their highest peak; removes the output folder around each."""
    runs = []
    for _ in range(rounds):
        remove(output)
        runs.append(measure(command))
        remove(output)
    fastest = min(runs, key=lambda run: run.wall_seconds)
    return replace(
        fastest,
        peak_bytes=max(run.peak_bytes for run in runs),
        slowest_seconds=max(run.wall_seconds for run in runs),
    )


def remove(folder: Path | None) -> None:
    """Remove a folder if it is there."""
    if folder is not None and folder.exists():
        shutil.rmtree(folder)


def warm(folder: Path) -> int:
    """Read every file once, so that all runs start from the page cache; returns the bytes."""
    buffer = bytearray(1 << 20)
    total_bytes = 0
    for path in sorted(folder.iterdir()):
        with path.open("rb", buffering=0) as file:
            while count := file.readinto(buffer):
                total_bytes += count
    return total_bytes
