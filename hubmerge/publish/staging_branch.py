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

import hashlib
import json
import re
import secrets
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from hubmerge.conversion.shard_writer import WrittenShard
from hubmerge.errors import HubmergeError, MismatchError, TargetChangedError, UsageError
from hubmerge.hf_format.filenames import ADAPTER_NAME, files_to_remove
from hubmerge.publish.hub import Hub, RemoteCommit, RemoteFile

if TYPE_CHECKING:
    from huggingface_hub import CommitInfo, CommitOperationAdd

BRANCH_PREFIX = "hubmerge/"
_RECORD = re.compile(r"<!-- hubmerge (\{.*\}) -->")

# How far back in the target's history its newest record is looked for.
_COMMITS_SEARCHED = 50
_PULL_REQUESTS_SEARCHED = 20


@dataclass(frozen=True, slots=True)
class Record:
    """What a commit of ours says about itself, in its description.

    Attributes:
        run: tells this run's commit from any other's, should its response be lost.
    """

    fingerprint: str
    shards: dict[str, WrittenShard]
    options: dict[str, Any]
    run: str = field(default_factory=lambda: secrets.token_hex(8))

    def to_text(self) -> str:
        entry = {
            "run": self.run,
            "fingerprint": self.fingerprint,
            "shards": [[s.filename, s.size, s.sha256] for s in self.shards.values()],
            "options": self.options,
        }
        return f"<!-- hubmerge {json.dumps(entry, separators=(',', ':'))} -->"


