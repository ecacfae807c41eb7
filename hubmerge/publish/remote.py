"""What a repository on the Hub holds, and the changes of a commit, as plain values."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file in a repository; `sha256` is None if it is not stored as LFS; size in bytes."""

    size: int
    sha256: str | None
    blob_id: str

    def matches(self, ids: Collection[str], size: int | None = None) -> bool:
        """Return whether the file has this content.

        Args:
            ids: the content's sha256, and its git blob id unless it is a shard's.
            size: in bytes, if known.
        """
        return (self.sha256 or self.blob_id) in ids and size in (None, self.size)


Listing = Mapping[str, RemoteFile]


@dataclass(frozen=True, slots=True)
class RemoteCommit:
    """A commit of a branch; `title` and `description` as its author wrote them."""

    sha: str
    title: str
    description: str
    time: datetime | None = None


@dataclass(frozen=True, slots=True)
class Refs:
    """The branches and tags of a repository, and the commit of each."""

    branches: Mapping[str, str]
    tags: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class PullRequest:
    """An open pull request, and the revision that holds its commits."""

    url: str
    revision: str


@dataclass(frozen=True, slots=True)
class NewCommit:
    """A commit that was made, on the branch or as a pull request."""

    sha: str
    pull_request: PullRequest | None = None


@dataclass(frozen=True, slots=True)
class AddFile:
    """Write a file: bytes, or a file on this machine, whose sha256 may be known."""

    path: str
    content: bytes | Path
    sha256: str | None = None


@dataclass(frozen=True, slots=True)
class UploadedFile:
    """Write a file whose content the Hub has already; `operation` is for `Hub.commit` alone."""

    path: str
    operation: Any


@dataclass(frozen=True, slots=True)
class CopyFile:
    """Give a file the content that it has on another branch, on the Hub's side."""

    path: str
    revision: str


@dataclass(frozen=True, slots=True)
class RemoveFile:
    """Remove a file."""

    path: str


Change = AddFile | UploadedFile | CopyFile | RemoveFile
