"""Pushing while the Hub and the network fail: bounded retries, an honest end, one commit."""

from __future__ import annotations

import errno
import os
import re
import time
from collections.abc import Callable
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest

from hubmerge.errors import RetriesExhaustedError
from hubmerge.publish.hub import Hub as PublishHub
from hubmerge.publish.remote import AddFile
from tests.support.fake_hub import Hub, errors
from tests.support.fake_hub.call import Call
from tests.support.patience import ENDLESS_SECONDS
from tests.support.push import driver
from tests.support.push.checks import (
    downloads_whole,
    expected_weights,
    readers_saw_only,
    staging_branches,
    weights_of,
)
from tests.support.push.command import REPO, Done
from tests.support.push.models import Model

pytest_plugins = ["tests.support.push.plugin"]

Push = Callable[..., Done]

PREFLIGHT = ("repo_info", "auth_check", "refs", "tree", "resolve", "validate_yaml", "commits")
LFS = ("lfs_batch", "lfs_put", "lfs_part", "lfs_complete", "lfs_verify")
ENDPOINTS = (*PREFLIGHT, "create_branch", "preupload", *LFS, "paths_info", "commit", "create_tag",
             "delete_branch")  # fmt: skip

KINDS: dict[str, dict[str, Any]] = {
    "429 with Retry-After": {"status": 429, "retry_after": 7},
    "429": {"status": 429},
    "500": {"status": 500},
    "502": {"status": 502},
    "503": {"status": 503},
    "504": {"status": 504},
    "reset before the body": {"reset": "before"},
    "reset in the body": {"reset": "in"},
    "reset after the body": {"reset": "after"},
    "response lost": {"lost": "reset"},
    "response lost behind a 504": {"lost": 504},
}


def is_staging(call: Call) -> bool:
    """Is the request for the staging branch?"""
    return (call.revision or "").startswith("hubmerge/")


def is_target(call: Call) -> bool:
    """Is the request for the branch main?"""
    return call.revision == "main"


def endpoints_of(hub: Hub) -> list[str]:
    """All endpoints that a push onto a model with a person's card calls, tokens of xet aside."""
    return [name for name in ENDPOINTS if hub.transport == "lfs" or name not in LFS]


@pytest.fixture
def older(hub: Hub, other_model: Model) -> dict[str, str]:
    """The repo is there, with another model and a person's card; its weight files."""
    # Of four shards three go in one piece over LFS, and one in parts.
    hub.lfs.part_size = 14_000
    hub.create_repo(REPO)
    files = other_model.weights() | {"config.json": b"{}\n", "README.md": b"# Older\n"}
    hub.commit(REPO, files)
    return weights_of(hub.files(REPO))


@pytest.mark.parametrize("kind", KINDS)
def test_each_endpoint_fails_once(
    kind: str, hub: Hub, older: dict[str, str], push: Push, naps: list[float], model: Model,
    tmp_path: Path,
) -> None:  # fmt: skip
    """One fault at every endpoint in one push: it waits, tries again, and makes one commit."""
    faults = [hub.faults.add(name, **KINDS[kind]) for name in endpoints_of(hub)]
    faults.append(hub.faults.add("commit", when=is_target, **KINDS[kind]))
    done = push("--tag", "v1")
    assert done.code == 0, done.err
    assert [str(fault.endpoint) for fault in faults if fault.hits != 1] == []
    assert len(naps) >= len(faults) - 2
    if "retry_after" in KINDS[kind]:
        assert min(naps) >= 7
    readers_saw_only(hub, REPO, older, expected_weights(model))
    assert len(hub.states(REPO)) == 3
    assert staging_branches(hub, REPO) == []
    downloads_whole(hub, model, tmp_path / "down", repo_id=REPO)


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_an_endpoint_never_recovers(
    endpoint: str, hub: Hub, older: dict[str, str], push: Push, model: Model
) -> None:
    """Retries are bounded and never stacked; then exit 5, and the same command resumes."""
    if endpoint not in endpoints_of(hub):
        pytest.skip("an endpoint of the other transport")
    fault = hub.faults.add(endpoint, times=None, status=503)
    done = push("--tag", "v1")
    assert (done.code, done.out) == (5, "")
    assert [line[:6] for line in done.err.splitlines()].count("Error:") == 1
    assert "503" in done.err
    assert "Hint: Run the same command again" in done.err
    assert 5 <= fault.hits <= 7
    published = endpoint in ("create_tag", "delete_branch")
    known = [older, expected_weights(model)] if published else [older]
    assert weights_of(hub.files(REPO)) == known[-1]
    readers_saw_only(hub, REPO, *known)
    if endpoint in PREFLIGHT[:-1]:
        assert hub.log.count("create_branch") == hub.log.count("commit") == 0
    hub.faults.clear()
    assert push("--tag", "v1").code == 0
    assert weights_of(hub.files(REPO)) == expected_weights(model)
    assert hub.repo(REPO).refs["refs/tags/v1"] == hub.head(REPO)


