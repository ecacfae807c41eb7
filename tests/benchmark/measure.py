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
from collections.abc import Mapping, Sequence
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
    cpu_seconds: float
    """Of all its threads; says more than the wall time does where others use the machine."""
    peak_bytes: int
    stdout: str
    slowest_seconds: float

    def report(self) -> dict[str, Any]:
        """The JSON object that the command printed last."""
        text = self.stdout.strip()
        start = 0 if text.startswith("{") else text.rindex("\n{") + 1
        report: dict[str, Any] = json.loads(text[start:])
        return report


def measure(command: Sequence[str], env: Mapping[str, str] | None = None) -> Measured:
    """Wall time and peak memory (children included) of a Python command, after a sync."""
    os.sync()  # so that the writeback of the last run does not disturb this one
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        started = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, *command],
            stdout=out,
            stderr=err,
            cwd=REPOSITORY,
            env={**os.environ, **(env or {})},
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
        cpu_seconds = usage.ru_utime + usage.ru_stime
        return Measured(wall_seconds, cpu_seconds, peak_bytes, out.read(), wall_seconds)


@dataclass(frozen=True)
class Task:
    """A command to measure, the folder that it reads, and the one that it writes."""

    command: Sequence[str]
    source: Path | None = None
    output: Path | None = None


def best_of(rounds: int, tasks: Mapping[str, Task]) -> dict[str, Measured]:
    """Measure all tasks in turn, in some rounds: the fastest time of each, its highest peak.

    In turn, so that what else the machine does meets all of them alike. Sources are read before
    each run and outputs removed, so that all start from the same page cache.
    """
    runs: dict[str, list[Measured]] = {name: [] for name in tasks}
    for _ in range(rounds):
        for name, task in tasks.items():
            remove(task.output)
            warm(task.source)
            runs[name].append(measure(task.command))
            remove(task.output)
    return {name: _best(found) for name, found in runs.items()}


def _best(runs: Sequence[Measured]) -> Measured:
    return replace(
        min(runs, key=lambda run: run.wall_seconds),
        peak_bytes=max(run.peak_bytes for run in runs),
        slowest_seconds=max(run.wall_seconds for run in runs),
    )


def remove(folder: Path | None) -> None:
    """Remove a folder if it is there."""
    if folder is not None and folder.exists():
        shutil.rmtree(folder)


def warm(folder: Path | None) -> None:
    """Read every file, so that a run finds it in the page cache."""
    if folder is None:
        return
    buffer = bytearray(1 << 20)
    for path in sorted(folder.iterdir()):
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass
