"""Pushing where nothing goes wrong: what is on the Hub afterwards, and what was ever to be seen."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path

import pytest
from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.utils import are_progress_bars_disabled

import hubmerge
from hubmerge.publish.record import Record
from tests.support.fake_hub import Hub
from tests.support.push.checks import (
    INDEX,
    downloads_whole,
    expected_weights,
    readers_saw_only,
    staging_branches,
    weights_of,
)
from tests.support.push.command import REPO, Done, run_here
from tests.support.push.models import Model

pytest_plugins = ["tests.support.push.plugin"]

Push = Callable[..., Done]


def test_into_a_missing_repo(hub: Hub, push: Push, model: Model, tmp_path: Path) -> None:
    """The repository is created, and gets the whole model in one commit on its branch."""
    done = push()
    assert (done.code, done.out.split("\n")[1]) == (0, f"url: {hub.url}/{REPO}/tree/main")
    assert f"commit: {hub.head(REPO)} on main" in done.out
    assert done.out.startswith("✓ Pushed 4 files")
    assert [state.sha for state in hub.states(REPO)][1:] == [hub.head(REPO)]
    readers_saw_only(hub, REPO, expected_weights(model))
    assert staging_branches(hub, REPO) == []
    downloads_whole(hub, model, tmp_path / "down", repo_id=REPO)
    assert not hub.repo(REPO).private


def test_json_says_what_was_done(hub: Hub, push: Push, model: Model) -> None:
    """`--json` prints one object that agrees with what the Hub holds."""
    result = push("--json").json
    shards = {name: data for name, data in model.weights().items() if name != INDEX}
    assert {shard["filename"]: shard["size"] for shard in result["shards"]} == {
        name: len(data) for name, data in shards.items()
    }
    total = sum(map(len, shards.values()))
    assert result["commit"] == hub.head(REPO)
    assert (result["revision"], result["repo_id"]) == ("main", REPO)
    assert (result["uploaded_bytes"], result["resumed_shards"]) == (total, 0)
    assert 0 < result["peak_staging_bytes"] <= 2 * max(map(len, shards.values()))
    if hub.transport == "lfs":
        assert hub.uploaded_bytes == total


def test_a_model_without_a_config_is_not_pushed(hub: Hub, push: Push, model: Model) -> None:
    """Nobody could load it: refused before anything is created, unless it is meant."""
    argv = ("push", "--load-dir", str(model.load_dir), "--repo-id", REPO)
    refused = run_here(*argv)
    assert refused.code == 2
    assert "--no-config" in refused.err
    assert not hub.repos
    assert run_here(*argv, "--no-config").code == 0


def test_onto_an_older_model(
    hub: Hub, old_model: Model, push: Push, model: Model, tmp_path: Path
) -> None:
    """Shards of another count and their index go in the very commit that brings the new ones."""
    assert push().code == 0
    assert len(hub.states(REPO)) == 3
    readers_saw_only(hub, REPO, expected_weights(old_model), expected_weights(model))
    assert weights_of(hub.files(REPO)) == expected_weights(model)
    downloads_whole(hub, model, tmp_path / "down", repo_id=REPO)


def test_onto_an_older_model_of_many_shards(
    hub: Hub, old_model: Model, push: Push, model: Model, tmp_path: Path
) -> None:
    """A model in one file leaves no index of the older one behind."""
    assert push(shard_size=10**9).code == 0
    assert set(weights_of(hub.files(REPO))) == {"model.safetensors"}
    readers_saw_only(hub, REPO, expected_weights(old_model), expected_weights(model, 10**9))
    downloads_whole(hub, model, tmp_path / "down", repo_id=REPO, shard_size=10**9)


def test_the_callers_own_use_of_the_library_is_left_alone(hub: Hub, push: Push) -> None:
    """A trainer that pushes has its progress bars and log level afterwards, as before."""
    logger = logging.getLogger("huggingface_hub")
    before = logger.level
    assert not are_progress_bars_disabled()
    assert push().code == 0
    assert not are_progress_bars_disabled()
    assert logger.level == before


def test_a_rerun_commits_nothing(hub: Hub, push: Push) -> None:
    """An unchanged checkpoint: no commit, no upload, no branch, and the command says so."""
    assert push().code == 0
    moves, sent = len(hub.repo(REPO).moves), hub.uploaded_bytes
    done = push()
    assert done.code == 0
    assert done.out.startswith(
        f"✓ Nothing to do: {REPO} already holds this model\nurl: {hub.url}/{REPO}/tree/main\n"
    )
    assert (len(hub.repo(REPO).moves), hub.uploaded_bytes) == (moves, sent)
    again = push("--json").json
    assert (again["changed"], again["resumed_shards"]) == (False, 4)


def test_only_an_asset_has_changed(hub: Hub, push: Push, model: Model, tmp_path: Path) -> None:
    """A changed asset is committed, and no shard is converted or sent for it."""
    assert push().code == 0
    sent = hub.uploaded_bytes
    assets = tmp_path / "assets"
    assets.mkdir()
    for path in model.assets.iterdir():
        (assets / path.name).write_bytes(path.read_bytes())
    (assets / "chat_template.jinja").write_text("another\n")
    changed = Model(model.load_dir, assets, model.tensors)
    result = push("--json", of=changed).json
    assert (result["uploaded_bytes"], result["resumed_shards"], result["changed"]) == (0, 4, True)
    assert hub.uploaded_bytes == sent
    assert hub.read(REPO, "chat_template.jinja") == b"another\n"
    readers_saw_only(hub, REPO, expected_weights(model))
    assert staging_branches(hub, REPO) == []


def test_a_pull_request(
    hub: Hub, old_model: Model, push: Push, model: Model, tmp_path: Path
) -> None:
    """With `--create-pr` the one commit is a pull request, and the branch stays as it was."""
    before = hub.head(REPO)
    result = push("--create-pr", "--json").json
    assert hub.head(REPO) == before
    assert result["url"] == f"{hub.url}/{REPO}/discussions/1"
    assert (result["revision"], result["commit"]) == ("refs/pr/1", hub.head(REPO, "refs/pr/1"))
    readers_saw_only(hub, REPO, expected_weights(old_model))
    downloads_whole(hub, model, tmp_path / "down", repo_id=REPO, revision="refs/pr/1")
    assert staging_branches(hub, REPO) == []


@pytest.mark.usefixtures("old_model")
def test_a_pull_request_is_opened_once(hub: Hub, push: Push) -> None:
    """A rerun finds the open pull request with the same content and opens no other."""
    push("--create-pr")
    result = push("--create-pr", "--json").json
    assert (result["changed"], result["url"]) == (False, f"{hub.url}/{REPO}/discussions/1")
    assert len(hub.repo(REPO).discussions) == 1


def test_a_tag(hub: Hub, push: Push, other_model: Model) -> None:
    """`--tag` names the commit; a rerun keeps it; another model may not take it."""
    assert push("--tag", "v1").code == 0
    tagged = hub.head(REPO)
    assert hub.repo(REPO).refs["refs/tags/v1"] == tagged
    assert push("--tag", "v1").code == 0
    hub.log.clear()
    refused = push("--tag", "v1", of=other_model)
    assert (refused.code, refused.out) == (2, "")
    assert f"the tag 'v1' already names the commit {tagged}" in refused.err
    assert hub.repo(REPO).refs["refs/tags/v1"] == hub.head(REPO) == tagged
    assert hub.log.count("commit") == hub.log.count("create_branch") == 0


def test_a_missing_branch(
    hub: Hub, old_model: Model, push: Push, model: Model, tmp_path: Path
) -> None:
    """`--revision` names a branch that is created, with the old model, then moved once."""
    assert push("--revision", "next").code == 0
    readers_saw_only(hub, REPO, expected_weights(old_model))
    readers_saw_only(hub, REPO, expected_weights(old_model), expected_weights(model), branch="next")
    downloads_whole(hub, model, tmp_path / "down", repo_id=REPO, revision="next")


def test_a_private_repo(hub: Hub, push: Push, model: Model, tmp_path: Path) -> None:
    """`--private` creates a private repository."""
    assert push("--private").code == 0
    assert hub.repo(REPO).private
    downloads_whole(hub, model, tmp_path / "down", repo_id=REPO)
    assert push("--private").code == 0


@pytest.mark.usefixtures("old_model")
def test_private_is_not_promised_for_a_public_repo(hub: Hub, push: Push) -> None:
    """`--private` on a public repository is refused before anything is published."""
    before = dict(hub.repo(REPO).refs)
    refused = push("--private")
    assert refused.code == 2
    assert f"{REPO} exists and is public" in refused.err
    assert hub.repo(REPO).refs == before


def test_message_and_description(hub: Hub, push: Push) -> None:
    """The commit has the user's words."""
    push("--commit-message", "Step 7", "--commit-description", "Longer text.")
    commit = hub.repo(REPO).resolve("main")
    assert commit.title == "Step 7"
    assert commit.description.startswith("Longer text.\n\n")


