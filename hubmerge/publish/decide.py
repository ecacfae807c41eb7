"""What is done once for a push, whatever the number of processes: preflight and the final commit.

See `hubmerge.publish.staging_branch` for the order in which the Hub sees it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hubmerge.conversion.shard_writer import WrittenShard
from hubmerge.errors import UsageError
from hubmerge.formatting import format_list
from hubmerge.hf_format.filenames import is_pickled_weights
from hubmerge.planning.card import CARD
from hubmerge.planning.options import record_options
from hubmerge.planning.publication import Publication
from hubmerge.progress import Progress
from hubmerge.publish.hub import Hub, Refs
from hubmerge.publish.secrets import refuse_secrets
from hubmerge.publish.staging_branch import (
    BRANCH_PREFIX,
    Published,
    Record,
    Staging,
    Target,
    content_ids,
)

DEFAULT_BRANCH = "main"

# What git takes as the name of a branch or tag, and no commit's.
_GIT_NAME = re.compile(
    r"(?![0-9a-f]{40}$|HEAD$|refs/)"
    r"[A-Za-z0-9_](?!.*(?:\.\.|//|/\.|\.lock(?:/|$)))[\w./+-]*(?<![./])"
)
_PULL_REQUEST = re.compile(r"refs/pr/\d+")
_STAGING_BRANCH = re.compile(re.escape(BRANCH_PREFIX) + "[0-9a-f]{16}")


@dataclass(frozen=True, slots=True)
class PushOptions:
    """Where and how to publish.

    Attributes:
        staging_dir: where shards stand between conversion and upload; a temporary folder if None.
        max_disk: bytes that it holds at most; two shards if None.
        clean: remove all other staging branches. A branch does not say whether its run was cut
            off or goes on: what a push to this repository that runs now has staged goes too, and
            that push fails.
    """

    repo_id: str
    private: bool = False
    revision: str = DEFAULT_BRANCH
    create_pr: bool = False
    tag: str | None = None
    commit_message: str | None = None
    commit_description: str | None = None
    token: str | None = None
    staging_dir: Path | None = None
    max_disk: int | None = None
    clean: bool = False


@dataclass(frozen=True, slots=True)
class Prepared:
    """What preflight found out.

    Attributes:
        held: shards that need neither conversion nor upload.
        published: the result, where all is published already.
    """

    held: dict[str, WrittenShard]
    published: Published | None = None


class Job:
    """One push to one branch."""

    def __init__(self, publication: Publication, options: PushOptions, fingerprint: str) -> None:
        self._publication, self._plan = publication, publication.plan
        self._options = options
        self.hub = Hub(options.repo_id, options.token)
        self.staging = Staging(self.hub, fingerprint)

    # Preflight

    def prepare(self, progress: Progress, check_disk: Callable[[], object]) -> Prepared:
        """Try everything that can fail before a byte is converted.

        What only looks comes first, what changes something on the Hub last.

        Args:
            check_disk: raises where the shards cannot be staged.
        """
        options, hub = self._options, self.hub
        _check_options(options)
        refuse_secrets(self._texts())
        refs = self._look()
        head = self._head(refs)
        # A new branch starts as a copy of the default one.
        base = head or refs.branches.get(DEFAULT_BRANCH)
        self._small = self._small_files(base)
        refuse_secrets(self._small)
        hub.validate_card(self._small[CARD].decode())
        done = None
        if head is not None:
            self._target = Target(hub, options.revision, head)
            done = self._published_already()
        self._refuse_taken_tag(refs, done)
        self._report_stale_branches(refs, progress)
        if done is not None:
            return done
        if self.staging.branch not in refs.branches:  # else less may be needed, as will be seen
            check_disk()
        if head is None:
            self._create(refs, progress)
        self._report_older_weights(progress)
        return Prepared(self._open_staging(refs, progress))

    def _texts(self) -> dict[str, bytes]:
        """All that people wrote and that will be public."""
        options = self._options
        texts = self._publication.texts()
        texts["--commit-message"] = (options.commit_message or "").encode()
        texts["--commit-description"] = (options.commit_description or "").encode()
        return texts

    def _look(self) -> Refs:
        """Access and branches; none where the repository is yet to be created."""
        hub, options = self.hub, self._options
        private = hub.is_private()
        if private is None:
            return Refs({}, {})
        hub.check_write()
        if options.private and not private:
            raise UsageError(
                f"{hub.repo_id} exists and is public, and --private does not change that",
                "Make it private in its settings, or leave --private out.",
            )
        return hub.refs()

    def _head(self, refs: Refs) -> str | None:
        """The commit that the target branch points at; None where it is yet to be created."""
        revision = self._options.revision
        if revision.startswith("refs/"):
            head = self.hub.head(revision)
            if head is None:
                raise UsageError(f"{self.hub.repo_id} has no pull request {revision}")
            return head
        if revision not in refs.branches and revision in refs.tags:
            raise UsageError(f"--revision {revision} is a tag, and only a branch can be moved")
        return refs.branches.get(revision)

    def _small_files(self, base: str | None) -> dict[str, bytes]:
        readme = None
        if self._publication.card.text is None and base is not None:
            readme = self.hub.read_text(CARD, base) if CARD in self.hub.files(base) else None
        return self._publication.small_files(readme)

    def _refuse_taken_tag(self, refs: Refs, done: Prepared | None) -> None:
        taken = refs.tags.get(self._options.tag or "")
        published = done.published.commit if done and done.published else None
        if taken is not None and taken != published:
            raise UsageError(
                f"the tag {self._options.tag!r} already names the commit {taken}",
                "Use another --tag; a tag that people rely on is never moved.",
            )

    def _published_already(self) -> Prepared | None:
        """The result, where the branch (or our pull request for it) holds just what is planned."""
        held = self._all_on(self._target)
        if held is not None:
            url = f"{self.hub.url}/tree/{self._target.revision}"
            return Prepared(held, self._target.unchanged(url))
        if self._options.create_pr:
            for url, pull in self._target.pull_requests():
                held = self._all_on(pull)
                if held is not None:
                    return Prepared(held, pull.unchanged(url))
        return None

    def _all_on(self, target: Target) -> dict[str, WrittenShard] | None:
        """The shards, where the branch holds them all and nothing else is missing or stale."""
        held = target.published(self.staging.fingerprint)
        if len(held) < len(self._plan.shards):
            return None
        return None if target.operations(held, self._small, self.staging) else held

    def _create(self, refs: Refs, progress: Progress) -> None:
        """The repository and the branch, where they are missing."""
        hub, revision = self.hub, self._options.revision
        if not refs.branches:
            hub.create_repo(private=self._options.private)
            progress.note(f"created {hub.url}")
        head = hub.head(revision)
        if head is None:
            hub.create_branch(revision, DEFAULT_BRANCH)
            head = hub.head(revision)
        if head is None:
            raise UsageError(f"{hub.repo_id} has no branch {revision!r} and none can be made")
        self._target = Target(hub, revision, head)

    def _open_staging(self, refs: Refs, progress: Progress) -> dict[str, WrittenShard]:
        held = self.staging.open(self._target.head, refs.branches)
        held |= self._target.published(self.staging.fingerprint)
        self.staging.add_files(self._small)
        for name in held:
            progress.note(f"{name} is on the Hub already")
        return held

    def _report_older_weights(self, progress: Progress) -> None:
        """What the commit will remove, and what it leaves."""
        planned = {shard.filename for shard in self._plan.shards} | set(self._small)
        stale = self._target.files_to_remove(planned)
        if stale:
            progress.note(f"the commit will remove the older model's {format_list(stale)}")
        pickled = [name for name in self._target.files if is_pickled_weights(name)]
        if pickled and not self._plan.is_adapter:
            progress.warn(
                f"{format_list(pickled)} stay in {self.hub.repo_id}: another model's weights, "
                "which old loaders may take; remove them by hand"
            )

    def _report_stale_branches(self, refs: Refs, progress: Progress) -> None:
        for branch in refs.branches:
            if _STAGING_BRANCH.fullmatch(branch) and branch != self.staging.branch:
                if self._options.clean:
                    self.hub.delete_branch(branch)
                    progress.note(f"removed the staging branch {branch} of another run")
                else:
                    progress.warn(
                        f"another run left the staging branch {branch}; --clean removes it"
                    )

    # The end

    def publish(self, shards: dict[str, WrittenShard], done: Published | None) -> Published:
        """The one commit, then the tag, then the staging branch goes."""
        options = self._options
        published = done or self._move(shards)
        if options.tag is not None:
            self.hub.create_tag(options.tag, published.commit)
        self.staging.delete()
        return published

    def _move(self, shards: dict[str, WrittenShard]) -> Published:
        options = self._options
        self.staging.check([s for s in shards.values() if not self._target.holds(s)])
        return self._target.move(
            self._target.operations(shards, self._small, self.staging),
            message=options.commit_message or "Upload model with hubmerge",
            description=options.commit_description or "",
            record=Record(self.staging.fingerprint, shards, self._recorded()),
            create_pr=options.create_pr,
        )

    def _recorded(self) -> dict[str, Any]:
        """What `verify` needs to know of this push."""
        files = {name: content_ids(content) for name, content in self._small.items()}
        recorded = record_options(self._publication.options, self._plan)
        return {**recorded, "files": files}


def _check_options(options: PushOptions) -> None:
    if not re.fullmatch(r"[^/]+/[^/]+", options.repo_id):
        raise UsageError(f"--repo-id {options.repo_id!r} is not of the form ORG/NAME")
    if options.create_pr and options.revision != DEFAULT_BRANCH:
        raise UsageError(
            f"--create-pr opens a pull request for {DEFAULT_BRANCH}, not for {options.revision}",
            "Leave one of --create-pr and --revision out.",
        )
    for option, name in (("tag", options.tag), ("revision", options.revision)):
        if name is None or (option == "revision" and _PULL_REQUEST.fullmatch(name)):
            continue
        if not _GIT_NAME.fullmatch(name) or name.startswith(BRANCH_PREFIX):
            raise UsageError(
                f"--{option} {name!r} is no name for a {'tag' if option == 'tag' else 'branch'}",
                f"Use letters, digits, '.', '-', '_' and '/'; {BRANCH_PREFIX} is for staging.",
            )
