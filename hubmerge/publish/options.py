"""The options that decide where and how a model is published."""

from __future__ import annotations

import re
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Any

from hubmerge.errors import AccessError, UsageError
from hubmerge.options import Options, option, parse_path, parse_size

DEFAULT_BRANCH = "main"

# Of staging branches.
BRANCH_PREFIX = "hubmerge/"

_REPO_ID = re.compile(r"[^/]+/[^/]+")
# What git accepts as the name of a branch or tag, and never as a commit's.
_GIT_NAME = re.compile(
    r"(?![0-9a-f]{40}$|HEAD$|refs/)"
    r"[A-Za-z0-9_](?!.*(?:\.\.|//|/\.|\.lock(?:/|$)))[\w./+-]*(?<![./])"
)
_PULL_REQUEST = re.compile(r"refs/pr/\d+")


def parse_token(value: Any, flag: str) -> str:
    """Return a token without the space around it; the HTTP library's errors would repeat another.

    Raises:
        AccessError: it has a character that no token has.
    """
    token = str(value).strip()
    if not token or not token.isascii() or not token.isprintable() or " " in token:
        raise AccessError(f"{flag}: is empty, or contains a space or a non-ASCII character")
    return token


@dataclass(frozen=True, kw_only=True)
class PushOptions(Options):
    """Where and how to publish; keyword arguments of `push`.

    Attributes:
        repo_id: ``ORG/NAME``; created if missing.
        private: create the repository private.
        revision: the branch to move, once; created if missing.
        create_pr: open a pull request with the one commit instead.
        tag: a tag for the commit.
        commit_message: the commit's summary.
        commit_description: the commit's body.
        token: None means the stored login.
        staging_dir: directory for shards awaiting upload; a temporary one if None.
        max_disk: maximum bytes in `staging_dir`; two shards for each process if None.
        clean: remove all other staging branches. A branch does not say whether its run was cut
            off or goes on: what a push to this repository that runs now has staged goes too, and
            that push fails.
        keep_others: leave the target's other weights, which the commit would remove.
    """

    title = "Where to publish"

    repo_id: str = option(
        MISSING, "Repository to publish to; created if missing.", metavar="ORG/NAME"
    )
    private: bool = option(False, "Create the repository private.")
    revision: str = option(
        DEFAULT_BRANCH, "Branch to publish to; created if missing.", metavar="BRANCH"
    )
    create_pr: bool = option(False, "Open a pull request instead of moving the branch.")
    tag: str | None = option(None, "Tag the commit.", metavar="NAME")
    commit_message: str | None = option(
        None,
        "Commit summary.",
        metavar="TEXT",
        if_unset="Upload model with hubmerge",
    )
    commit_description: str | None = option(None, "Commit body.", metavar="TEXT")
    token: str | None = option(
        None,
        "Access token.",
        metavar="TOKEN",
        if_unset="HF_TOKEN or the stored login",
        parse=parse_token,
        is_secret=True,
    )
    staging_dir: Path | None = option(
        None,
        "Directory for shards awaiting upload.",
        metavar="DIR",
        if_unset="a temporary one",
        parse=parse_path,
    )
    max_disk: int | None = option(
        None,
        "Maximum size of the shards awaiting upload on this machine, such as 20GB.",
        metavar="SIZE",
        if_unset="two shards for each process",
        parse=parse_size,
    )
    clean: bool = option(
        False, "Remove staging branches of other runs, including runs still in progress."
    )
    keep_others: bool = option(False, "Keep other weights that the target branch holds.")

    def __post_init__(self) -> None:
        """Check names before anything is read, converted or asked."""
        super().__post_init__()
        if not _REPO_ID.fullmatch(self.repo_id):
            raise UsageError(f"--repo-id {self.repo_id!r}: is not of the form ORG/NAME")
        if self.create_pr and self.revision != DEFAULT_BRANCH:
            raise UsageError(
                f"--create-pr: opens a pull request for {DEFAULT_BRANCH}, not for {self.revision}",
                "Leave out --create-pr or --revision.",
            )
        if self.tag is not None:
            _check_git_name("--tag", self.tag, "tag")
        if not _PULL_REQUEST.fullmatch(self.revision):
            _check_git_name("--revision", self.revision, "branch")


def _check_git_name(flag: str, name: str, kind: str) -> None:
    if not _GIT_NAME.fullmatch(name) or name.startswith(BRANCH_PREFIX):
        raise UsageError(
            f"{flag} {name!r}: is no name for a {kind}",
            f"Use letters, digits, '.', '-', '_' and '/'; {BRANCH_PREFIX} is for staging.",
        )
