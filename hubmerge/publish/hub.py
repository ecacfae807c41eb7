"""Every call to huggingface_hub, with bounded retries.

huggingface_hub retries uploads and listings itself (`preupload_lfs_files`, `list_repo_tree`,
`list_repo_commits`); those are called through `_once`. It does not retry the rest; those go through
`_retry`. Nothing is retried twice. Each call that changes something is idempotent, or its effect is
looked up before a retry.
"""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from secrets import SystemRandom
from typing import TYPE_CHECKING, Any, TypeVar

from hubmerge.errors import (
    AccessError,
    CommitConflictError,
    TargetChangedError,
    TransientError,
    UsageError,
)
from hubmerge.publish.hub_errors import translated

if TYPE_CHECKING:
    from huggingface_hub import CommitInfo, CommitOperationAdd

T = TypeVar("T")

_FIRST_WAIT_SECONDS = 1.0
_LONGEST_WAIT_SECONDS = 60.0
_LONGEST_ASKED_WAIT_SECONDS = 300.0

# huggingface_hub would wait for ever for a Hub that has stopped answering.
_SILENCE_SECONDS = 300.0
_WAITS = ("connect", "read", "write", "pool")

# How to wait between two attempts; tests have no time for that.
sleep: Callable[[float], None] = time.sleep


def _end_waiting(request: Any) -> None:
    """Bound every request of a session, also those made with ``timeout=None``.

    That is what `repo_info` and all listings pass, and it beats the session's own time-out.
    """
    limits = request.extensions.get("timeout", {})
    bounded = {kind: limits.get(kind) or _SILENCE_SECONDS for kind in _WAITS}
    request.extensions = {**request.extensions, "timeout": bounded}


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file in a repository; `sha256` is None where it is not stored as LFS; size in bytes."""

    size: int
    sha256: str | None
    blob_id: str


@dataclass(frozen=True, slots=True)
class RemoteCommit:
    """A commit of a branch; `title` and `description` as its author wrote them."""

    sha: str
    title: str
    description: str


@dataclass(frozen=True, slots=True)
class Refs:
    """The branches and tags of a repository, and the commit of each."""

    branches: dict[str, str]
    tags: dict[str, str]


@contextmanager
def quiet_hub() -> Iterator[None]:
    """No progress bars of huggingface_hub, and of its messages only errors.

    The others ("No files have been modified …") are for people who call it by hand.
    """
    from huggingface_hub.utils import (  # type: ignore[attr-defined]
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
    )

    had_bars, logger = not are_progress_bars_disabled(), logging.getLogger("huggingface_hub")
    level = logger.level
    disable_progress_bars()
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
        if had_bars:
            enable_progress_bars()


def _clean(token: str | None) -> str | None:
    """A token as it was meant; what no token has would be repeated by the HTTP library's error."""
    if token is None:
        return None
    token = token.strip()
    if not token or not token.isascii() or not token.isprintable() or " " in token:
        raise AccessError("--token: what was given is no token (a character that none has)")
    return token