@pytest.mark.parametrize("endpoint", ["repo_info", "create_repo", "commit"])
def test_creating_a_repo_meets_faults(endpoint: str, hub: Hub, push: Push, model: Model) -> None:
    """A lost answer to the creation of the repository, and to each commit, is no second one."""
    hub.faults.add(endpoint, lost="reset")
    assert push().code == 0
    readers_saw_only(hub, REPO, expected_weights(model))
    assert len(hub.states(REPO)) == 2


@pytest.mark.parametrize("transport", ["xet"])
def test_xet_asks_again(hub: Hub, push: Push, model: Model) -> None:
    """A passing fault of the xet token is retried by the client itself."""
    fault = hub.faults.add("xet_write_token", status=503)
    done = push()
    assert (done.code, fault.hits) == (0, 1), done.err
    assert weights_of(hub.files(REPO)) == expected_weights(model)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command waits for an answer for less than half a second."""
    monkeypatch.setattr("hubmerge.publish.hub._SILENCE_SECONDS", 0.4)


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("endpoint", [*ENDPOINTS, "target commit"])
def test_a_silent_hub_is_not_waited_for_for_ever(
    endpoint: str, hub: Hub, older: dict[str, str], push: Push, model: Model
) -> None:
    """A connection that is held open without an answer ends in a time-out and another attempt."""
    name, when = ("commit", is_target) if endpoint == "target commit" else (endpoint, None)
    # Left out: hf_xet asks for its token with a client of its own, which our time-out cannot reach.
    if name not in endpoints_of(hub):
        pytest.skip("an endpoint of the other transport")
    fault = hub.faults.add(name, hold=ENDLESS_SECONDS, when=when)
    done = push("--tag", "v1")
    assert (done.code, fault.hits) == (0, 1), done.err
    readers_saw_only(hub, REPO, older, expected_weights(model))
    assert weights_of(hub.files(REPO)) == expected_weights(model)
    assert len(hub.states(REPO)) == 3


@pytest.mark.usefixtures("impatient")
def test_a_hub_is_silent_when_a_repo_is_created(hub: Hub, push: Push, model: Model) -> None:
    """The one endpoint that only a new repository needs."""
    fault = hub.faults.add("create_repo", hold=ENDLESS_SECONDS)
    assert (push().code, fault.hits) == (0, 1)
    assert weights_of(hub.files(REPO)) == expected_weights(model)


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("transport", ["lfs"])
@pytest.mark.parametrize("endpoint", ["tree", "lfs_part", "commit"])
def test_a_hub_stays_silent(
    endpoint: str, hub: Hub, older: dict[str, str], push: Push, model: Model
) -> None:
    """Whoever retries (listing, upload, hubmerge itself) gives up: exit 5, then a rerun resumes."""
    fault = hub.faults.add(endpoint, hold=ENDLESS_SECONDS, times=None)
    done = push()
    assert (done.code, done.out) == (5, "")
    assert [line[:6] for line in done.err.splitlines()].count("Error:") == 1
    assert 5 <= fault.hits <= 7
    assert weights_of(hub.files(REPO)) == older
    hub.faults.clear()
    assert push().code == 0
    readers_saw_only(hub, REPO, older, expected_weights(model))


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({"Retry-After": "7"}, 7),
        ({"Retry-After": formatdate(time.time() + 1e6, usegmt=True)}, 300),
        ({"RateLimit": '"api";r=0;t=55'}, 55),
        ({"Retry-After": "soon"}, 1),
    ],
)
def test_how_long_it_waits(
    headers: dict[str, str], expected: float, hub: Hub, push: Push, naps: list[float]
) -> None:
    """As long as the Hub asks for, within five minutes; else it backs off by itself."""
    hub.faults.add("validate_yaml", status=429, headers=headers)
    assert push().code == 0
    assert len(naps) == 1
    assert expected / 2 <= naps[0] <= expected
    assert naps[0] == expected or headers == {"Retry-After": "soon"}


@pytest.mark.parametrize("refusal", [errors.busy, errors.stale_parent])
@pytest.mark.parametrize(("times", "code"), [(8, 0), (None, 5)])
def test_commits_meet_on_the_staging_branch(
    refusal: Callable[[], errors.ApiError], times: int | None, code: int, hub: Hub,
    older: dict[str, str], push: Push, model: Model,
) -> None:  # fmt: skip
    """Another rank was faster, many times: the commit is made later, and nothing is sent again."""
    fault = hub.faults.add(
        "commit", times=times, skip=1, when=is_staging, hook=lambda _: refusal().response()
    )
    done = push()
    assert (done.code, fault.hits) == (code, times or 12), done.err
    assert hub.log.count("lfs_put") <= 3
    readers_saw_only(hub, REPO, older, expected_weights(model))
    assert weights_of(hub.files(REPO)) == ({0: expected_weights(model), 5: older}[code])


def test_the_final_commit_meets_another(
    hub: Hub, older: dict[str, str], push: Push, model: Model
) -> None:
    """A commit to another branch is being made while the target is to be moved."""
    fault = hub.faults.add("commit", when=is_target, hook=lambda _: errors.busy().response())
    assert (push().code, fault.hits) == (0, 1)
    readers_saw_only(hub, REPO, older, expected_weights(model))
    assert len(hub.states(REPO)) == 3


@pytest.mark.parametrize("lost", ["reset", 503, 504])
@pytest.mark.parametrize("option", ["--tag=v1", "--create-pr"])
def test_the_answer_to_the_final_commit_is_lost(
    lost: str | int, option: str, hub: Hub, older: dict[str, str], push: Push, model: Model
) -> None:
    """The commit is recognised on the Hub and made exactly once, also as a pull request."""
    fault = hub.faults.add("commit", lost=lost, when=is_target)
    result = push(option, "--json").json
    assert fault.hits == 1
    revision = "refs/pr/1" if option == "--create-pr" else "main"
    assert (result["changed"], result["commit"]) == (True, hub.head(REPO, revision))
    assert weights_of(hub.files(REPO, revision)) == expected_weights(model)
    if option == "--create-pr":
        assert len(hub.repo(REPO).discussions) == 1
        assert result["url"] == f"{hub.url}/{REPO}/discussions/1"
        assert len(hub.states(REPO)) == 2
    else:
        assert len(hub.states(REPO)) == 3
        assert hub.repo(REPO).refs["refs/tags/v1"] == hub.head(REPO)


def test_the_answer_is_lost_and_somebody_commits_on_top(
    hub: Hub, older: dict[str, str], push: Push, model: Model
) -> None:
    """Our own commit is found below somebody else's, and is not made again."""
    hub.faults.add("commit", lost="reset", when=is_target)
    hub.faults.add("commits", move_head="main", when=is_target, skip=1)
    result = push("--json").json
    ours, theirs = hub.repo(REPO).resolve("main").parents[0], hub.head(REPO)
    assert result["commit"] == ours != theirs
    assert len(hub.states(REPO)) == 4
    readers_saw_only(hub, REPO, older, expected_weights(model))


