"""What the Hub holds when a push begins, read once into one value; nothing is changed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice

from hubmerge.conversion.shard_writer import WrittenShard
from hubmerge.errors import AccessError
from hubmerge.planning.card import CARD
from hubmerge.publish.hub import Hub
from hubmerge.publish.options import DEFAULT_BRANCH
from hubmerge.publish.record import Record, records_of
from hubmerge.publish.remote import Listing, Refs
from hubmerge.publish.staging_branch import staged_shards, staging_branch_of

# How far back in a branch's history its newest record is looked for.
_MAX_COMMITS_SEARCHED = 50


@dataclass(frozen=True, slots=True)
class RemoteBranch:
    """What a branch holds.

    Attributes:
        url: what a person opens to see it; a pull request's own page.
        record: of the newest commit by hubmerge.
    """

    revision: str
    url: str
    head: str
    files: Listing
    record: Record | None

    def holds(self, shard: WrittenShard) -> bool:
        """Return whether the branch holds this shard, by the Hub's own listing."""
        file = self.files.get(shard.filename)
        return file is not None and file.matches([shard.sha256], shard.size)

    def published(self, fingerprint: str) -> dict[str, WrittenShard]:
        """Return the shards of this fingerprint that the branch holds, by name."""
        if self.record is None or self.record.fingerprint != fingerprint:
            return {}
        return {name: s for name, s in self.record.shards.items() if self.holds(s)}


@dataclass(frozen=True, slots=True)
class RemoteState:
    """What concerns a push, as it was when this was read.

    Attributes:
        is_private: None if the repository does not exist (or not for this token).
        base: the target branch, or else the default branch, from which it would be created; None
            if neither exists.
        is_missing: whether the target branch is yet to be created.
        readme: the model card of `base`.
        staged: the shards on this push's staging branch, by name; None if it does not exist.
        pull_requests: our own open ones, newest first, if one is to be opened.
    """

    is_private: bool | None
    refs: Refs
    base: RemoteBranch | None
    is_missing: bool
    readme: str | None = None
    staged: Mapping[str, WrittenShard] | None = None
    pull_requests: tuple[RemoteBranch, ...] = ()

    @property
    def exists(self) -> bool:
        """Whether the repository exists."""
        return self.is_private is not None


def read_state(hub: Hub, revision: str, fingerprint: str, *, create_pr: bool) -> RemoteState:
    """Read what the Hub holds.

    Raises:
        AccessError: the token may not write to the repository.
    """
    is_private = hub.is_private()
    if is_private is None:
        return RemoteState(None, Refs({}, {}), None, is_missing=True)
    _check_write(hub, create_pr=create_pr)
    refs = hub.refs()
    is_pull_request = revision.startswith("refs/")
    head = hub.head(revision) if is_pull_request else refs.branches.get(revision)
    base = readme = None
    if head is not None:
        base = read_branch(hub, revision, head)
    elif not is_pull_request and DEFAULT_BRANCH in refs.branches:
        base = read_branch(hub, DEFAULT_BRANCH, refs.branches[DEFAULT_BRANCH])
    if base is not None and CARD in base.files:
        readme = hub.read_text(CARD, base.head)
    staging, staged = staging_branch_of(fingerprint), None
    if staging in refs.branches:
        staged = staged_shards(hub, staging, hub.commits(staging))
    return RemoteState(
        is_private,
        refs,
        base,
        is_missing=head is None,
        readme=readme,
        staged=staged,
        pull_requests=tuple(_own_pull_requests(hub)) if create_pr else (),
    )


def _check_write(hub: Hub, *, create_pr: bool) -> None:
    try:
        hub.check_write()
    except AccessError as error:
        if not create_pr or error.hint == AccessError.usual_hint:
            raise
        raise AccessError(
            str(error),
            "Ask for write access, or push to a repository of your own: even for a pull request, "
            "shards are staged on a branch of the repository.",
        ) from None


def read_branch(hub: Hub, revision: str, head: str, url: str | None = None) -> RemoteBranch:
    """Read what a branch holds."""
    files = hub.files(head)
    records = records_of(islice(hub.commits(revision), _MAX_COMMITS_SEARCHED))
    newest = next(iter(records), None)
    return RemoteBranch(revision, url or f"{hub.url}/tree/{revision}", head, files, newest)


def _own_pull_requests(hub: Hub) -> Iterator[RemoteBranch]:
    for pull in hub.own_pull_requests():
        head = hub.head(pull.revision)
        if head is not None:
            yield read_branch(hub, pull.revision, head, pull.url)
