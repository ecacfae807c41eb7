"""Every call to huggingface_hub: bounded retries, and its errors turned into ours.

huggingface_hub retries uploads, downloads and listings itself (`preupload_lfs_files`,
`list_repo_tree`); those are called through `_once`. It does not retry the rest; those go through
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
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

from hubmerge.errors import (
    AccessError,
    HubmergeError,
    TargetChangedError,
    TemporaryError,
    UsageError,
)

if TYPE_CHECKING:
    from huggingface_hub import CommitInfo, CommitOperationAdd

T = TypeVar("T")

_ATTEMPTS = 6
_FIRST_WAIT_SECONDS = 1.0
_LONGEST_WAIT_SECONDS = 60.0
_PASSING_STATUSES = frozenset({408, 429, 500, 502, 503, 504})
_RERUN = "Run the same command again: it resumes where this run ended."


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file in a repository; `sha256` is None where it is not stored as LFS; size in bytes."""

    path: str
    size: int
    sha256: str | None
    blob_id: str


@dataclass(frozen=True, slots=True)
class RemoteCommit:
    """A commit of a branch; `title` and `description` as its author wrote them."""

    sha: str
    title: str
    description: str


class Hub:
    """One model repository, as one user sees it.

    Args:
        token: None means the stored login, or the environment's, looked up at each call.
        sleep: how to wait between two attempts.
    """

    def __init__(
        self, repo_id: str, token: str | None, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        from huggingface_hub import HfApi
        from huggingface_hub.utils import (  # type: ignore[attr-defined]
            disable_progress_bars,
        )

        disable_progress_bars()
        # Its own messages ("No files have been modified …") are for people who call it by hand.
        logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
        self.repo_id = repo_id
        self._api = HfApi(token=token, library_name="hubmerge")
        self._sleep = sleep

    @property
    def url(self) -> str:
        return f"{self._api.endpoint}/{self.repo_id}"

    # Access and repository

    def user(self) -> str:
        """Who the token belongs to; raises AccessError where it cannot write at all."""
        account = self._retry("asking who the token belongs to", self._api.whoami)
        role = account.get("auth", {}).get("accessToken", {}).get("role")
        if role == "read":
            raise AccessError(
                f"the token of {account.get('name')} can only read",
                "Create a token with the 'write' role in the Hub's settings and log in with it.",
            )
        return str(account.get("name"))

    def ensure_repo(self, *, private: bool) -> bool:
        """Create the repository if it is missing; true where it was."""
        if self._exists():
            return False
        self._retry(
            f"creating {self.repo_id}",
            lambda: self._api.create_repo(self.repo_id, private=private or None, exist_ok=True),
        )
        return True

    def _exists(self) -> bool:
        from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

        def look() -> bool:
            try:
                self._api.repo_info(self.repo_id)
            except GatedRepoError:
                raise
            except RepositoryNotFoundError:
                return False
            return True

        return self._retry(f"looking up {self.repo_id}", look)

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

    def branches(self) -> list[str]:
        refs = self._retry("listing branches", lambda: self._api.list_repo_refs(self.repo_id))
        return [branch.name for branch in refs.branches]

    def tag_target(self, tag: str) -> str | None:
        """The commit that a tag names, or None where there is no such tag."""
        refs = self._retry("listing tags", lambda: self._api.list_repo_refs(self.repo_id))
        return next((t.target_commit for t in refs.tags if t.name == tag), None)

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
                f.path: RemoteFile(f.path, f.size, f.lfs.sha256 if f.lfs else None, f.blob_id)
                for f in tree
                if isinstance(f, RepoFile)
            }

        return self._once(f"listing {self.repo_id}@{revision}", walk)

    def commits(self, revision: str) -> list[RemoteCommit]:
        """The commits of a branch, newest first."""
        found = self._retry(
            f"listing the commits of {revision}",
            lambda: self._api.list_repo_commits(self.repo_id, revision=revision),
        )
        return [RemoteCommit(c.commit_id, c.title, c.message) for c in found]

    def read_text(self, path: str, revision: str, folder: Path) -> str:
        """The content of a small text file, by way of `folder`."""

        def download() -> str:
            local = self._api.hf_hub_download(
                self.repo_id, path, revision=revision, local_dir=folder
            )
            return Path(local).read_text(encoding="utf-8", errors="replace")

        return self._once(f"reading {path}", download)

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

    def upload(self, additions: list[CommitOperationAdd], revision: str) -> None:
        """Store content on the Hub, without a commit."""
        names = ", ".join(op.path_in_repo for op in additions)
        self._once(
            f"uploading {names}",
            lambda: self._api.preupload_lfs_files(
                self.repo_id, additions, revision=revision, free_memory=False
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
            already_done: asked before each further attempt, since a response can be lost after
                the commit was made; what it returns, if anything, is the result.

        Raises:
            TargetChangedError: the branch points elsewhere than `parent`.
        """
        return self._retry(
            f"committing to {revision}",
            lambda: result(
                self._api.create_commit(
                    self.repo_id,
                    operations,
                    commit_message=message,
                    commit_description=description,
                    revision=revision,
                    parent_commit=parent,
                    create_pr=create_pr,
                )
            ),
            already_done,
        )

    def open_pull_requests(self) -> list[tuple[str, str]]:
        """Url and revision of each open pull request, newest first."""

        def look() -> list[tuple[str, str]]:
            found = self._api.get_repo_discussions(
                self.repo_id, discussion_type="pull_request", discussion_status="open"
            )
            return [(d.url, str(d.git_reference)) for d in found]

        return self._retry("listing pull requests", look)

    # How calls are made

    def _once(self, doing: str, call: Callable[[], T]) -> T:
        with translated(doing), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return call()

    def _retry(
        self,
        doing: str,
        call: Callable[[], T],
        already_done: Callable[[], T | None] = lambda: None,
    ) -> T:
        for attempt in range(_ATTEMPTS):
            try:
                return self._once(doing, call)
            except _PassingError as error:
                if attempt == _ATTEMPTS - 1:
                    raise
                backoff = min(_FIRST_WAIT_SECONDS * 2**attempt, _LONGEST_WAIT_SECONDS)
                self._sleep(min(error.wait_seconds or backoff, _LONGEST_WAIT_SECONDS * 5))
            done = already_done()
            if done is not None:
                return done
        raise AssertionError("unreachable")


class _PassingError(TemporaryError):
    """A fault that may go away by itself; `wait_seconds` where the Hub said how long."""

    def __init__(self, message: str, wait_seconds: float | None = None) -> None:
        super().__init__(message, _RERUN)
        self.wait_seconds = wait_seconds


@contextmanager
def translated(doing: str) -> Iterator[None]:
    """Turn every exception of huggingface_hub, its HTTP library and hf_xet into one of ours."""
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError

    # The HTTP library is huggingface_hub's choice (httpx, then httpx2): its base class is found
    # through the one class of it that is public here.
    transport_error = cast("type[Exception]", HfHubHTTPError.__bases__[0])
    try:
        yield
    except HubmergeError:
        raise
    except HfHubHTTPError as error:
        raise _from_response(error, doing) from None
    except LocalTokenNotFoundError:
        raise AccessError("no token was found", _LOGIN) from None
    except HFValidationError as error:
        raise UsageError(f"{doing}: {_one_line(error)}") from None
    except transport_error as error:
        raise _PassingError(f"{doing}: {type(error).__name__}: {_one_line(error)}") from None
    except ConnectionError as error:  # hf_xet, whatever went wrong
        text = _one_line(error)
        if any(code in text for code in ("401", "403", "Unauthorized", "Forbidden")):
            raise AccessError(f"{doing}: the Hub refused the token ({text})", _LOGIN) from None
        raise _PassingError(f"{doing}: {text}") from None
    except (TimeoutError, RuntimeError, ValueError) as error:  # hf_xet
        raise _PassingError(f"{doing}: {type(error).__name__}: {_one_line(error)}") from None
    except OSError as error:
        if error.errno is None:  # hf_xet
            raise _PassingError(f"{doing}: {_one_line(error)}") from None
        raise HubmergeError(f"{doing}: {error.strerror}: {error.filename}") from None
    except Exception as error:
        if type(error).__module__.startswith("hf_xet"):
            raise AccessError(f"{doing}: {_one_line(error)}", _LOGIN) from None
        raise


_LOGIN = "Log in with `hf auth login`, or set HF_TOKEN to a token that may write to the repository."


def _from_response(error: Any, doing: str) -> HubmergeError:
    status = error.response.status_code
    text = f"{doing}: {error.server_message or _one_line(error)} (HTTP {status})"
    if status in _PASSING_STATUSES:
        wait = error.response.headers.get("Retry-After", "")
        return _PassingError(text, float(wait) if wait.isdigit() else None)
    if status in (401, 403):
        return AccessError(text, _LOGIN)
    if status == 404:
        return AccessError(
            text, "Check the name of the repository, and that the token may see it. " + _LOGIN
        )
    if status == 412:
        return TargetChangedError(text, _RERUN)
    return HubmergeError(text)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:500]
