"""SIGKILL at each named step of a push; the same command then finishes what is left, and no more.

Over LFS the rerun is on the same machine, with what the dead run left in its staging folder; over
xet it is on another one, which has nothing.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import HfApi

from tests.support.fake_hub import Hub, Transport
from tests.support.fake_hub.call import Call
from tests.support.fake_hub.routes import STORAGE, TABLE
from tests.support.push import driver
from tests.support.push.checks import (
    INDEX,
    downloads_whole,
    expected_weights,
    readers_saw_only,
    staging_branches,
    weights_of,
)
from tests.support.push.command import REPO, run_here
from tests.support.push.models import Model

pytest_plugins = ["tests.support.push.plugin"]

HANDLERS = {name: handler for name, _, _, handler in [*STORAGE, *TABLE]}


@dataclass(frozen=True)
class Step:
    """Where the process dies: at a request, before or after its effect, or at an event in it.

    Attributes:
        on: the endpoint, or the progress event.
        skip: how many of them pass.
        staging: only requests for the staging branch; None for any.
    """

    on: str
    when: str = "before"
    skip: int = 0
    staging: bool | None = None
    transport: Transport | None = None


STEPS = {
    "the repository is not created yet": Step("create_repo"),
    "the repository is created": Step("create_repo", "after"),
    "the staging branch is not created yet": Step("create_branch"),
    "the staging branch is created": Step("create_branch", "after"),
    "the small files are not staged yet": Step("commit", staging=True),
    "the small files are staged": Step("commit", "after", staging=True),
    "the first shard is being converted": Step("converted", "event", 1),
    "the third shard is being converted": Step("converted", "event", 14),
    "the second shard is announced": Step("preupload", skip=2, staging=True),
    "the second shard is being sent": Step("lfs_put", skip=1, transport="lfs"),
    "the second shard is sent": Step("lfs_put", "after", 1, transport="lfs"),
    "the second shard asks for xet": Step("xet_write_token", skip=1, transport="xet"),
    "the second shard is not committed yet": Step("commit", skip=2, staging=True),
    "the second shard is committed": Step("commit", "after", 2, staging=True),
    "the second shard is not checked yet": Step("tree", skip=2, staging=True),
    "the second shard is deleted here": Step("uploaded", "event", 2),
    "the last shard is committed": Step("commit", "after", 4, staging=True),
    "the target is not moved yet": Step("commit", staging=False),
    "the target is moved": Step("commit", "after", staging=False),
    "the tag is not there yet": Step("create_tag"),
    "the tag is there": Step("create_tag", "after"),
    "the staging branch is not deleted yet": Step("delete_branch"),
    "the staging branch is deleted": Step("delete_branch", "after"),
}


def kill_at_request(hub: Hub, step: Step, pid: list[int]) -> None:
    """Let the process whose id will be in `pid` die at this step."""

    def matches(call: Call) -> bool:
        is_staging = (call.revision or "").startswith("hubmerge/")
        return step.staging is None or is_staging == step.staging

    async def after(call: Call) -> Any:
        response = await HANDLERS[step.on](call)
        os.kill(pid[0], signal.SIGKILL)
        return response

    def before(_: Call) -> None:
        os.kill(pid[0], signal.SIGKILL)

    hook: Callable[[Call], Any] = after if step.when == "after" else before
    hub.faults.add(step.on, hook=hook, skip=step.skip, when=matches)


def run_until_killed(hub: Hub, argv: list[str], step: Step, folder: Path) -> None:
    """Run the command; it must die at the step."""
    pid: list[int] = []
    if step.when != "event":
        kill_at_request(hub, step, pid)
    kill_at = (step.on, step.skip) if step.when == "event" else None
    env = hub.env(TMPDIR=str(folder), HF_HOME=str(folder / "home"))
    hub.log.clear()
    child = driver.start(argv, env, folder / "run", kill_at)
    pid.append(child.pid)
    assert child.wait() == -signal.SIGKILL, child.err
    assert not hub.faults.pending()


@pytest.fixture
def older(hub: Hub, other_model: Model) -> dict[str, str]:
    """The repo is there with another model; its weight files."""
    hub.create_repo(REPO)
    files = other_model.weights() | {"config.json": b"{}\n", "README.md": b"# Older\n"}
    hub.commit(REPO, files)
    return weights_of(hub.files(REPO))


@pytest.mark.usefixtures("naps", "places")
@pytest.mark.parametrize("name", STEPS)
def test_killed_and_run_again(
    name: str, request: pytest.FixtureRequest, hub: Hub, api: HfApi, model: Model, tmp_path: Path
) -> None:
    """The target is old or new at every moment, and what was staged is never sent again."""
    step = STEPS[name]
    if step.transport not in (None, hub.transport):
        pytest.skip("a step of the other transport")
    known = [] if step.on == "create_repo" else [request.getfixturevalue("older")]
    machine = tmp_path / "machine"
    same = hub.transport == "lfs"
    argv = ["push", "--repo-id", REPO, "--tag", "v1", "--json", *model.argv()]
    first = [*argv, "--staging-dir", str(machine / "staging")]
    run_until_killed(hub, first, step, machine)

    staged = shards_on_hub(hub, model)
    sent = dict(hub.lfs.received)
    again = run_here(*(first if same else argv)).json

    readers_saw_only(hub, REPO, *known, expected_weights(model))
    assert weights_of(hub.files(REPO)) == expected_weights(model)
    assert staging_branches(hub, REPO) == []
    assert hub.repo(REPO).refs["refs/tags/v1"] == hub.head(REPO) == again["commit"]
    assert again["resumed_shards"] == len(staged)
    sizes = {shard["filename"]: shard["size"] for shard in again["shards"]}
    assert again["uploaded_bytes"] == sum(sizes[name] for name in sizes if name not in staged)
    for oid in staged.values():
        assert hub.lfs.received[oid] == sent.get(oid, 0)
    assert all(count == 1 for count in hub.lfs.completed.values())
    if same:
        assert list(machine.glob("staging/*")) == []
    downloads_whole(hub, model, tmp_path / "down", repo_id=REPO)


def shards_on_hub(hub: Hub, model: Model) -> dict[str, str]:
    """The new shards that a run finds on the target or the staging branch, and their ids."""
    expected = {n: oid for n, oid in expected_weights(model).items() if n != INDEX}
    found: dict[str, str] = {}
    if REPO in hub.repos:
        for ref in ["main", *(r.removeprefix("refs/heads/") for r in staging_branches(hub, REPO))]:
            files = weights_of(hub.files(REPO, ref))
            found |= {n: oid for n, oid in expected.items() if files.get(n) == oid}
    return found


@pytest.mark.usefixtures("naps", "places", "older")
@pytest.mark.parametrize("transport", ["xet"])
@pytest.mark.parametrize(
    "name",
    [
        "the third shard is being converted",
        "the second shard asks for xet",
        "the second shard is not committed yet",
    ],
)
def test_run_again_where_it_was_killed(name: str, hub: Hub, model: Model, tmp_path: Path) -> None:
    """What the killed run left in hf_xet's own folder does not stop the next run."""
    env = hub.env(TMPDIR=str(tmp_path), HF_HOME=str(tmp_path / "home"))
    argv = ["push", "--repo-id", REPO, *model.argv()]
    run_until_killed(hub, argv, STEPS[name], tmp_path)
    again = driver.start(argv, env, tmp_path / "again")
    assert again.wait() == 0, again.err
    assert weights_of(hub.files(REPO)) == expected_weights(model)
    assert staging_branches(hub, REPO) == []