def test_no_old_pull_request_passes_for_the_new_one(
    hub: Hub, older: dict[str, str], push: Push, model: Model, tmp_path: Path
) -> None:
    """A failed commit is made again though a pull request with the same shards is open."""
    assert push("--create-pr").code == 0
    card = tmp_path / "card.md"
    card.write_text("# Another card\n")
    hub.faults.add("commit", status=503, when=is_target)
    result = push("--create-pr", "--json", "--card", str(card)).json
    assert result["url"] == f"{hub.url}/{REPO}/discussions/2"
    assert hub.read(REPO, "README.md", "refs/pr/2").endswith(b"# Another card\n")


def test_the_target_has_moved(hub: Hub, older: dict[str, str], push: Push, model: Model) -> None:
    """Somebody else's commit is kept: exit 9, both shas named, the shards stay staged."""
    before = hub.head(REPO)
    hub.faults.add("commit", move_head="main", when=is_target)
    done = push("--tag", "v1")
    assert (done.code, done.out) == (9, "")
    assert before in done.err
    assert hub.head(REPO) in done.err
    assert weights_of(hub.files(REPO)) == older
    assert "refs/tags/v1" not in hub.repo(REPO).refs
    assert len(staging_branches(hub, REPO)) == 1
    result = push("--json").json
    assert (result["resumed_shards"], result["uploaded_bytes"]) == (4, 0)
    assert weights_of(hub.files(REPO)) == expected_weights(model)
    assert "somebody-else.txt" in hub.files(REPO)
    readers_saw_only(hub, REPO, older, expected_weights(model))


