"""Every call to huggingface_hub, with bounded retries; nothing else knows its types.

huggingface_hub retries uploads and listings itself (`preupload_lfs_files`, `list_repo_tree`,
`list_repo_commits`); those are called through `_once`. It does not retry the rest; those go through
`_retry`. Nothing is retried twice. Each call that changes something is idempotent, or its effect is
looked up before a retry.
"""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from secrets import SystemRandom
from typing import Any, TypeVar

from hubmerge.errors import (
    AccessError,
    CommitConflictError,
    TargetChangedError,
    TransientError,
    UsageError,
)
from hubmerge.publish.hub_errors import LONGEST_WAIT_SECONDS, translated
from hubmerge.publish.options import parse_token
from hubmerge.publish.remote import (
    AddFile,
    Change,
    CopyFile,
    NewCommit,
    PullRequest,
    Refs,
    RemoteCommit,
    RemoteFile,
    RemoveFile,
    UploadedFile,
)

T = TypeVar("T")

_FIRST_WAIT_SECONDS = 1.0
_LONGEST_WAIT_SECONDS = 60.0

# huggingface_hub would wait forever for a Hub that has stopped answering.
_SILENCE_SECONDS = 300.0
# How many of our own pull requests are looked at.
_MAX_PULL_REQUESTS = 20

_WAITS = ("connect", "read", "write", "pool")

# How to wait between two attempts; replaced in tests.
sleep: Callable[[float], None] = time.sleep


def _end_waiting(request: Any) -> None:
    """Give a request a timeout, even if it was made with ``timeout=None``.

    That is what `repo_info` and all listings pass, and it overrides the session's own timeout.
    """
    limits = request.extensions.get("timeout", {})
    bounded = {kind: limits.get(kind) or _SILENCE_SECONDS for kind in _WAITS}
    request.extensions = {**request.extensions, "timeout": bounded}