def test_the_folder_is_what_a_push_publishes(
    hub: Hub, push: Push, model: Model, tmp_path: Path
) -> None:
    """The same command with `--no-push` writes exactly the files that the push published."""
    out = tmp_path / "out"
    local = run_here("push", "--repo-id", REPO, "--no-push", "--save-dir", str(out), *model.argv())
    assert local.code == 0, local.err
    assert hub.log.endpoints() == []
    assert push().code == 0
    files = set(hub.files(REPO)) - {".gitattributes"}
    names = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    assert names - {".hubmerge.json"} == files
    down = Path(snapshot_download(REPO, local_dir=tmp_path / "down"))
    for name in files:
        assert (down / name).read_bytes() == (out / name).read_bytes(), name


def test_push_from_python(
    hub: Hub, api: HfApi, model: Model, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """`hubmerge.push` is the same, in a training script, and prints nothing."""
    result = hubmerge.push(
        model.load_dir, REPO, model_assets_dir=model.assets, shard_size=15_000, token=hub.token
    )
    assert capfd.readouterr() == ("", "")
    assert result.commit == hub.head(REPO) == api.repo_info(REPO).sha
    assert result.url == f"{hub.url}/{REPO}/tree/main"
    readers_saw_only(hub, REPO, expected_weights(model))
    downloads_whole(hub, model, tmp_path / "down", repo_id=REPO)


def test_a_repo_id_without_owner_is_refused(hub: Hub, push: Push) -> None:
    """Only ORG/NAME is one repository for every call."""
    assert push(repo_id="model").code == 2
    assert len(hub.log) == 0


@pytest.mark.usefixtures("old_model")
def test_staging_branches_of_other_runs(hub: Hub, push: Push) -> None:
    """A stale staging branch is named, kept, and removed by `--clean` only."""
    hub.repo(REPO).create_branch("hubmerge/0123456789abcdef", "main")
    hub.repo(REPO).create_branch("hubmergeling", "main")
    done = push()
    assert (
        "Warning: another run left the staging branch hubmerge/0123456789abcdef; --clean"
        in done.err
    )
    assert staging_branches(hub, REPO) == ["refs/heads/hubmerge/0123456789abcdef"]
    done = push("--clean")
    assert "removed the staging branch hubmerge/0123456789abcdef" in done.err
    assert staging_branches(hub, REPO) == []
    assert "refs/heads/hubmergeling" in hub.repo(REPO).refs


def test_the_record_in_the_commit(hub: Hub, push: Push, model: Model) -> None:
    """The commit records each shard's size and sha256, for the next run."""
    push()
    text = hub.repo(REPO).resolve("main").description
    record = json.loads(text[text.index("{") : text.rindex("}") + 1])
    assert Record.parse(text) is not None
    expected = expected_weights(model)
    assert {name: sha for name, _, sha in record["shards"]} == {
        name: oid for name, oid in expected.items() if name != INDEX
    }


HOSTILE = [
    '{"fingerprint":"f","options":{},"shards":[["a",Infinity,"b"]]}',
    '{"fingerprint":"f","options":{},"shards":[["a",1e400,"b"]]}',
    '{"fingerprint":"f","options":{},"shards":[["a",true,"b"]]}',
    '{"fingerprint":"f","options":{},"shards":[["a","1","b"]]}',
    '{"fingerprint":"f","options":{},"shards":[[["a"],1,"b"]]}',
    '{"fingerprint":"f","options":{},"shards":[["a",1]]}',
    '{"fingerprint":"f","options":{},"shards":["abc"]}',
    '{"fingerprint":"f","options":{},"shards":{"abc":1}}',
    '{"fingerprint":"f","options":{},"shards":7}',
    '{"fingerprint":"f","options":[["a",1]],"shards":[]}',
    '{"fingerprint":["f"],"options":{},"shards":[]}',
    '{"fingerprint":"f","shards":[]}',
    '{"fingerprint":"f","options":{},"shards":' + "[" * 50_000 + "]" * 50_000 + "}",
    '{"fingerprint":"f","options":{},"shards":[["a",' + "9" * 50_000 + ',"b"]]}',
]


@pytest.mark.parametrize("record", HOSTILE, ids=lambda record: record[:60])
def test_a_record_is_taken_as_it_is_or_not_at_all(record: str) -> None:
    """Anybody's text may stand where ours would: what is not just like ours is nothing to us."""
    assert Record.parse(f"Title\n<!-- hubmerge {record} -->") is None


def test_no_text_of_a_commit_stops_a_push(hub: Hub, push: Push, model: Model) -> None:
    """A record that cannot be read, newer than the true one on the target."""
    assert push().code == 0
    hub.commit(REPO, {"config.json": b"{}"}, title=f"<!-- hubmerge {HOSTILE[0]} -->")
    assert push("--json").json["resumed_shards"] == 4
    assert weights_of(hub.files(REPO)) == expected_weights(model)
