"""What unfinished pushes left on a repository: listed, and removed by name."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from hubmerge.errors import UsageError
from hubmerge.publish.hub import Hub as PublishHub
from hubmerge.publish.staged import list_staged, remove_staged
from tests.support.fake_hub import Hub
from tests.support.push.command import REPO, Done

pytest_plugins = ["tests.support.push.plugin"]

Push = Callable[..., Done]


@pytest.fixture
def remote(hub: Hub, push: Push) -> PublishHub:
    """A repository with the branch of a push that failed after two shards, and another."""
    hub.faults.add("commit", status=400, skip=3, times=None)
    assert push().code == 1
    hub.faults.clear()
    hub.repo(REPO).create_branch("hubmerge/0123456789abcdef", "main")
    hub.repo(REPO).create_branch("hubmerge/mine", "main")
    return PublishHub(REPO, hub.token)


def test_what_is_staged_is_listed(remote: PublishHub, hub: Hub) -> None:
    """With shards, bytes and age; a branch of another name is somebody's own."""
    found = {push.branch: push for push in list_staged(remote)}
    other = found.pop("hubmerge/0123456789abcdef")
    assert (other.shards, other.bytes) == (0, 0)
    ((branch, staged),) = found.items()
    files = hub.repo(REPO).resolve(branch).files
    shards = [entry.size for name, entry in files.items() if name.endswith(".safetensors")]
    assert (staged.shards, staged.bytes) == (2, sum(shards))
    assert staged.updated is not None
    assert other.updated is not None
    assert staged.updated >= other.updated


def test_only_what_is_named_is_removed(remote: PublishHub, hub: Hub) -> None:
    """All names are checked first."""
    branches = [push.branch for push in list_staged(remote)]
    for wrong in ("main", "hubmerge/mine", "hubmerge/" + "0" * 16):
        with pytest.raises(UsageError, match="no staging branch"):
            remove_staged(remote, [*branches, wrong])
    assert [push.branch for push in list_staged(remote)] == branches
    remove_staged(remote, branches[:1])
    assert [push.branch for push in list_staged(remote)] == branches[1:]
    assert "refs/heads/hubmerge/mine" in hub.repo(REPO).refs
