"""The command in a process of its own, forked from one that has torch imported already.

Starting Python and importing torch and transformers takes seconds, which a hundred runs cannot
spend. The fork has its own environment, output and process id; nothing but the imports is shared.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import signal
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.support.patience import NET_SECONDS

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(
    ["torch", "transformers.models.llama.modeling_llama", "hubmerge.cli.app", "hubmerge.api"]
)


@dataclass
class Child:
    """A running command."""

    process: multiprocessing.process.BaseProcess
    folder: Path

    @property
    def pid(self) -> int:
        """Its process id."""
        assert self.process.pid is not None
        return self.process.pid

    def wait(self, seconds: float = NET_SECONDS) -> int:
        """Its exit code; below zero, the signal that ended it."""
        self.process.join(seconds)
        if self.process.exitcode is None:
            self.process.kill()
            raise AssertionError(f"still running after {seconds} s:\n{self.err}")
        return self.process.exitcode

    @property
    def out(self) -> str:
        """Its stdout."""
        return (self.folder / "out").read_text()

    @property
    def err(self) -> str:
        """Its stderr."""
        return (self.folder / "err").read_text()


def start(
    argv: Sequence[str],
    env: dict[str, str],
    folder: Path,
    kill_at: tuple[str, int] | None = None,
    number: signal.Signals = signal.SIGKILL,
) -> Child:
    """Run ``hubmerge ARGV``.

    With `kill_at` it sends itself the signal `number` at that call of a progress event, from inside
    a `__del__`, where Python drops what a handler raises.
    """
    folder.mkdir(parents=True, exist_ok=True)
    process = _context.Process(target=_run, args=(list(argv), env, str(folder), kill_at, number))
    # The first one starts the server that forks them, whose socket must have a short path.
    places, tempfile.tempdir = tempfile.tempdir, None
    try:
        process.start()
    finally:
        tempfile.tempdir = places
    return Child(process, folder)


def _run(
    argv: list[str],
    env: dict[str, str],
    folder: str,
    kill_at: tuple[str, int] | None,
    number: signal.Signals,
) -> None:
    os.environ.clear()
    os.environ.update(env)
    for fd, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(f"{folder}/{name}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), fd)
    sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115
    from huggingface_hub import constants

    importlib.reload(constants)  # it reads the environment when it is imported
    from hubmerge.cli import app
    from hubmerge.progress_bars import Bars
    from hubmerge.publish import hub

    hub.sleep = lambda _: None
    if kill_at is not None:
        _kill_at(Bars, *kill_at, number)
    sys.argv = ["hubmerge", *argv]
    signal.signal(signal.SIGINT, signal.default_int_handler)
    app.main()


def _kill_at(bars: type, event: str, call: int, number: signal.Signals) -> None:
    calls = iter(range(1, 1_000_000))

    class Kills:
        def __del__(self) -> None:
            os.kill(os.getpid(), number)

    def kill(*_: object) -> None:
        if next(calls) == call:
            Kills()

    setattr(bars, event, kill)