def parse_record(text: str) -> Record | None:
    """The record in a commit's text; None where there is none, or it is not well formed.

    Anybody may have written it, so that nothing is taken for what it should be.
    """
    match = _RECORD.search(text)
    if not match:
        return None
    try:
        entry = json.loads(match[1])
        fingerprint, options = entry["fingerprint"], entry["options"]
        shards = [(name, size, sha256) for name, size, sha256 in entry["shards"]]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    is_sound = type(fingerprint) is str and type(options) is dict
    if not is_sound or any(tuple(map(type, shard)) != (str, int, str) for shard in shards):
        return None
    return Record(fingerprint, {shard[0]: WrittenShard(*shard) for shard in shards}, options)


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

    def add_files(self, files: dict[str, bytes]) -> None:
        """Commit the small files to the branch.

        Raises:
            UsageError: the Hub leaves one out, here as it would on the target.
        """
        from huggingface_hub import CommitOperationAdd

        self._hub.commit(
            [CommitOperationAdd(name, content) for name, content in files.items()],
            revision=self.branch,
            message="Stage " + ", ".join(sorted(files))[:200],
            description="",
            result=lambda _: None,
        )
        held = self._hub.files(self.branch)
        missing = [name for name, content in files.items() if not holds(held, name, content)]
        if missing:
            raise UsageError(
                f"the Hub leaves {', '.join(missing)} out of commits to {self._hub.repo_id}",
                "If the repository has a .gitignore that covers it, remove that line.",
            )

    def held(self, shards: Iterable[WrittenShard]) -> dict[str, WrittenShard]:
        """Those of `shards` that the branch holds, whole, by the Hub's own listing."""
        files = self._hub.files(self.branch)
        return {s.filename: s for s in shards if _is_same(files.get(s.filename), s)}

    def add(self, shards: list[tuple[WrittenShard, CommitOperationAdd]]) -> None:
        """Commit uploaded shards to the branch."""
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
        for shard in self.lacking(shards):
            raise not_there(shard.filename, self.branch)

    def lacking(self, shards: list[WrittenShard]) -> list[WrittenShard]:
        """Those of `shards` that the Hub's own listing of the branch does not show.

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
                    "Run the same command again; if it happens again, tell the Hub's support.",
                )
        return [shard for shard in shards if shard.filename not in files]

    def delete(self) -> None:
        """Remove the branch: all it holds is on the target."""
        self._hub.delete_branch(self.branch)


def not_there(names: str, branch: str) -> HubmergeError:
    """The error for files that were sent and are not in the listing."""
    return HubmergeError(
        f"{names}: not on {branch}, although the Hub took it",
        "If the repository has a .gitignore that covers it, remove that line.",
    )


def _is_same(file: RemoteFile | None, shard: WrittenShard) -> bool:
    return file is not None and (file.sha256, file.size) == (shard.sha256, shard.size)


def holds(files: dict[str, RemoteFile], name: str, content: bytes) -> bool:
    """Is there a file of this name and content?"""
    file = files.get(name)
    if file is None:
        return False
    return (file.sha256 or file.blob_id) in content_ids(content)


@dataclass(frozen=True, slots=True)
class Published:
    """The result of the final commit; `commit` may be an older one where nothing had changed."""

    url: str
    commit: str
    revision: str
    changed: bool


class Target:
    """The branch that is to be moved, once."""

    def __init__(self, hub: Hub, revision: str, head: str) -> None:
        self._hub, self.revision, self.head = hub, revision, head
        self.files = hub.files(head)

    def pull_requests(self) -> Iterator[tuple[str, Target]]:
        """Url and branch of our own open pull requests, newest first."""
        for url, revision in self._hub.own_pull_requests()[:_PULL_REQUESTS_SEARCHED]:
            head = self._hub.head(revision)
            if head is not None:
                yield url, Target(self._hub, revision, head)

    def published(self, fingerprint: str) -> dict[str, WrittenShard]:
        """The shards of this fingerprint that the target has already, whole."""
        for commit in self._history[:_COMMITS_SEARCHED]:
            record = parse_record(f"{commit.title}\n{commit.description}")
            if record is not None:
                if record.fingerprint != fingerprint:
                    return {}
                return {n: s for n, s in record.shards.items() if _is_same(self.files.get(n), s)}
        return {}

    @cached_property
    def _history(self) -> list[RemoteCommit]:
        return self._hub.commits(self.revision)

    def holds(self, shard: WrittenShard) -> bool:
        """Has the target this shard already?"""
        return _is_same(self.files.get(shard.filename), shard)

    def files_to_remove(self, planned: Collection[str]) -> list[str]:
        """The files of the older model that must not stay beside those of these names."""
        return files_to_remove(self.files, planned, is_adapter=ADAPTER_NAME in planned)

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
            if not holds(self.files, name, content)
        ]
        stale = self.files_to_remove({*shards, *small})
        return [*copies, *additions, *map(CommitOperationDelete, stale)]

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
            return self.unchanged(f"{self._hub.url}/tree/{self.revision}")
        find = self._find_own_pull_request if create_pr else self._find_own_commit
        try:
            return self._hub.commit(
                operations,
                revision=self.revision,
                message=message,
                description="\n\n".join(filter(None, [description, record.to_text()])),
                parent=self.head,
                create_pr=create_pr,
                result=self._published,
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

    def unchanged(self, url: str) -> Published:
        """The result where there is nothing to commit."""
        return Published(url, self.head, self.revision, changed=False)

    def _published(self, info: CommitInfo) -> Published:
        if info.pr_url is None:
            return self._published_here(info.oid)
        return Published(info.pr_url, info.oid, str(info.pr_revision), changed=True)

    def _published_here(self, commit: str) -> Published:
        url = f"{self._hub.url}/tree/{self.revision}"
        return Published(url, commit, self.revision, changed=True)

    def _find_own_commit(self, record: Record) -> Published | None:
        """The commit with this record, made on the branch since `head`."""
        for commit in self._hub.commits(self.revision):
            if commit.sha == self.head:
                break
            if record.to_text() in commit.description:
                return self._published_here(commit.sha)
        return None

    def _find_own_pull_request(self, record: Record) -> Published | None:
        """Our own open pull request whose commit has this record."""
        for url, revision in self._hub.own_pull_requests()[:_PULL_REQUESTS_SEARCHED]:
            newest = self._hub.commits(revision)[0]
            if record.to_text() in newest.description:
                return Published(url, newest.sha, revision, changed=True)
        return None


def content_ids(content: bytes) -> tuple[str, str]:
    """How a listing identifies this content: its sha256 as an LFS file, else its git blob id."""
    blob = b"blob %d\0" % len(content) + content
    git_id = hashlib.sha1(blob, usedforsecurity=False).hexdigest()
    return hashlib.sha256(content).hexdigest(), git_id


def newest_record(hub: Hub, revision: str) -> Record:
    """The record of the newest push to a branch.

    Raises:
        UsageError: no commit there is by hubmerge.
    """
    for commit in hub.commits(revision):
        record = parse_record(f"{commit.title}\n{commit.description}")
        if record is not None:
            return record
    raise UsageError(
        f"{hub.repo_id}@{revision} has no commit by hubmerge that says how it was made",
        "Download it and use --save-dir with the options that it was made with.",
    )
