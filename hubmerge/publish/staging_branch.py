"""The staging branch, and the one commit that moves the target.

What is on the Hub when a run dies (``S`` the staging branch, ``T`` the target):

    1. the repository and T are created if missing    T as it was
    2. S is created from T's head                     T as it was; S equal to T
    3. index, config, tokenizer, card are committed   T as it was
       to S: what the Hub would leave out shows now
    4. each shard, or a group of them, is committed
       to S; the commit's message records sha256      T as it was; the shards on S are kept
    5. one commit on T, whose parent must be the      T is the old model or the new one; S complete
       head seen in 1: shards by server-side copy,
       small files, deletions
    6. the tag, if one is asked for                   T is the new model
    7. S is deleted                                   T is the new model

After 2, 3 or 4 the next run with the same fingerprint takes the shards on S over. After 5 it finds
its own record in T's history and has nothing to commit; it does 6 and 7 then.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from hubmerge.conversion.shard_writer import WrittenShard
from hubmerge.errors import HubmergeError, MismatchError, TargetChangedError, UsageError
from hubmerge.publish.hub import Hub
from hubmerge.publish.options import BRANCH_PREFIX
from hubmerge.publish.record import Record, records_of
from hubmerge.publish.remote import (
    AddFile,
    Change,
    NewCommit,
    RemoteCommit,
    RemoteFile,
    UploadedFile,
)
from hubmerge.system.disk import content_ids

STAGING_BRANCH = re.compile(re.escape(BRANCH_PREFIX) + "[0-9a-f]{16}")


def staging_branch_of(fingerprint: str) -> str:
    """Return the name of the staging branch of one fingerprint."""
    return BRANCH_PREFIX + fingerprint[:16]


def staged_shards(
    hub: Hub, branch: str, commits: Sequence[RemoteCommit]
) -> dict[str, WrittenShard]:
    """Return the shards that an interrupted run left on its branch, by the Hub's own listing.

    Args:
        commits: the branch's.
    """
    recorded: dict[str, WrittenShard] = {}
    for record in records_of(commits):
        if staging_branch_of(record.fingerprint) == branch:
            recorded = {**record.shards, **recorded}
    files = hub.files(branch)
    return {name: s for name, s in recorded.items() if _is_same(files.get(name), s)}


class Staging:
    """The staging branch of one fingerprint, written to."""

    def __init__(self, hub: Hub, fingerprint: str) -> None:
        self._hub = hub
        self.fingerprint = fingerprint
        self.branch = staging_branch_of(fingerprint)

    def create(self, target_head: str) -> None:
        """Create the branch from the target's head."""
        self._hub.create_branch(self.branch, target_head)

    def add_files(self, files: Mapping[str, bytes]) -> None:
        """Commit the small files to the branch.

        Raises:
            UsageError: the Hub leaves one out, here as it would on the target.
        """
        self._hub.commit(
            [AddFile(name, content) for name, content in files.items()],
            revision=self.branch,
            message="Stage " + ", ".join(sorted(files))[:200],
        )
        listing = self._hub.files(self.branch)
        missing = [
            name
            for name, content in files.items()
            if name not in listing or not listing[name].matches(content_ids(content))
        ]
        if missing:
            raise UsageError(
                f"the Hub leaves {', '.join(missing)} out of commits to {self._hub.repo_id}",
                "If the repository has a .gitignore that covers it, remove that line.",
            )

    def upload(self, file: AddFile) -> UploadedFile:
        """Store a shard's content on the Hub, for a later commit to the branch."""
        return self._hub.upload(file, self.branch)

    def add(self, shards: Sequence[tuple[WrittenShard, UploadedFile]]) -> None:
        """Commit uploaded shards to the branch."""
        record = Record(self.fingerprint, {s.filename: s for s, _ in shards})
        names = ", ".join(shard.filename for shard, _ in shards)
        self._hub.commit(
            [file for _, file in shards],
            revision=self.branch,
            message=f"Stage {names}"[:200],
            description=record.to_text(),
        )

    def check(self, shards: Sequence[WrittenShard]) -> None:
        """Check by the Hub's own listing that the branch holds `shards`.

        Raises:
            MismatchError: it holds one with other content.
            HubmergeError: it lacks one.
        """
        for shard in self.lacking(shards):
            raise not_listed(shard.filename, self.branch)

    def lacking(self, shards: Sequence[WrittenShard]) -> list[WrittenShard]:
        """Return those of `shards` that the Hub's own listing of the branch does not show.

        Raises:
            MismatchError: it shows one with other content.
        """
        files = self._hub.files(self.branch) if shards else {}
        for shard in shards:
            file = files.get(shard.filename)
            if file is not None and not _is_same(file, shard):
                raise MismatchError(
                    f"{shard.filename} on {self.branch}: the Hub holds sha256 {file.sha256} and "
                    f"{file.size:,} bytes, {shard.sha256} and {shard.size:,} bytes were sent; "
                    "the target was not touched",
                    "Rerun; if it happens again, tell the Hub's support.",
                )
        return [shard for shard in shards if shard.filename not in files]

    def delete(self) -> None:
        """Remove the branch."""
        self._hub.delete_branch(self.branch)


