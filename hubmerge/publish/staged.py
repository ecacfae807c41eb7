"""What unfinished pushes left on a repository."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime

from hubmerge.errors import UsageError
from hubmerge.publish.hub import Hub
from hubmerge.publish.staging_branch import STAGING_BRANCH, staged_shards


@dataclass(frozen=True, slots=True)
class StagedPush:
    """A staging branch; its push may have failed, or may still be running.

    Attributes:
        shards, bytes: how many shards it holds whole, and their size.
        updated: when its newest commit was made; None if the Hub does not say.
    """

    branch: str
    shards: int
    bytes: int
    updated: datetime | None


def list_staged(hub: Hub) -> list[StagedPush]:
    """List the staging branches of a repository, oldest first."""
    found = []
    for branch in hub.refs().branches:
        if STAGING_BRANCH.fullmatch(branch):
            commits = hub.commits(branch)
            shards = staged_shards(hub, branch, commits)
            updated = commits[0].time if commits else None
            size = sum(shard.size for shard in shards.values())
            found.append(StagedPush(branch, len(shards), size, updated))
    return sorted(found, key=lambda push: (push.updated is not None, push.updated, push.branch))


def remove_staged(hub: Hub, branches: Collection[str]) -> None:
    """Remove staging branches; a push that still uses one of them fails.

    Raises:
        UsageError: a name is not one of a staging branch of this repository.
    """
    existing = hub.refs().branches
    for branch in branches:
        if not STAGING_BRANCH.fullmatch(branch) or branch not in existing:
            raise UsageError(
                f"{hub.repo_id}: has no staging branch {branch!r}",
                "List them with `hubmerge staged`.",
            )
    for branch in branches:
        hub.delete_branch(branch)