@contextmanager
def quiet_hub() -> Iterator[None]:
    """Turn off huggingface_hub's progress bars, and its messages below errors.

    Those ("No files have been modified …") are meant for people who call it directly.
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


class Hub:
    """One model repository, as one user sees it.

    Args:
        token: None means the stored login, or the environment's, looked up at each call.
        note: told of each retry.
    """

    def __init__(
        self, repo_id: str, token: str | None, note: Callable[[str], None] = lambda _: None
    ) -> None:
        from huggingface_hub import HfApi

        self.repo_id, self._note = repo_id, note
        clean = parse_token(token, "--token") if token is not None else None
        self._api = HfApi(token=clean, library_name="hubmerge")

    @property
    def url(self) -> str:
        return f"{self._api.endpoint}/{self.repo_id}"

    # Access and repository

    def is_private(self) -> bool | None:
        """Return whether the repository is private; None if none exists that the token may see."""
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
        """Raise AccessError if the token may not write to the repository."""
        self._retry(
            f"checking write access to {self.repo_id}",
            lambda: self._api.auth_check(self.repo_id, write=True),
        )

    def account(self) -> dict[str, Any] | None:
        """Return what the Hub says of the token and its user; None if the token may not ask.

        That of a CI job may not.

        Raises:
            AccessError: there is no token, or it is not valid.
        """
        from huggingface_hub.errors import HfHubHTTPError

        def ask() -> dict[str, Any] | None:
            try:
                return dict(self._api.whoami(cache=True))
            except HfHubHTTPError as error:
                if error.response.status_code == 403:
                    return None
                raise

        return self._retry("looking up whose token it is", ask)

    def create_repo(self, *, private: bool) -> None:
        """Create the repository unless it exists."""
        self._retry(
            f"creating {self.repo_id}",
            lambda: self._api.create_repo(self.repo_id, private=private or None, exist_ok=True),
        )

    def head(self, revision: str) -> str | None:
        """Return the commit that the branch points at; None if the branch does not exist."""
        from huggingface_hub.errors import RevisionNotFoundError

        def look() -> str | None:
            try:
                return self._api.repo_info(self.repo_id, revision=revision).sha
            except RevisionNotFoundError:
                return None

        return self._retry(f"looking up {self.repo_id}@{revision}", look)

    # Branches and tags

    def refs(self) -> Refs:
        """List the branches and tags."""
        found = self._retry("listing branches", lambda: self._api.list_repo_refs(self.repo_id))
        return Refs(
            {branch.name: branch.target_commit for branch in found.branches},
            {tag.name: tag.target_commit for tag in found.tags},
        )

    def create_branch(self, branch: str, from_revision: str) -> None:
        """Create a branch unless it exists."""
        self._retry(
            f"creating the branch {branch}",
            lambda: self._api.create_branch(
                self.repo_id, branch=branch, revision=from_revision, exist_ok=True
            ),
        )

    def delete_branch(self, branch: str) -> None:
        """Delete a branch, if it exists."""
        from huggingface_hub.errors import HfHubHTTPError

        def delete() -> None:
            try:
                self._api.delete_branch(self.repo_id, branch=branch)
            except HfHubHTTPError as error:
                if error.response.status_code != 404:
                    raise

        self._retry(f"deleting the branch {branch}", delete)

    def create_tag(self, tag: str, revision: str) -> None:
        """Tag a commit, unless it has that tag."""
        self._retry(
            f"tagging {revision[:12]} as {tag}",
            lambda: self._api.create_tag(self.repo_id, tag=tag, revision=revision, exist_ok=True),
        )

    # Content

    def files(self, revision: str) -> dict[str, RemoteFile]:
        """Return the Hub's own listing of a revision, by path."""
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
        """List the commits of a branch, newest first."""
        found = self._once(
            f"listing the commits of {revision}",
            lambda: self._api.list_repo_commits(self.repo_id, revision=revision),
        )
        return [RemoteCommit(c.commit_id, c.title, c.message, c.created_at) for c in found]

    def read_text(self, path: str, revision: str) -> str:
        """Download a small text file."""
        from huggingface_hub import get_session, hf_hub_url
        from huggingface_hub.utils import (  # type: ignore[attr-defined]
            build_hf_headers,
            hf_raise_for_status,
        )

        def download() -> str:
            # Not `hf_hub_download`, which retries some faults itself and others never.
            response = get_session().get(
                hf_hub_url(self.repo_id, path, revision=revision, endpoint=self._api.endpoint),
                headers=build_hf_headers(token=self._api.token, library_name="hubmerge"),
            )
            hf_raise_for_status(response)
            return bytes(response.content).decode("utf-8", "replace")

        return self._retry(f"reading {path}", download)

    def validate_card(self, content: str) -> None:
        """Raise UsageError if the Hub would refuse the model card."""
        from huggingface_hub import ModelCard

        def validate() -> None:
            try:
                ModelCard(content).validate(repo_type="model")
            except ValueError as error:
                raise UsageError(
                    f"the Hub refuses the model card's metadata: {error}",
                    "Correct the card (--card, or README.md among the assets) and rerun.",
                ) from None

        self._retry("validating the model card", validate)

    # Uploads and commits

    def upload(self, file: AddFile, revision: str) -> UploadedFile:
        """Store a file's content on the Hub, without a commit."""
        operation = _operation(file)
        self._upload([operation], revision, create_pr=False)
        return UploadedFile(file.path, operation)

    def _upload(self, additions: list[Any], revision: str, *, create_pr: bool) -> None:
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
        changes: Sequence[Change],
        *,
        revision: str,
        message: str,
        description: str = "",
        parent: str | None = None,
        create_pr: bool = False,
        already_done: Callable[[], NewCommit | None] = lambda: None,
    ) -> NewCommit:
        """Make one commit.

        Args:
            parent: fail if the branch no longer points at this commit.
            already_done: called after a transient fault, since a response can be lost after the
                commit was made; what it returns, if anything, is the result.

        Raises:
            TargetChangedError: the branch points elsewhere than `parent`.
        """
        from huggingface_hub import CommitOperationAdd

        operations = [_operation(change) for change in changes]
        additions = [op for op in operations if isinstance(op, CommitOperationAdd)]
        if additions:
            # What huggingface_hub retries itself; what it does not is left for the commit.
            self._upload(additions, revision, create_pr=create_pr)
        doing = f"committing to {revision}"

        def make() -> NewCommit:
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
            pull = PullRequest(made.pr_url, str(made.pr_revision)) if made.pr_url else None
            return NewCommit(made.oid, pull)

        return self._retry(doing, make, already_done)

    def own_pull_requests(self) -> list[PullRequest]:
        """List the newest open pull requests of the token's user, newest first.

        Anyone may open one, with any content and any words: those of others prove nothing.
        """
        try:
            account = self.account()
        except AccessError:
            return []
        if account is None:
            return []
        user = str(account["name"])

        def look() -> list[PullRequest]:
            found = self._api.get_repo_discussions(
                self.repo_id,
                author=user,
                discussion_type="pull_request",
                discussion_status="open",
            )
            ours = (PullRequest(d.url, str(d.git_reference)) for d in found if d.author == user)
            return list(islice(ours, _MAX_PULL_REQUESTS))

        return self._retry("listing pull requests", look)

    # How calls are made

    def _once(self, doing: str, call: Callable[[], T]) -> T:
        from huggingface_hub import get_session

        with translated(doing), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # huggingface_hub makes another session after each failure to connect.
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
                wait = min(error.wait_seconds or _backoff(attempt), LONGEST_WAIT_SECONDS)
                self._note(f"{error}; retrying in {wait:.0f} s ({attempt}/{error.attempts - 1})")
                sleep(wait)


def _backoff(attempt: int) -> float:
    """Return how long to wait: twice as long each time, with jitter to keep ranks apart.

    The jitter does not come from `random`, which a training script seeds alike on all ranks.
    """
    longest = min(_FIRST_WAIT_SECONDS * 2.0 ** (attempt - 1), _LONGEST_WAIT_SECONDS)
    return longest * SystemRandom().uniform(0.5, 1)


def _operation(change: Change) -> Any:
    """Return huggingface_hub's own type for a change."""
    from huggingface_hub import CommitOperationAdd, CommitOperationCopy, CommitOperationDelete

    if isinstance(change, UploadedFile):
        return change.operation
    if isinstance(change, CopyFile):
        return CommitOperationCopy(change.path, change.path, src_revision=change.revision)
    if isinstance(change, RemoveFile):
        return CommitOperationDelete(change.path)
    addition = CommitOperationAdd(change.path, change.content)
    if change.sha256 is not None:
        # It was hashed while it was written: nobody needs to read it for that again.
        addition.upload_info.sha256 = bytes.fromhex(change.sha256)
    return addition