def test_wrong_bytes_are_found_before_the_target_moves(
    hub: Hub, older: dict[str, str], push: Push
) -> None:
    """The Hub's listing shows other content than was sent: exit 8, and the target is as it was."""
    hub.faults.add("commit", wrong_bytes="model-00002-*", when=is_staging, skip=2)
    done = push()
    assert done.code == 8
    assert "model-00002-of-00004.safetensors" in done.err
    assert "the target was not touched" in done.err
    readers_saw_only(hub, REPO, older)
    assert weights_of(hub.files(REPO)) == older


@pytest.mark.parametrize("at", ["preupload", "commit", "token"])
def test_the_token_is_revoked_on_the_way(
    at: str, hub: Hub, older: dict[str, str], push: Push
) -> None:
    """Exit 6 without a retry, and the target is as it was."""
    token = {"xet": "xet_write_token", "lfs": "lfs_batch"}[hub.transport]
    fault = hub.faults.add(token if at == "token" else at, revoke=True, skip=2)
    done = push()
    assert (done.code, fault.hits) == (6, 1)
    assert "Hint: Log in with `hf auth login`" in done.err
    readers_saw_only(hub, REPO, older)


@pytest.mark.parametrize("status", [401, 403])
def test_xet_or_lfs_refuses_the_token(
    status: int, hub: Hub, older: dict[str, str], push: Push
) -> None:
    """A refused upload is a matter of access, whoever raises it and in whatever class."""
    endpoint = {"xet": "xet_write_token", "lfs": "lfs_batch"}[hub.transport]
    fault = hub.faults.add(endpoint, times=None, status=status)
    assert push().code == 6
    assert fault.hits == 1
    readers_saw_only(hub, REPO, older)


@pytest.mark.parametrize("transport", ["lfs"])
def test_why_an_upload_failed_is_said(hub: Hub, older: dict[str, str], push: Push) -> None:
    """huggingface_hub's own words are only that it failed; the cause stands behind them."""
    hub.faults.add("lfs_put", times=None, reset="before")
    done = push()
    assert done.code == 5
    assert re.search(r"Error while uploading '[^']+' to the Hub\. \(\w+: .+\)\n", done.err)
    assert "://" not in done.err


