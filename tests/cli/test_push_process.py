"""The command as a process: signals, what it prints, and several processes under torchrun."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch.distributed as dist
from huggingface_hub import HfApi

from tests.support.fake_hub import Hub
from tests.support.fake_hub.call import Call
from tests.support.patience import ENDLESS_SECONDS, NET_SECONDS
from tests.support.push import driver
from tests.support.push.checks import (
    downloads_whole,
    expected_weights,
    readers_saw_only,
    weights_of,
)
from tests.support.push.command import REPO, Done
from tests.support.push.models import Model

pytest_plugins = ["tests.support.push.plugin"]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupted_while_uploading(
    number: signal.Signals, code: int, hub: Hub, model: Model, tmp_path: Path
) -> None:
    """It ends without the Hub's answer, says that the same command resumes, and it does."""
    hub.create_repo(REPO)
    endpoint = {"xet": "xet_write_token", "lfs": "lfs_put"}[hub.transport]
    pid: list[int] = []
    ended = threading.Event()

    def interrupt(_: Call) -> None:
        os.kill(pid[0], number)
        ended.wait(ENDLESS_SECONDS)

    hub.faults.add(endpoint, hook=interrupt, skip=1)
    argv = ["push", "--repo-id", REPO, *model.argv()]
    env = hub.env(TMPDIR=str(tmp_path))
    child = driver.start(argv, env, tmp_path / "first")
    pid.append(child.pid)
    try:
        assert child.wait() == code
    finally:
        ended.set()
    word = {130: "interrupted", 143: "terminated"}[code]
    assert (
        child.err.splitlines()[-1]
        == f"Error: {word}; the same command resumes where this run ended"
    )
    assert child.err.count("Error") == 1
    assert child.out == ""
    assert not list(tmp_path.rglob("model-*"))
    assert weights_of(hub.files(REPO)) == {}
    again = driver.start([*argv, "--json"], env, tmp_path / "second")
    assert again.wait() == 0, again.err
    assert json.loads(again.out)["resumed_shards"] == 1
    readers_saw_only(hub, REPO, expected_weights(model))


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("transport", ["lfs"])
def test_a_signal_whose_exception_is_lost_ends_it_too(
    number: signal.Signals, code: int, hub: Hub, model: Model, tmp_path: Path
) -> None:
    """Python drops what a handler raises while a `__del__` runs, whosever that is."""
    hub.create_repo(REPO)
    hub.faults.add("lfs_put", times=None, hook=lambda _: time.sleep(3))
    argv = ["push", "--repo-id", REPO, *model.argv()]
    env = hub.env(TMPDIR=str(tmp_path))
    child = driver.start(argv, env, tmp_path / "first", ("converted", 1), number)
    assert child.wait() == code
    assert "Exception ignored" not in child.err
    assert not list(tmp_path.rglob("model-*"))
    word = {130: "interrupted", 143: "terminated"}[code]
    assert (
        child.err.splitlines()[-1]
        == f"Error: {word}; the same command resumes where this run ended"
    )
    assert child.err.count("Error: ") == 1
    assert child.out == ""
    hub.faults.clear()
    again = driver.start(argv, env, tmp_path / "second")
    assert again.wait() == 0, again.err
    readers_saw_only(hub, REPO, expected_weights(model))


@pytest.mark.parametrize("debug", ["", "1"])
@pytest.mark.parametrize("fault", ["none", "refused", "broken"])
def test_the_token_is_never_shown(
    debug: str, fault: str, hub: Hub, model: Model, tmp_path: Path
) -> None:
    """Not on stdout or stderr, not in a traceback, a commit or the card, whatever happens."""
    if fault == "refused":
        hub.faults.add("commit", times=None, status=403, skip=2)
    elif fault == "broken":
        hub.faults.add("commit", times=None, reset="after", skip=2)
    argv = ["push", "--json", "--repo-id", REPO, "--token", hub.token, *model.argv()]
    env = hub.env(token=None, TMPDIR=str(tmp_path), **({"HF_DEBUG": debug} if debug else {}))
    child = driver.start(argv, env, tmp_path / "run")
    assert (child.wait() == 0) == (fault == "none")
    assert ("Traceback" in child.err) == bool(debug and fault != "none")
    assert hub.token not in child.out + child.err
    for repo in hub.repos.values():
        for commit in repo.commits.values():
            assert hub.token not in commit.title + commit.description
            for entry in commit.files.values():
                assert hub.token.encode() not in (entry.content or b"")


