"""The staging branch, and the one commit that moves the target.

What is on the Hub when a run dies (``S`` the staging branch, ``T`` the target):

    1. the repository and T are created if missing    T as it was
    2. S is created from T's head                     T as it was; S equal to T
    3. each shard, or a group of them, is committed
       to S; the commit's message records sha256      T as it was; the shards on S are kept
    4. one commit on T, whose parent must be the      T is the old model or the new one; S complete
       head seen in 1: shards by server-side copy,
       small files, deletions
    5. the tag, if one is asked for                   T is the new model
    6. S is deleted                                   T is the new model

After 2 or 3 the next run with the same fingerprint takes the shards on S over. After 4 it finds its
own record in T's history and has nothing to commit; it does 5 and 6 then.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hubmerge.errors import HubmergeError, MismatchError, TargetChangedError
from hubmerge.plan import INDEX_NAME
from hubmerge.publish.hub import Hub, RemoteFile
from hubmerge.shard_writer import WrittenShard

if TYPE_CHECKING:
    from huggingface_hub import CommitOperationAdd

BRANCH_PREFIX = "hubmerge/"
_RECORD = re.compile(r"<!-- hubmerge (\{.*\}) -->")
_WEIGHTS = re.compile(r"(?:adapter_)?model(-\d{5,}-of-\d{5,})?\.safetensors")

# How far back in the target's history its newest record is looked for.
_COMMITS_SEARCHED = 50


@dataclass(frozen=True, slots=True)
class Record:
    """What a commit of ours says about itself, in its description."""

    fingerprint: str
    shards: dict[str, WrittenShard]
    options: dict[str, Any]

    def to_text(self) -> str:
        entry = {
            "fingerprint": self.fingerprint,
            "shards": [[s.filename, s.size, s.sha256] for s in self.shards.values()],
            "options": self.options,
        }
        return f"<!-- hubmerge {json.dumps(entry, separators=(',', ':'))} -->"


def parse_record(text: str) -> Record | None:
    """The record in a commit's text; None where there is none, or it is not well formed."""
    match = _RECORD.search(text)
    if not match:
        return None
    try:
        entry = json.loads(match[1])
        shards = [WrittenShard(str(n), int(size), str(sha)) for n, size, sha in entry["shards"]]
        return Record(
            str(entry["fingerprint"]), {s.filename: s for s in shards}, dict(entry["options"])
        )
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


class Staging:
    """The staging branch of one fingerprint."""

    def __init__(self, hub: Hub, fingerprint: str) -> None:
        self._hub = hub
        self.fingerprint = fingerprint
        self.branch = BRANCH_PREFIX + fingerprint[:16]

    def open(self, target_head: str, existing: Iterable[str]) -> dict[str, WrittenShard]:
        """Create the branch, or take it over from a run that was cut off.

        Returns:
            The shards that it holds, by the Hub's own listing.
        """
        if self.branch not in existing:
            self._hub.create_branch(self.branch, target_head)
            return {}
        recorded: dict[str, WrittenShard] = {}
        for commit in self._hub.commits(self.branch):
            record = parse_record(f"{commit.title}\n{commit.description}")
            if record and record.fingerprint == self.fingerprint:
                recorded = {**record.shards, **recorded}
        return self.held(recorded.values())

    def held(self, shards: Iterable[WrittenShard]) -> dict[str, WrittenShard]:
        """Those of `shards` that the branch holds, whole, by the Hub's own listing."""
        files = self._hub.files(self.branch)
        return {s.filename: s for s in shards if _is_same(files.get(s.filename), s)}

    def add(self, shards: list[tuple[WrittenShard, CommitOperationAdd]]) -> None:
        """Commit uploaded shards to the branch.

        Raises:
            HubmergeError: the Hub left one out.
            MismatchError: the Hub stored something else.
        """
        record = Record(self.fingerprint, {s.filename: s for s, _ in shards}, {})
        names = ", ".join(shard.filename for shard, _ in shards)
        self._hub.commit(
            [operation for _, operation in shards],
            revision=self.branch,
            message=f"Stage {names}"[:200],
            description=record.to_text(),
            result=lambda _: None,
        )

    def check(self, shards: list[WrittenShard]) -> None:
        """Prove by the Hub's own listing that the branch holds `shards`.

        Raises:
            MismatchError: it holds something else.
            HubmergeError: it lacks one.
        """
        if shards:
            check_listing(self._hub.files(self.branch), shards, self.branch)

    def delete(self) -> None:
        """Remove the branch: all it holds is on the target."""
        self._hub.delete_branch(self.branch)


def _is_same(file: RemoteFile | None, shard: WrittenShard) -> bool:
    return file is not None and (file.sha256, file.size) == (shard.sha256, shard.size)


