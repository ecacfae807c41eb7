"""How long tests wait, on a machine that others may keep busy: they bound CPU time, not wall time.

What an operation may take is measured in seconds of CPU. What it must not wait for (an answer, a
sleep) is made to last longer than `NET_SECONDS`, after which a test gives up in any case.
"""

from __future__ import annotations

import math
import os
import resource
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

NET_SECONDS = 120
"""Far more than anything takes on a busy machine, and far less than the limit of pytest."""

ENDLESS_SECONDS = 600
"""For what nobody may wait for."""


def wait_until(condition: Callable[[], object], seconds: float = NET_SECONDS) -> None:
    """Return as soon as the condition holds, or after `seconds`, whatever holds then."""
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)


def end_soon(
    process: subprocess.Popen[str], number: int, cpu_seconds: float = 2
) -> tuple[str, str]:
    """Send a process the signal, wait for its end and return what it printed.

    Raises:
        AssertionError: it worked on for longer than `cpu_seconds`.
        subprocess.TimeoutExpired: it waits for something.
    """
    before, others = _cpu_seconds(process.pid), _cpu_seconds_of_children()
    process.send_signal(number)
    try:
        out, err = process.communicate(timeout=NET_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    assert _cpu_seconds_of_children() - others - before < cpu_seconds
    return out, err


def _cpu_seconds(pid: int) -> float:
    """Return the CPU time of a running process; without end if the system does not tell."""
    if not Path("/proc/self/stat").exists():
        return math.inf
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _cpu_seconds_of_children() -> float:
    """Return the CPU time of all child processes that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
