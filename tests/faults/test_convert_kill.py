"""A conversion that is killed: no file has a final name before it is complete; a rerun resumes."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

import pytest

import hubmerge
from hubmerge import errors
from tests.support.faults.calls import WRITES, at_each, dying, in_child
from tests.support.faults.conversion import (
    JOURNAL,
    assert_honest,
    assert_rerun_completes,
    calls_of_a_run,
    content,
    convert,
    wanted,
)


def test_killed_at_any_call_a_rerun_completes(tmp_path: Path) -> None:
    """kill -9 before each call that changes the disk: nothing lies, and the same call resumes."""
    calls = calls_of_a_run(WRITES, tmp_path / "count")
    for count in range(len(calls)):
        out = tmp_path / str(count)

        def run(count: int = count, out: Path = out) -> None:
            with at_each(WRITES, dying(count)):
                convert(out)

        assert in_child(run) == -signal.SIGKILL, calls[count]
        assert_honest(out)
        assert_rerun_completes(out)


def test_killed_at_any_time_a_rerun_completes(tmp_path: Path) -> None:
    """kill -9 at twenty random times."""
    wanted()
    dice = random.Random(20)
    killed = 0
    for number in range(20):
        out = tmp_path / str(number)
        child = os.fork()
        if child == 0:
            convert(out)
            os._exit(0)
        time.sleep(dice.uniform(0, 0.06))
        os.kill(child, signal.SIGKILL)
        killed += os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != 0
        assert_honest(out)
        assert_rerun_completes(out)
    assert killed


class Paused(hubmerge.Progress):
    """Stops for ever in the middle of a shard, and says so through a pipe."""

    def __init__(self, pipe: int) -> None:
        self.pipe = pipe

    def converted(self, size_bytes: int) -> None:
        os.write(self.pipe, b"x")
        time.sleep(60)


def test_two_runs_on_one_folder(tmp_path: Path) -> None:
    """The second run is refused while the first works; when that is dead, it takes over."""
    wanted()
    out = tmp_path / "out"
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        convert(out, progress=Paused(write))
        os._exit(0)
    try:
        assert os.read(read, 1) == b"x"
        # The first may still write what it has converted.
        (partial,) = out.glob("*.partial")
        before = content(out) | {partial.name: b""}
        for overwrite in (False, True):
            with pytest.raises(errors.UsageError, match="another run"):
                convert(out, overwrite=overwrite)
        assert content(out) | {partial.name: b""} == before
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert list(out.glob("*.partial"))
    assert_rerun_completes(out)


def test_a_changed_plan_keeps_nothing_of_the_last(tmp_path: Path) -> None:
    """After a killed run, another dtype starts afresh: no shard of the old plan is kept."""
    out = tmp_path / "out"

    def run() -> None:
        with at_each(("replace",), dying(4)):
            convert(out)

    wanted()
    assert in_child(run) == -signal.SIGKILL
    assert list(out.glob("*.safetensors"))
    convert(out, dtype="float32")
    convert(tmp_path / "fresh", dtype="float32")
    assert content(out) == content(tmp_path / "fresh")


@pytest.mark.parametrize("size", [0, 10, 1_000_000])
def test_a_shard_that_the_journal_names_wrongly_is_written_again(size: int, tmp_path: Path) -> None:
    """A finished shard of another size, a torn line, a link in its place: written afresh."""
    out = tmp_path / "out"

    def run() -> None:
        with at_each(("replace",), dying(5)):
            convert(out)

    wanted()
    assert in_child(run) == -signal.SIGKILL
    shards = sorted(out.glob("*.safetensors"))
    os.truncate(shards[0], size)
    with (out / JOURNAL).open("ab") as journal:
        journal.write(
            b'{"filename": "../../x", "size": 1, "sha256": ""}\n{"filename": 5}\n[]\n\xff'
        )
    convert(out)
    assert content(out) == wanted()