def check_listing(
    files: dict[str, RemoteFile], shards: Iterable[WrittenShard], revision: str
) -> None:
    """Raises MismatchError or HubmergeError where the listing is not what was sent."""
    for shard in shards:
        file = files.get(shard.filename)
        if file is None:
            raise HubmergeError(
                f"{shard.filename} is not on {revision} although the Hub took it",
                "If the repository has a .gitignore that covers it, remove that line.",
            )
        if not _is_same(file, shard):
            raise MismatchError(
                f"{shard.filename} on {revision}: the Hub holds sha256 {file.sha256} and "
                f"{file.size:,} bytes, {shard.sha256} and {shard.size:,} bytes were sent; "
                "the target was not touched",
                "Run the same command again; if it happens again, tell the Hub's support.",
            )


@dataclass(frozen=True, slots=True)
class Published:
    """The result of the final commit; `commit` may be an older one where nothing had changed."""

    url: str
    commit: str
    changed: bool


class Target:
    """The branch that is to be moved, once."""

    def __init__(self, hub: Hub, revision: str, head: str) -> None:
        self._hub, self.revision, self.head = hub, revision, head
        self.files = hub.files(head)

    def published(self, fingerprint: str) -> dict[str, WrittenShard]:
        """The shards of this fingerprint that the target has already, whole."""
        for commit in self._hub.commits(self.revision)[:_COMMITS_SEARCHED]:
            record = parse_record(f"{commit.title}\n{commit.description}")
            if record is not None:
                if record.fingerprint != fingerprint:
                    return {}
                return {n: s for n, s in record.shards.items() if _is_same(self.files.get(n), s)}
        return {}

    def holds(self, shard: WrittenShard) -> bool:
        """Has the target this shard already?"""
        return _is_same(self.files.get(shard.filename), shard)

    def operations(
        self, shards: dict[str, WrittenShard], small: dict[str, bytes], staging: Staging
    ) -> list[Any]:
        """What must be done to turn the old model into the new one; empty if nothing."""
        from huggingface_hub import CommitOperationAdd, CommitOperationCopy, CommitOperationDelete

        copies = [
            CommitOperationCopy(name, name, src_revision=staging.branch)
            for name, shard in shards.items()
            if not self.holds(shard)
        ]
        additions = [
            CommitOperationAdd(name, content)
            for name, content in small.items()
            if not self._has(name, content)
        ]
        stale = [
            CommitOperationDelete(path)
            for path in self.files
            if (_WEIGHTS.fullmatch(path) and path not in shards)
            or (path == INDEX_NAME and path not in small)
        ]
        return [*copies, *additions, *stale]

    def _has(self, name: str, content: bytes) -> bool:
        file = self.files.get(name)
        if file is None:
            return False
        if file.sha256 is not None:
            return file.sha256 == hashlib.sha256(content).hexdigest()
        blob = b"blob %d\0" % len(content) + content
        return file.blob_id == hashlib.sha1(blob, usedforsecurity=False).hexdigest()

    def move(
        self,
        operations: list[Any],
        *,
        message: str,
        description: str,
        record: Record,
        create_pr: bool,
    ) -> Published:
        """Make the one commit.

        Raises:
            TargetChangedError: somebody else moved the branch; nothing was changed.
        """
        if not operations:
            return Published(f"{self._hub.url}/tree/{self.revision}", self.head, changed=False)
        text = "\n\n".join(filter(None, [description, record.to_text()]))

        find = self._find_own_pull_request if create_pr else self._find_own_commit
        try:
            return self._hub.commit(
                operations,
                revision=self.revision,
                message=message,
                description=text,
                parent=self.head,
                create_pr=create_pr,
                result=lambda info: (
                    Published(info.pr_url, info.oid, changed=True)
                    if info.pr_url
                    else self._published(info.oid)
                ),
                already_done=lambda: find(record),
            )
        except TargetChangedError:
            # The branch may have been moved by this very commit, whose response was lost.
            found = find(record)
            if found is not None:
                return found
            raise TargetChangedError(
                f"{self.revision} was moved from {self.head} to "
                f"{self._hub.head(self.revision)} by somebody else; nothing was published",
                "Look at that commit. To replace it, run the same command again: "
                "the shards are kept on the staging branch.",
            ) from None

    def _find_own_commit(self, record: Record) -> Published | None:
        """The branch's head, if it is the commit with this record, made on top of `head`."""
        commits = self._hub.commits(self.revision)
        is_ours = (
            len(commits) > 1
            and commits[1].sha == self.head
            and record.to_text() in commits[0].description
        )
        return self._published(commits[0].sha) if is_ours else None

    def _find_own_pull_request(self, record: Record) -> Published | None:
        """The open pull request whose commit has this record."""
        for url, revision in self._hub.open_pull_requests():
            newest = self._hub.commits(revision)[0]
            if record.to_text() in newest.description:
                return Published(url, newest.sha, changed=True)
        return None

    def _published(self, commit: str) -> Published:
        return Published(f"{self._hub.url}/tree/{self.revision}", commit, changed=True)
