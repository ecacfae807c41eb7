"""What a push would do: the truth, the push's own errors, and nothing changed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from huggingface_hub import HfApi

from hubmerge import api as library
from hubmerge.errors import AccessError, HubmergeError, InsufficientSpaceError, UsageError
from hubmerge.planning.card import CardOptions
from hubmerge.planning.publication import Publication
from hubmerge.publish.options import PushOptions
from hubmerge.publish.preview import PushPreview, preview_push, preview_target
from tests.support.fake_hub import Hub
from tests.support.push.checks import INDEX, weights_of
from tests.support.push.command import REPO, Done
from tests.support.push.models import Model

pytest_plugins = ["tests.support.push.plugin"]

Push = Callable[..., Done]
Preview = Callable[..., PushPreview]


@pytest.fixture
def preview(hub: Hub, api: HfApi, naps: list[float], model: Model) -> Preview:
    """Preview a push of the model; the Hub must be as it was."""

    def run(repo_id: str = REPO, card: str | None = None, **options: Any) -> PushPreview:
        plan, assets = library.plan(
            model.load_dir, model_assets_dir=model.assets, shard_size=15_000
        )
        publication = Publication(plan, assets, CardOptions(text=card), repo_id)
        before = {name: list(repo.moves) for name, repo in hub.repos.items()}
        try:
            return preview_push(publication, PushOptions(repo_id=repo_id, **options))
        finally:
            assert {name: list(repo.moves) for name, repo in hub.repos.items()} == before
            assert hub.log.count("create_branch") == hub.log.count("preupload") == 0

    return run


def test_a_repository_that_is_missing(preview: Preview, model: Model) -> None:
    """It will be created, and everything is uploaded."""
    found = preview(private=True)
    assert (found.user, found.exists, found.is_private) == ("alice", False, True)
    assert found.creates_branch
    shards = [data for name, data in model.weights().items() if name != INDEX]
    assert found.upload_bytes == sum(map(len, shards))
    assert (found.staged, found.replaced, found.removed, found.kept) == ((), (), (), ())


def test_an_older_model(preview: Preview, hub: Hub) -> None:
    """What is replaced, removed and kept, and what becomes of the card."""
    hub.create_repo(REPO)
    older = {"model-00001-of-00009.safetensors": b"old", "model.gguf": b"x", "README.md": b"# Mine"}
    hub.commit(REPO, {**older, "config.json": b"{}"})
    found = preview(tag="v1")
    assert (found.exists, found.is_private, found.creates_branch) == (True, False, False)
    assert found.replaced == ("config.json", "README.md")
    assert found.removed == ("model-00001-of-00009.safetensors",)
    assert (found.kept, found.readme) == (("model.gguf",), "extended")
    assert "model.gguf" in found.warnings[0]


def test_what_is_staged(preview: Preview, hub: Hub, push: Push) -> None:
    """Shards of a run that failed are not uploaded again."""
    hub.faults.add("commit", status=400, skip=3, times=None)
    assert push().code == 1
    hub.faults.clear()
    hub.log.clear()
    found = preview()
    assert len(found.staged) == 2
    assert 0 < found.upload_bytes < 60_000


def test_what_is_published(preview: Preview, hub: Hub, push: Push) -> None:
    """On the branch, and in our own pull request."""
    assert push().code == 0
    hub.log.clear()
    assert preview().is_published
    hub.commit(REPO, {"config.json": b"{}"})
    assert not preview().is_published
    assert push("--create-pr").code == 0
    hub.log.clear()
    found = preview(create_pr=True)
    assert found.is_published
    assert found.pull_request == f"{hub.url}/{REPO}/discussions/1"


@pytest.mark.parametrize("exists", [True, False])
@pytest.mark.parametrize("token", ["read", "revoked", "stranger", "fine_user", None])
def test_a_token_that_may_not(
    token: str | None, exists: bool, preview: Preview, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same exit code as that of the push, although nothing is tried."""
    if exists:
        hub.create_repo("acme/model")
    if token is None:
        monkeypatch.delenv("HF_TOKEN")
        monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", "/none")
    with pytest.raises(AccessError):
        preview("acme/model", token=hub.tokens[token] if token else None)


@pytest.mark.parametrize("token", ["write", "fine_org"])
def test_a_token_that_may(token: str, preview: Preview, hub: Hub) -> None:
    """It may create a repository of its organization."""
    assert not preview("acme/model", token=hub.tokens[token]).exists


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"tag": "v1"}, UsageError),
        ({"revision": "refs/pr/9"}, UsageError),
        ({"private": True}, UsageError),
        ({"max_disk": 1_000}, UsageError),
        ({"card": "---\nlicense: no-such-license\n---\n"}, UsageError),
    ],
)
def test_errors_of_the_push(
    options: dict[str, Any], error: type[HubmergeError], preview: Preview, hub: Hub
) -> None:
    """Each is raised by the preview too."""
    hub.create_repo(REPO).create_tag("v1", "main")
    with pytest.raises(error):
        preview(**options)


def test_no_disk_has_room(preview: Preview, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exit 7, as in the push."""
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 1_000}))
    with pytest.raises(InsufficientSpaceError):
        preview()


def test_a_preview_agrees_with_the_push(preview: Preview, hub: Hub, push: Push) -> None:
    """What it says is what is done then."""
    hub.create_repo(REPO)
    hub.commit(REPO, {"model-00001-of-00009.safetensors": b"old", "README.md": b"# Mine\n"})
    found, result = preview(), push("--json").json
    assert list(found.removed) == result["removed"]
    assert (found.readme, found.upload_bytes) == (result["readme"], result["uploaded_bytes"])
    assert "model-00001-of-00009.safetensors" not in weights_of(hub.files(REPO))


@pytest.mark.usefixtures("api", "naps")
def test_a_target_without_a_checkpoint(hub: Hub) -> None:
    """For the first minute of a training job: rights, repository, branch and tag."""
    missing = preview_target(PushOptions(repo_id=REPO, private=True))
    assert (missing.user, missing.exists, missing.is_private) == ("alice", False, True)
    hub.create_repo(REPO).create_tag("v1", "main")
    found = preview_target(PushOptions(repo_id=REPO, revision="next"))
    assert (found.exists, found.creates_branch) == (True, True)
    for wrong in ({"tag": "v1"}, {"revision": "v1"}, {"private": True}):
        with pytest.raises(UsageError):
            preview_target(PushOptions(repo_id=REPO, **wrong))
    with pytest.raises(AccessError):
        preview_target(PushOptions(repo_id="acme/model", token=hub.tokens["stranger"]))
    assert list(hub.repos) == [REPO]
