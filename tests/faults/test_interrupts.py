"""SIGINT and SIGTERM while the command plans, converts and verifies."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest

from tests.support.faults.conversion import (
    REPOSITORY,
    SHARD_SIZE,
    assert_honest,
    assets,
    command,
    content,
    convert,
    push,
    run,
    source,
    wanted,
)
from tests.support.patience import end_soon, wait_until


@pytest.mark.parametrize(
    ("number", "code", "word"),
    [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")],
)
def test_a_signal_ends_it_soon_and_the_same_command_resumes(
    number: int, code: int, word: str, tmp_path: Path
) -> None:
    """Ctrl-C and SIGTERM: within two seconds, one line, exit 130 or 143, then it resumes."""
    out = tmp_path / "out"
    arguments = [*push(source(), out, "--quiet"), "--model-assets-dir", assets()]
    process = subprocess.Popen(command(*arguments, slow=True), stderr=subprocess.PIPE,
                               stdout=subprocess.PIPE, text=True, cwd=REPOSITORY)  # fmt: skip
    wait_until(lambda: list(out.glob("*-00002-*.partial")))
    stdout, stderr = end_soon(process, number)
    assert process.returncode == code
    assert stdout == ""
    # click ends the line of a terminal's ^C before it.
    said = [line for line in stderr.splitlines() if line and not line.startswith("Warning: ")]
    assert said == [f"Error: {word}; the same command resumes where this run ended"]
    assert_honest(out)
    assert (out / "model-00001-of-00003.safetensors").exists()
    again = run(*push(source(), out), "--model-assets-dir", assets())
    assert "checking shards left by an interrupted run (1)" in again.stderr
    assert "model-00001-of-00003.safetensors was finished by an interrupted run" in again.stderr
    assert content(out) == wanted()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_verification_soon(number: int, tmp_path: Path) -> None:
    """In the middle of hashing."""
    convert(tmp_path / "out")
    words = ["verify", "--load-dir", source(), "--save-dir", tmp_path / "out", "--shard-size",
             str(SHARD_SIZE), "--model-assets-dir", assets()]  # fmt: skip
    process = subprocess.Popen(command(*words, slow=True), stdout=subprocess.PIPE, text=True,
                               stderr=subprocess.PIPE, cwd=REPOSITORY,
                               env=os.environ | {"SLOW": "preadv"})  # fmt: skip
    assert process.stderr is not None
    assert " checking " in process.stderr.readline()
    stdout, stderr = end_soon(process, number)
    assert process.returncode == 128 + number
    word = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}[signal.Signals(number)]
    assert stdout == ""
    # click ends the line of a terminal's ^C before it.
    assert (
        stderr.lstrip()
        == f"Error: {word}; nothing was changed, and the same command can be run again\n"
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_planning_soon(number: int, tmp_path: Path) -> None:
    """While transformers is imported, to check the names."""
    (tmp_path / "assets").mkdir()
    (tmp_path / "assets" / "config.json").write_text('{"model_type": "llama"}')
    words = [*push(source(), tmp_path / "out"), "--model-assets-dir", tmp_path / "assets"]
    process = subprocess.Popen(command(*words), stdout=subprocess.PIPE, text=True,
                               stderr=subprocess.PIPE, cwd=REPOSITORY)  # fmt: skip
    maps = Path(f"/proc/{process.pid}/maps")
    if not maps.exists():
        process.kill()
        pytest.skip("only /proc tells how far a process is")
    wait_until(lambda: "libtorch_cpu" in maps.read_text())
    stdout, stderr = end_soon(process, number)
    assert process.returncode == 128 + number
    assert stdout == ""
    assert stderr.endswith("; the same command resumes where this run ended\n")
    assert stderr.lstrip().startswith("Error: ")
    assert not (tmp_path / "out").exists()