def move_target(
    hub: Hub,
    changes: Sequence[Change],
    *,
    revision: str,
    head: str,
    message: str,
    description: str,
    record: Record,
    create_pr: bool,
) -> NewCommit:
    """Make the one commit on the target.

    Args:
        head: the commit that the branch must still point at.

    Raises:
        TargetChangedError: somebody else moved the branch; nothing was changed.
    """

    def find() -> NewCommit | None:
        if create_pr:
            return _own_pull_request(hub, record)
        return _own_commit(hub, revision, head, record)

    try:
        return hub.commit(
            changes,
            revision=revision,
            message=message,
            description="\n\n".join(filter(None, [description, record.to_text()])),
            parent=head,
            create_pr=create_pr,
            already_done=find,
        )
    except TargetChangedError:
        # The branch may have been moved by this very commit, whose response was lost.
        found = find()
        if found is not None:
            return found
        raise TargetChangedError(
            f"{revision} was moved from {head} to {hub.head(revision)} by somebody else; "
            "nothing was published",
            "Look at that commit. To replace it, rerun: the shards are kept on the staging branch.",
        ) from None


def _own_commit(hub: Hub, revision: str, since: str, record: Record) -> NewCommit | None:
    """Return the commit with this record, made on the branch after `since`."""
    for commit in hub.commits(revision):
        if commit.sha == since:
            break
        if record.is_in(commit):
            return NewCommit(commit.sha)
    return None


def _own_pull_request(hub: Hub, record: Record) -> NewCommit | None:
    """Return the commit of our own open pull request with this record."""
    for pull in hub.own_pull_requests():
        newest = hub.commits(pull.revision)[0]
        if record.is_in(newest):
            return NewCommit(newest.sha, pull)
    return None


def not_listed(names: str, branch: str) -> HubmergeError:
    """Return the error for files that were sent and are not in the listing."""
    return HubmergeError(
        f"{names}: not on {branch}, although the Hub accepted it",
        "If the repository has a .gitignore that covers it, remove that line.",
    )


def _is_same(file: RemoteFile | None, shard: WrittenShard) -> bool:
    return file is not None and file.matches([shard.sha256], shard.size)


def newest_record(hub: Hub, revision: str) -> Record:
    """Return the record of the newest push to a branch.

    Raises:
        UsageError: no commit there is by hubmerge.
    """
    for record in records_of(hub.commits(revision)):
        return record
    raise UsageError(
        f"{hub.repo_id}@{revision} has no commit by hubmerge that says how it was made",
        "Download it and use --save-dir with the options that it was made with.",
    )
