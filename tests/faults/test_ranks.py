"""Processes that are missing, that die, or that another launcher started."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest
import torch

from hubmerge import errors
from hubmerge.system import ranks
from tests.support.faults.conversion import (
    REPOSITORY,
    push,
    run,
    source,
)
from tests.support.patience import NET_SECONDS


def test_a_process_that_torchrun_did_not_start_does_not_wait_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Started on one rank of a training job, it has that job's variables, and nobody to meet."""
    monkeypatch.setattr("hubmerge.system.ranks._START_WITHIN", timedelta(seconds=1))
    store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    variables = {
        "WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(store.port), "TORCHELASTIC_USE_AGENT_STORE": "True",
    }  # fmt: skip
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(errors.UsageError, match="not all have started") as refusal:
        ranks.current_ranks()
    assert "unset WORLD_SIZE" in refusal.value.hint


@pytest.mark.parametrize("port", ["abc", "70000", None])
def test_another_launchers_variables_are_refused(port: str | None, tmp_path: Path) -> None:
    """WORLD_SIZE without a store to meet at: said in words, and nothing is written."""
    env = {"WORLD_SIZE": "2", "RANK": "1", "MASTER_ADDR": "127.0.0.1"}
    done = run(*push(source(), tmp_path / "out"), **env, **({"MASTER_PORT": port} if port else {}))
    assert done.returncode == 2
    assert "cannot reach each other" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("arguments", [["--help"], ["push", "--help"], ["inspect", "--load-dir"]])
def test_only_a_push_has_ranks(arguments: list[str]) -> None:
    """What one process does alone waits for no other, whatever a launcher has set."""
    given = [*arguments, source()] if arguments[-1] == "--load-dir" else arguments
    done = run(*given, WORLD_SIZE="2", RANK="1", MASTER_ADDR="127.0.0.1", MASTER_PORT="1")
    assert done.returncode == 0, done.stderr
    assert done.stdout


def test_a_rank_that_dies_is_no_defect_of_ours(tmp_path: Path) -> None:
    """The job's store goes with it: the others say so, with the code for a rerun that resumes."""
    script = tmp_path / "job.py"
    script.write_text(
        "import os, sys, time\n"
        "from hubmerge.system.ranks import current_ranks\n"
        "ranks = current_ranks()\n"
        "if ranks.rank == 0:\n"
        "    time.sleep(1)\n"
        "    os._exit(9)\n"
        "from hubmerge.errors import RetriesExhaustedError\n"
        "try:\n"
        "    ranks.all_gather(1)\n"
        "except RetriesExhaustedError as error:\n"
        "    sys.exit('another process of this job has ended' not in str(error))\n"
    )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    env = os.environ | {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    job = [
        subprocess.Popen([sys.executable, script], env=env | {"RANK": str(rank)}, cwd=REPOSITORY)
        for rank in range(2)
    ]
    assert [process.wait(timeout=NET_SECONDS) for process in job] == [9, 0]