def test_progress_in_a_pipe(hub: Hub, model: Model, tmp_path: Path) -> None:
    """Lines with times on stderr, and warnings before them; --quiet leaves warnings and the url."""
    argv = ["push", str(model.load_dir), REPO, *model.argv()[2:]]
    child = driver.start(argv, hub.env(TMPDIR=str(tmp_path)), tmp_path / "run")
    assert child.wait() == 0
    warnings = [line for line in child.err.splitlines() if line.startswith("Warning: ")]
    assert warnings
    assert child.err.splitlines()[: len(warnings)] == warnings
    timed = re.findall(r"^\d\d:\d\d:\d\d (.*)$", child.err, re.MULTILINE)
    assert timed == [
        "converting 47.6 KB in 4 files",
        *(f"uploaded model-{i:05d}-of-00004.safetensors" for i in range(1, 5)),
    ]
    assert f"created {hub.url}/{REPO}" in child.err.splitlines()
    assert f"\nstaging shards in {tmp_path}" in child.err
    hub.repos.clear()
    child = driver.start([*argv, "--quiet"], hub.env(TMPDIR=str(tmp_path)), tmp_path / "quiet")
    assert child.wait() == 0
    assert child.err.splitlines() == warnings
    assert child.out == f"{hub.url}/{REPO}/tree/main\n"


# -- several processes -------------------------------------------------------------------------


def torchrun(hub: Hub, folder: Path, *argv: str) -> subprocess.CompletedProcess[str]:
    """``torchrun --nproc-per-node 3 -m hubmerge ARGV``."""
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "3",
        "--log-dir", str(folder / "logs"), "--redirects", "0", "-m", "hubmerge", *argv,
    ]  # fmt: skip
    env = hub.env(TMPDIR=str(folder), OMP_NUM_THREADS="1")
    return subprocess.run(
        command, env=env, capture_output=True, text=True, check=False, timeout=2 * NET_SECONDS
    )


lfs_only = pytest.mark.parametrize("transport", ["lfs"])


@lfs_only
def test_three_ranks_push(
    hub: Hub, api: HfApi, model: Model, tmp_path: Path, push: Callable[..., Done]
) -> None:
    """Ranks share the shards, one makes the one commit, and one alone prints.

    Their commits to the staging branch meet, and the Hub takes one at a time.
    """
    assert api.endpoint == hub.url
    hub.commit_seconds = 0.5
    staging = tmp_path / "staging"
    run = torchrun(
        hub, tmp_path, "push", "--repo-id", REPO, "--json", "--staging-dir", str(staging),
        *model.argv(),
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert len(run.stdout.splitlines()) == 1
    result = json.loads(run.stdout)
    assert hub.log.count("commit", status=409) > 0
    assert result["commit"] == hub.head(REPO)
    assert (
        result["uploaded_bytes"] == hub.uploaded_bytes == sum(s["size"] for s in result["shards"])
    )
    assert list(staging.iterdir()) == []
    readers_saw_only(hub, REPO, expected_weights(model))
    assert len(hub.states(REPO)) == 2
    downloads_whole(hub, model, tmp_path / "down", repo_id=REPO)
    assert push().out.startswith("✓ Nothing to do")


def ranks(hub: Hub, folder: Path, *argv: str) -> list[driver.Child]:
    """Three processes with what torchrun gives them: their numbers, and the store of its agent."""
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    given = {
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port), "WORLD_SIZE": "3",
        "LOCAL_WORLD_SIZE": "3", "TORCHELASTIC_USE_AGENT_STORE": "True", "TMPDIR": str(folder),
    }  # fmt: skip
    children = [
        driver.start(argv, hub.env(RANK=str(rank), **given), folder / f"rank-{rank}")
        for rank in range(3)
    ]
    for child in children:
        child.wait()
    return children


