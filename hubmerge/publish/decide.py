"""What a push has to do: a pure function of what the Hub holds and of what is planned."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from hubmerge.conversion.shard_writer import WrittenShard
from hubmerge.errors import UsageError
from hubmerge.formatting import format_list
from hubmerge.hf_format.filenames import files_to_remove, is_pickled_weights
from hubmerge.planning.plan import Plan
from hubmerge.publish.options import BRANCH_PREFIX, PushOptions
from hubmerge.publish.remote import AddFile, Change, CopyFile, RemoveFile, content_ids
from hubmerge.publish.remote_state import RemoteBranch, RemoteState
from hubmerge.publish.staging_branch import staging_branch_of

_STAGING_BRANCH = re.compile(re.escape(BRANCH_PREFIX) + "[0-9a-f]{16}")


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do.

    Attributes:
        published_on: the branch that holds exactly what is planned already, if there is one.
        already_uploaded: shards that need neither conversion nor upload, by name.
        creates_repository, creates_branch: whether the target's are missing.
        removed: files of an older model that the commit removes.
        other_staging: the staging branches of other runs.
        notes, warnings: what to tell the user, one sentence each.
    """

    published_on: RemoteBranch | None
    already_uploaded: Mapping[str, WrittenShard]
    creates_repository: bool
    creates_branch: bool
    removed: tuple[str, ...]
    other_staging: tuple[str, ...]
    notes: tuple[str, ...]
    warnings: tuple[str, ...]


def decide(
    state: RemoteState,
    plan: Plan,
    small: Mapping[str, bytes],
    options: PushOptions,
    fingerprint: str,
) -> Decision:
    """Decide what a push has to do.

    Args:
        small: the content of each planned file but the shards, by name.

    Raises:
        UsageError: the target cannot be what the options say.
    """
    _check_target(state, options)
    names = {shard.filename for shard in plan.shards}
    done = _published_on(state, plan, small, fingerprint)
    _check_tag(state, options, done)
    held = dict(state.staged or {})
    for branch in filter(None, (state.base, done)):
        held |= branch.published(fingerprint)
    files = state.base.files if state.base is not None else {}
    planned = {*names, *small}
    removed = files_to_remove(files, planned, is_adapter=plan.is_adapter)
    notes, warnings = [], []
    if removed and done is None:
        notes.append(f"the commit will remove the older model's {format_list(removed)}")
    pickled = [name for name in files if is_pickled_weights(name)]
    if pickled and not plan.is_adapter and done is None:
        warnings.append(
            f"{format_list(pickled)} stay in {options.repo_id}: another model's weights, "
            "which old loaders may take; remove them by hand"
        )
    ours = staging_branch_of(fingerprint)
    other_staging = [b for b in state.refs.branches if _STAGING_BRANCH.fullmatch(b) and b != ours]
    if not options.clean:
        warnings += [
            f"another run left the staging branch {branch}; --clean removes it"
            for branch in other_staging
        ]
    return Decision(
        published_on=done,
        already_uploaded={name: held[name] for name in held if name in names},
        creates_repository=not state.refs.branches,
        creates_branch=state.is_missing,
        removed=tuple(removed),
        other_staging=tuple(other_staging),
        notes=tuple(notes),
        warnings=tuple(warnings),
    )


def changes_to(
    branch: RemoteBranch,
    shards: Mapping[str, WrittenShard],
    small: Mapping[str, bytes],
    staging: str,
    *,
    is_adapter: bool,
) -> list[Change]:
    """Return what turns the branch into the planned model; empty if nothing does.

    Args:
        staging: the branch that holds the shards which `branch` lacks.
    """
    copied = [CopyFile(s.filename, staging) for s in shards.values() if not branch.holds(s)]
    added = [AddFile(*file) for file in small.items() if not _holds(branch, *file)]
    removed = files_to_remove(branch.files, {*shards, *small}, is_adapter=is_adapter)
    return [*copied, *added, *map(RemoveFile, removed)]


def _holds(branch: RemoteBranch, name: str, content: bytes) -> bool:
    file = branch.files.get(name)
    return file is not None and file.matches(content_ids(content))


def _check_target(state: RemoteState, options: PushOptions) -> None:
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


def _published_on(
    state: RemoteState, plan: Plan, small: Mapping[str, bytes], fingerprint: str
) -> RemoteBranch | None:
    """Return the target, or our pull request for it, if it holds exactly what is planned."""
    if state.base is None or state.is_missing:
        return None
    for branch in (state.base, *state.pull_requests):
        shards = branch.published(fingerprint)
        if len(shards) == len(plan.shards) and not changes_to(
            branch, shards, small, "", is_adapter=plan.is_adapter
        ):
            return branch
    return None
