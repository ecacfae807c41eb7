"""What a push has to do: a pure function of what the Hub holds and of what is planned."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from hubmerge.conversion.shard_writer import WrittenShard
from hubmerge.errors import UsageError
from hubmerge.formatting import format_list
from hubmerge.hf_format.filenames import files_to_remove
from hubmerge.hf_format.other_weights import consolidated, other_weights, warn_of_others
from hubmerge.planning.plan import Plan
from hubmerge.publish.options import PushOptions
from hubmerge.publish.remote import AddFile, Change, CopyFile, RemoveFile
from hubmerge.publish.remote_state import RemoteBranch, RemoteState
from hubmerge.publish.staging_branch import STAGING_BRANCH, staging_branch_of
from hubmerge.system.disk import content_ids


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is to be published, and where.

    Attributes:
        small: the content of each planned file but the shards, by name.
    """

    plan: Plan
    small: Mapping[str, bytes]
    options: PushOptions
    fingerprint: str

    @property
    def names(self) -> set[str]:
        """The names of all planned files."""
        return {shard.filename for shard in self.plan.shards} | set(self.small)


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do.

    Attributes:
        published_on: the branch that holds exactly what is planned already, if there is one.
        already_uploaded: shards that need neither conversion nor upload, by name.
        creates_repository, creates_branch: whether the target's are missing.
        replaced: planned files of which the target holds another version.
        removed: files of an older model that the commit removes.
        kept: other weights that stay, those that a loader might take by mistake first.
        other_staging: the staging branches of other runs.
        notes, warnings: what to tell the user, one sentence each.
    """

    published_on: RemoteBranch | None
    already_uploaded: Mapping[str, WrittenShard]
    creates_repository: bool
    creates_branch: bool
    replaced: tuple[str, ...]
    removed: tuple[str, ...]
    kept: tuple[str, ...]
    other_staging: tuple[str, ...]
    notes: tuple[str, ...]
    warnings: tuple[str, ...]


def decide(state: RemoteState, wanted: Wanted) -> Decision:
    """Decide what a push has to do.

    Raises:
        UsageError: the target cannot be what the options say.
    """
    done = _published_on(state, wanted)
    check_target(state, wanted.options, done)
    held = dict(state.staged or {})
    for branch in filter(None, (state.base, done)):
        held |= branch.published(wanted.fingerprint)
    target = done or state.base
    files = target.files if target is not None else {}
    removed = _superseded(files, wanted)
    others = other_weights(files, wanted.names | set(removed))
    return Decision(
        published_on=done,
        already_uploaded={name: held[name] for name in held if name in wanted.names},
        creates_repository=not state.refs.branches,
        creates_branch=state.is_missing,
        replaced=tuple(_replaced(target, wanted)) if target is not None else (),
        removed=tuple(removed),
        kept=tuple(others),
        other_staging=tuple(_other_staging(state, wanted)),
        notes=tuple(_notes(removed)),
        warnings=tuple(_warnings(state, removed, others, wanted)),
    )


def changes_to(
    branch: RemoteBranch, shards: Mapping[str, WrittenShard], wanted: Wanted
) -> list[Change]:
    """Return what turns the branch into the planned model; empty if it is that already.

    Args:
        shards: all of them; the staging branch holds those that `branch` lacks.
    """
    staging = staging_branch_of(wanted.fingerprint)
    copied = [CopyFile(s.filename, staging) for s in shards.values() if not branch.holds(s)]
    added = [AddFile(*file) for file in wanted.small.items() if not _holds(branch, *file)]
    return [*copied, *added, *map(RemoveFile, _superseded(branch.files, wanted))]


def _superseded(names: Collection[str], wanted: Wanted) -> list[str]:
    """Return those of the target's files that must not stay beside the planned ones."""
    found = files_to_remove(names, wanted.names, is_adapter=wanted.plan.is_adapter)
    if not wanted.plan.is_adapter and not wanted.options.keep_others:
        found += consolidated(names, wanted.names)
    return found


def _replaced(target: RemoteBranch, wanted: Wanted) -> Iterator[str]:
    held = target.published(wanted.fingerprint)
    for shard in wanted.plan.shards:
        if shard.filename in target.files and shard.filename not in held:
            yield shard.filename
    for name, content in wanted.small.items():
        if name in target.files and not _holds(target, name, content):
            yield name


def _notes(removed: Sequence[str]) -> Iterator[str]:
    if removed:
        yield f"the commit will remove the older model's {format_list(removed)}"


def _warnings(
    state: RemoteState, removed: Sequence[str], others: Mapping[str, str | None], wanted: Wanted
) -> Iterator[str]:
    if preferred := consolidated(removed, ()):
        yield (
            f"the commit will remove {format_list(preferred)}, which servers such as vLLM would "
            "load in place of the new weights; --keep-others keeps it"
        )
    if others:
        yield warn_of_others(wanted.options.repo_id, others)
    if not wanted.options.clean:
        for branch in _other_staging(state, wanted):
            yield f"another run left the staging branch {branch}; --clean removes it"


def _other_staging(state: RemoteState, wanted: Wanted) -> list[str]:
    """Return the staging branches of other runs."""
    ours = staging_branch_of(wanted.fingerprint)
    return [b for b in state.refs.branches if STAGING_BRANCH.fullmatch(b) and b != ours]


def _holds(branch: RemoteBranch, name: str, content: bytes) -> bool:
    file = branch.files.get(name)
    return file is not None and file.matches(content_ids(content))


def check_target(state: RemoteState, options: PushOptions, done: RemoteBranch | None) -> None:
    """Raise UsageError if the target cannot be what the options say.

    Args:
        done: the branch that holds exactly what is planned already.
    """
    _check_tag(state, options, done)
    revision = options.revision
    if options.private and state.is_private is False:
        raise UsageError(
            f"{options.repo_id} exists and is public, and --private does not change that",
            "Make it private in its settings, or leave --private out.",
        )
    if not state.is_missing:
        return
    if revision.startswith("refs/"):
        raise UsageError(f"{options.repo_id} has no pull request {revision}")
    if revision in state.refs.tags:
        raise UsageError(f"--revision {revision} is a tag, and only a branch can be moved")


def _check_tag(state: RemoteState, options: PushOptions, done: RemoteBranch | None) -> None:
    taken = state.refs.tags.get(options.tag or "")
    if taken is not None and (done is None or taken != done.head):
        raise UsageError(
            f"the tag {options.tag!r} already names the commit {taken}",
            "Use another --tag; a tag that people rely on is never moved.",
        )


def _published_on(state: RemoteState, wanted: Wanted) -> RemoteBranch | None:
    """Return the target, or our pull request for it, if it holds exactly what is planned."""
    if state.base is None or state.is_missing:
        return None
    for branch in (state.base, *state.pull_requests):
        shards = branch.published(wanted.fingerprint)
        if len(shards) == len(wanted.plan.shards) and not changes_to(branch, shards, wanted):
            return branch
    return None