@lfs_only
def test_three_ranks_write_a_folder(
    hub: Hub, push: Callable[..., Done], model: Model, tmp_path: Path
) -> None:
    """With `--no-push` they write, together, what one alone pushes; the first one alone prints."""
    out = tmp_path / "out"
    argv = ["push", "--no-push", "--repo-id", REPO, "--save-dir", str(out), *model.argv()]
    children = ranks(hub, tmp_path, *argv)
    assert [child.process.exitcode for child in children] == [0, 0, 0], children[0].err
    assert [child.out.count("✓ Converted") for child in children] == [1, 0, 0]
    assert [child.err for child in children[1:]] == ["", ""]
    assert len(hub.log) == 0
    assert push().code == 0
    for name in set(hub.files(REPO)) - {".gitattributes"}:
        assert (out / name).read_bytes() == hub.read(REPO, name), name
    names = {path.name for path in out.iterdir()} - {".hubmerge.json"}
    assert names == set(hub.files(REPO)) - {".gitattributes"}


@lfs_only
def test_the_cap_is_for_all_ranks_of_a_machine(hub: Hub, model: Model, tmp_path: Path) -> None:
    """`--max-disk` with room for less than a shard each is refused, once, by all."""
    argv = ["push", "--repo-id", REPO, "--max-disk", "30000", *model.argv()]
    children = ranks(hub, tmp_path, *argv)
    assert [child.process.exitcode for child in children] == [2, 2, 2]
    assert "for each of 3 processes" in children[0].err
    assert [child.err for child in children[1:]] == ["", ""]
    assert len(hub.log) == 0


@lfs_only
@pytest.mark.parametrize("command", ["push", "--no-push"])
def test_a_rank_finds_the_checkpoint_damaged(
    command: str, hub: Hub, model: Model, tmp_path: Path
) -> None:
    """The error of the rank that met it is printed once, and is every rank's exit code."""
    hub.create_repo(REPO)
    damaged = tmp_path / "damaged"
    shutil.copytree(model.load_dir, damaged)
    for path in damaged.glob("*.distcp"):
        path.write_bytes(bytes(path.stat().st_size))
    argv = ["push", "--repo-id", REPO, "--load-dir", str(damaged), *model.argv()[2:]]
    if command == "--no-push":
        argv += ["--no-push", "--save-dir", str(tmp_path / "out")]
    children = ranks(hub, tmp_path, *argv)
    assert [child.process.exitcode for child in children] == [3, 3, 3], children[0].err
    assert [child.err.count("Error: ") for child in children] == [1, 0, 0]
    assert weights_of(hub.files(REPO)) == {}


@lfs_only
def test_a_rank_fails_while_the_others_upload(hub: Hub, model: Model, tmp_path: Path) -> None:
    """Those whose staging folder is full, and whose uploads take long, notice it at once."""
    hub.create_repo(REPO)
    hub.faults.add("lfs_batch", status=403)  # whichever rank asks first
    hub.faults.add("lfs_put", times=None, hold=ENDLESS_SECONDS)
    argv = ["push", "--repo-id", REPO, *model.argv("--max-disk", "30KB", shard_size=8_000)]
    children = ranks(hub, tmp_path, *argv)
    assert [child.process.exitcode for child in children] == [6, 6, 6], children[0].err
    assert [child.err.count("Error: ") for child in children] == [1, 0, 0]
    assert "HTTP 403" in children[0].err
    assert not list(tmp_path.rglob("model-*"))


@lfs_only
def test_one_of_three_ranks_fails(hub: Hub, model: Model, tmp_path: Path) -> None:
    """Its error is printed once, all end with its exit code, and the target is as it was."""
    hub.create_repo(REPO)
    fault = hub.faults.add("lfs_batch", status=403)  # whichever rank asks first
    run = torchrun(hub, tmp_path, "push", "--repo-id", REPO, *model.argv())
    assert run.returncode != 0
    assert fault.hits == 1
    ours = [line for line in run.stderr.splitlines() if line.startswith(("Error:", "Hint:"))]
    assert len(ours) == 2
    assert "HTTP 403" in ours[0]
    assert "exitcode  : 6" in run.stderr
    assert "exitcode  : 1 " not in run.stderr
    assert run.stdout == ""
    assert weights_of(hub.files(REPO)) == {}
    readers_saw_only(hub, REPO)