@pytest.mark.parametrize("transport", ["xet"])
@pytest.mark.usefixtures("api")
def test_numbers_in_names_are_no_refusal(hub: Hub, tmp_path: Path) -> None:
    """hf_xet fails on shard 401 of a repository with 403 in its name: that is passing."""
    hub.create_repo("alice/run-403")
    hub.faults.add("xet_write_token", times=None, status=418)
    shard = tmp_path / "model-00401-of-00500.safetensors"
    shard.write_bytes(b"content")
    with pytest.raises(RetriesExhaustedError, match="418") as raised:
        PublishHub("alice/run-403", hub.token).upload(AddFile(shard.name, shard), "main")
    assert shard.name in str(raised.value)
    assert "/alice/run-403/" in str(raised.value)


@pytest.mark.parametrize("call", ["write", "fsync"])
def test_the_disk_fills_in_the_middle(
    call: str, hub: Hub, older: dict[str, str], push: Push, model: Model, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Exit 7 and one message; finished shards are on the Hub, and are neither made nor sent again.

    The third shard finds no room when its bytes come, or when it is synced.
    """
    staging = tmp_path / "staging"
    real = getattr(os, call)
    seen: list[set[str]] = []

    def fills(*args: Any) -> Any:
        names = {path.name for path in staging.rglob("model-*")}
        if any("-00003-" in name for name in names):
            seen.append(names)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(*args)

    with monkeypatch.context() as disk:
        disk.setattr(os, call, fills)
        done = push("--staging-dir", str(staging))
    assert seen
    assert not any("model-00003-of-00004.safetensors" in names for names in seen)
    assert (done.code, done.out) == (7, "")
    assert done.err.count("Error:") == done.err.count("the disk is full") == 1
    assert "rerun" in done.err
    assert "Traceback" not in done.err
    assert list(staging.iterdir()) == []
    readers_saw_only(hub, REPO, older)
    assert weights_of(hub.files(REPO)) == older
    result = push("--staging-dir", str(staging), "--json").json
    sizes = [len(data) for name, data in sorted(model.weights().items()) if "-of-" in name]
    assert (result["resumed_shards"], result["uploaded_bytes"]) == (2, sum(sizes[2:]))
    readers_saw_only(hub, REPO, older, expected_weights(model))
    assert weights_of(hub.files(REPO)) == expected_weights(model)


def test_gitignore_covers_the_shards(hub: Hub, older: dict[str, str], push: Push) -> None:
    """Shards that the Hub would silently leave out stop the push at the first of them."""
    hub.commit(REPO, {".gitignore": b"*.safetensors\n"})
    done = push()
    assert done.code == 1
    assert "model-00001-of-00004.safetensors: not on hubmerge/" in done.err
    assert ".gitignore" in done.err
    readers_saw_only(hub, REPO, older)


def test_gitignore_covers_small_files(
    hub: Hub, older: dict[str, str], push: Push, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A config or index that the Hub would leave out is found before anything is converted."""
    monkeypatch.setattr("hubmerge.publish.pipeline.write_shard", None)
    hub.commit(REPO, {".gitignore": b"*.jinja\n*.index.json\n"})
    done = push()
    assert done.code == 2
    assert "leaves chat_template.jinja, model.safetensors.index.json out" in done.err
    readers_saw_only(hub, REPO, older)


def test_offline_mode(hub: Hub, model: Model, tmp_path: Path) -> None:
    """With HF_HUB_OFFLINE=1 nothing is tried at all, and the message says why."""
    argv = ["push", "--repo-id", REPO, *model.argv()]
    child = driver.start(argv, hub.env(HF_HUB_OFFLINE="1"), tmp_path)
    assert child.wait() == 2
    assert "Error: HF_HUB_OFFLINE is set" in child.err
    assert len(hub.log) == 0
