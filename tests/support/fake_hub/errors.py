"""Errors in the words and headers of the real Hub.

huggingface_hub picks its exception class from the `X-Error-Code` and `X-Error-Message` headers and
puts the message in front of the user, so both are part of the protocol, not decoration.
"""

from __future__ import annotations

from starlette.responses import JSONResponse, Response

BAD_CREDENTIALS = "Invalid credentials in Authorization header"
NOT_LOGGED_IN = "Invalid username or password."


class ApiError(Exception):
    """Any refusal; carries everything needed to build the response."""

    def __init__(
        self,
        status: int,
        message: str,
        code: str | None = None,
        headers: dict[str, str] | None = None,
        body: dict[str, object] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.headers = dict(headers or {})
        if code is not None:
            self.headers["X-Error-Code"] = code
        self.body = {"error": message, **(body or {})}

    def response(self) -> Response:
        """The refusal as the client sees it."""
        one_line = self.message.replace("\n", " ").encode("latin-1", "replace").decode("latin-1")
        headers = {"X-Error-Message": one_line, **self.headers}
        return JSONResponse(self.body, status_code=self.status, headers=headers)


def bad_request(message: str) -> ApiError:
    """A request that could never succeed."""
    return ApiError(400, message)


def forbidden(message: str) -> ApiError:
    """A valid token that may not do this."""
    return ApiError(403, message)


def conflict(message: str, **body: object) -> ApiError:
    """Something of that name is there already."""
    return ApiError(409, message, body=body)


def invalid_token() -> ApiError:
    """A token that the Hub does not know (any more)."""
    return ApiError(401, BAD_CREDENTIALS)


def login_required() -> ApiError:
    """An anonymous request to something that needs a user.

    The real Hub sends no code here: the client recognises a bare 401 by its https URL. Ours is
    plain http, so the code is added, and the client raises the same RepositoryNotFoundError.
    """
    challenge = {"WWW-Authenticate": 'Bearer realm="Authentication required", charset="UTF-8"'}
    return ApiError(401, NOT_LOGGED_IN, "RepoNotFound", challenge)


def repo_not_found() -> ApiError:
    """Missing, or private and not ours to see: the Hub does not say which."""
    return ApiError(404, "Repository not found", "RepoNotFound")


def revision_not_found(revision: str) -> ApiError:
    """The repo is there, the branch, tag or commit is not."""
    return ApiError(404, f"Invalid rev id: {revision}", "RevisionNotFound")


def entry_not_found(message: str, commit: str | None = None) -> ApiError:
    """The revision is there, the file is not. With `commit`, the client caches the absence."""
    headers = {"X-Repo-Commit": commit} if commit else None
    return ApiError(404, message, "EntryNotFound", headers)


def gated(repo_id: str, status: int) -> ApiError:
    """A gated repo, to somebody who has not been let in."""
    message = (
        f"Access to model {repo_id} is restricted and you are not in the authorized list. "
        f"Visit the page of {repo_id} to ask for access."
    )
    return ApiError(status, message, "GatedRepo")


def stale_parent() -> ApiError:
    """`parentCommit` is no longer the head of the branch."""
    return ApiError(412, "A commit has happened since. Please refresh and try again.")


def busy() -> ApiError:
    """Two commits to one repository at the same time: the second is not even looked at."""
    return conflict("Another commit operation is in progress for this repository")


def missing_blob(paths: list[str]) -> ApiError:
    """A commit that names content which nobody uploaded."""
    message = (
        "Your push was rejected because an LFS pointer pointed to a file that does not exist. "
        "For instance, this can happen if you used git push --no-verify to push your changes. "
        f"Offending file: - {' - '.join(paths)}"
    )
    return bad_request(message)