class Hub:
    """One model repository, as one user sees it.

    Args:
        token: None means the stored login, or the environment's, looked up at each call.
    """

    def __init__(self, repo_id: str, token: str | None) -> None:
        from huggingface_hub import HfApi

        self.repo_id = repo_id
        self._api = HfApi(token=_clean(token), library_name="hubmerge")

    @property
    def url(self) -> str:
        return f"{self._api.endpoint}/{self.repo_id}"

    # Access and repository

    def is_private(self) -> bool | None:
        """Is the repository private? None where there is none, or none that the token may see."""
        from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

        def look() -> bool | None:
            try:
                return bool(self._api.repo_info(self.repo_id).private)
            except GatedRepoError:
                raise
            except RepositoryNotFoundError:
                return None

        return self._retry(f"looking up {self.repo_id}", look)

    def check_write(self) -> None:
        """Raises AccessError where the token may not write to the repository."""
        self._retry(
            f"checking write access to {self.repo_id}",
            lambda: self._api.auth_check(self.repo_id, write=True),
        )

    def create_repo(self, *, private: bool) -> None:
        """Create the repository; it is no error if it exists."""
        self._retry(
            f"creating {self.repo_id}",
            lambda: self._api.create_repo(self.repo_id, private=private or None, exist_ok=True),
        )

    def head(self, revision: str) -> str | None:
        """The commit that the branch points at, or None where there is no such branch."""
        from huggingface_hub.errors import RevisionNotFoundError

        def look() -> str | None:
            try:
                return self._api.repo_info(self.repo_id, revision=revision).sha
            except RevisionNotFoundError:
                return None

        return self._retry(f"looking up {self.repo_id}@{revision}", look)

    # Branches and tags

    def refs(self) -> Refs:
        found = self._retry("listing branches", lambda: self._api.list_repo_refs(self.repo_id))
        return Refs(
            {branch.name: branch.target_commit for branch in found.branches},
            {tag.name: tag.target_commit for tag in found.tags},
        )

    def create_branch(self, branch: str, from_revision: str) -> None:
        """Create a branch; it is no error if it exists."""
        self._retry(
            f"creating the branch {branch}",
            lambda: self._api.create_branch(
                self.repo_id, branch=branch, revision=from_revision, exist_ok=True
            ),
        )

    def delete_branch(self, branch: str) -> None:
        """Delete a branch; it is no error if it has gone."""
        from huggingface_hub.errors import HfHubHTTPError

        def delete() -> None:
            try:
                self._api.delete_branch(self.repo_id, branch=branch)
            except HfHubHTTPError as error:
                if error.response.status_code != 404:
                    raise

        self._retry(f"deleting the branch {branch}", delete)

    def create_tag(self, tag: str, revision: str) -> None:
        """Tag a commit; it is no error if it has that tag."""
        self._retry(
            f"tagging {revision[:12]} as {tag}",
            lambda: self._api.create_tag(self.repo_id, tag=tag, revision=revision, exist_ok=True),
        )

    # Content

    def files(self, revision: str) -> dict[str, RemoteFile]:
        """What the revision holds, by path: the Hub's own listing."""
        from huggingface_hub.hf_api import RepoFile

        def walk() -> dict[str, RemoteFile]:
            tree = self._api.list_repo_tree(self.repo_id, revision=revision, recursive=True)
            return {
                f.path: RemoteFile(f.size, f.lfs.sha256 if f.lfs else None, f.blob_id)
                for f in tree
                if isinstance(f, RepoFile)
            }

        return self._once(f"listing {self.repo_id}@{revision}", walk)

    def commits(self, revision: str) -> list[RemoteCommit]:
        """The commits of a branch, newest first."""
        found = self._once(
            f"listing the commits of {revision}",
            lambda: self._api.list_repo_commits(self.repo_id, revision=revision),
        )
        return [RemoteCommit(c.commit_id, c.title, c.message) for c in found]

    def read_text(self, path: str, revision: str) -> str:
        """The content of a small text file."""
        from huggingface_hub import get_session, hf_hub_url
        from huggingface_hub.utils import (  # type: ignore[attr-defined]
            build_hf_headers,
            hf_raise_for_status,
        )

        def download() -> str:
            # Not `hf_hub_download`, which retries some faults itself and others not at all.
            response = get_session().get(
                hf_hub_url(self.repo_id, path, revision=revision, endpoint=self._api.endpoint),
                headers=build_hf_headers(token=self._api.token, library_name="hubmerge"),
            )
            hf_raise_for_status(response)
            return bytes(response.content).decode("utf-8", "replace")

        return self._retry(f"reading {path}", download)

    def validate_card(self, content: str) -> None:
        """Raises UsageError where the Hub would refuse the model card."""
        from huggingface_hub import ModelCard

        def validate() -> None:
            try:
                ModelCard(content).validate(repo_type="model")
            except ValueError as error:
                raise UsageError(
                    f"the Hub refuses the model card's metadata: {error}",
                    "Mend the card (--card, or README.md in the assets folder) and try again.",
                ) from None

        self._retry("validating the model card", validate)

    # Uploads and commits

    def upload(
        self, additions: list[CommitOperationAdd], revision: str, *, create_pr: bool = False
    ) -> None:
        """Store content on the Hub, without a commit."""
        names = ", ".join(op.path_in_repo for op in additions)
        self._once(
            f"uploading {names}",
            lambda: self._api.preupload_lfs_files(
                self.repo_id,
                additions,
                revision=revision,
                create_pr=create_pr,
                free_memory=False,
            ),
        )

    def commit(
        self,
        operations: list[Any],
        *,
        revision: str,
        message: str,
        description: str,
        result: Callable[[CommitInfo], T],
        parent: str | None = None,
        create_pr: bool = False,
        already_done: Callable[[], T | None] = lambda: None,
    ) -> T:
        """Make one commit.

        Args:
            parent: fail if the branch no longer points at this commit.
            result: what to return of the commit.
            already_done: asked after a passing fault, since a response can be lost after the
                commit was made; what it returns, if anything, is the result.

        Raises:
            TargetChangedError: the branch points elsewhere than `parent`.
        """
        from huggingface_hub import CommitOperationAdd

        additions = [op for op in operations if isinstance(op, CommitOperationAdd)]
        if additions:
            # What huggingface_hub retries itself; what it does not is left for the commit.
            self.upload(additions, revision, create_pr=create_pr)
        doing = f"committing to {revision}"

        def make() -> T:
            try:
                with translated(doing):
                    made = self._api.create_commit(
                        self.repo_id,
                        operations,
                        commit_message=message,
                        commit_description=description,
                        revision=revision,
                        parent_commit=parent,
                        create_pr=create_pr,
                    )
            except TargetChangedError as error:
                if parent is not None:
                    raise
                # Two commits met on the Hub itself: ours was to be made on whatever is there.
                raise CommitConflictError(str(error)) from None
            return result(made)

        return self._retry(doing, make, already_done)

    def own_pull_requests(self) -> list[tuple[str, str]]:
        """Url and revision of each open pull request of the token's user, newest first.

        Anybody may open one, with any content and any words: those of others prove nothing.
        """
        user = self._user()
        if user is None:
            return []

        def look() -> list[tuple[str, str]]:
            found = self._api.get_repo_discussions(
                self.repo_id,
                author=user,
                discussion_type="pull_request",
                discussion_status="open",
            )
            return [(d.url, str(d.git_reference)) for d in found if d.author == user]

        return self._retry("listing pull requests", look)

    def _user(self) -> str | None:
        """Whose token it is; None where it may not ask that, as one of a CI job may not."""
        try:
            return self._retry(
                "looking up whose token it is", lambda: str(self._api.whoami(cache=True)["name"])
            )
        except AccessError:
            return None

    # How calls are made

    def _once(self, doing: str, call: Callable[[], T]) -> T:
        from huggingface_hub import get_session

        with translated(doing), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # Another session stands there after each failure to connect.
            hooks = get_session().event_hooks["request"]
            if _end_waiting not in hooks:
                hooks.append(_end_waiting)
            return call()

    def _retry(
        self,
        doing: str,
        call: Callable[[], T],
        already_done: Callable[[], T | None] = lambda: None,
    ) -> T:
        attempt = 0
        while True:
            attempt += 1
            try:
                return self._once(doing, call)
            except TransientError as error:
                done = already_done()
                if done is not None:
                    return done
                if attempt >= error.attempts:
                    raise
                sleep(min(error.wait_seconds or _backoff(attempt), _LONGEST_ASKED_WAIT_SECONDS))


def _backoff(attempt: int) -> float:
    """Twice as long each time, less by chance: ranks that met once would meet again and again.

    The chance is not that of `random`, which a training script seeds alike on all of them.
    """
    longest = min(_FIRST_WAIT_SECONDS * 2.0 ** (attempt - 1), _LONGEST_WAIT_SECONDS)
    return longest * SystemRandom().uniform(0.5, 1)
