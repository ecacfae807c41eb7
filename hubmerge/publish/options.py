"""Where and how to publish."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from hubmerge.errors import UsageError

DEFAULT_BRANCH = "main"

# Of staging branches.
BRANCH_PREFIX = "hubmerge/"

# What git takes as the name of a branch or tag, and no commit's.
_GIT_NAME = re.compile(
    r"(?![0-9a-f]{40}$|HEAD$|refs/)"
    r"[A-Za-z0-9_](?!.*(?:\.\.|//|/\.|\.lock(?:/|$)))[\w./+-]*(?<![./])"
)
_PULL_REQUEST = re.compile(r"refs/pr/\d+")


@dataclass(frozen=True, slots=True)
class PushOptions:
    """Where and how to publish.

    Attributes:
        staging_dir: directory for shards awaiting upload; a temporary one if None.
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

    def __post_init__(self) -> None:
        """Check names before anything is read, converted or asked."""
        if not re.fullmatch(r"[^/]+/[^/]+", self.repo_id):
            raise UsageError(f"--repo-id {self.repo_id!r} is not of the form ORG/NAME")
        if self.create_pr and self.revision != DEFAULT_BRANCH:
            raise UsageError(
                f"--create-pr opens a pull request for {DEFAULT_BRANCH}, not for {self.revision}",
                "Leave one of --create-pr and --revision out.",
            )
        for option, name in (("tag", self.tag), ("revision", self.revision)):
            if name is None or (option == "revision" and _PULL_REQUEST.fullmatch(name)):
                continue
            if not _GIT_NAME.fullmatch(name) or name.startswith(BRANCH_PREFIX):
                raise UsageError(
                    f"--{option} {name!r} is no name for a "
                    f"{'tag' if option == 'tag' else 'branch'}",
                    f"Use letters, digits, '.', '-', '_' and '/'; {BRANCH_PREFIX} is for staging.",
                )
