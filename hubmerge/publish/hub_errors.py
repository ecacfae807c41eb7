"""Translate the exceptions of huggingface_hub, its HTTP library and hf_xet into ours."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from email.utils import parsedate_to_datetime
from typing import Any, cast

from hubmerge.errors import (
    AccessError,
    BlobMissingError,
    CommitConflictError,
    HubmergeError,
    RetriesExhaustedError,
    TargetChangedError,
    TransientError,
    UsageError,
)

_URL = re.compile(r"\w+://\S+")
_UNAUTHORIZED = re.compile(r"\b(?:401|Unauthorized)\b")
_FORBIDDEN = re.compile(r"\b(?:403|Forbidden)\b")
_TRANSIENT_STATUSES = frozenset({408, 429, 500, 502, 503, 504})

# The longest that is waited for because the Hub asks to.
LONGEST_WAIT_SECONDS = 300.0

# The quota of commits: "you can retry this action in about 1 hour".
_WAIT_TOLD = re.compile(
    r"\babout (?P<count>an?|\d+) (?P<unit>minute|hour)s?\b|\bhourly quota", re.IGNORECASE
)

_STORAGE = re.compile(r"\bstorage (?:limit|pattern|quota|space)|\bquota\b", re.IGNORECASE)
_REFUSALS = (
    (
        re.compile(r"\bresource group", re.IGNORECASE),
        "Ask an administrator of the organization for write access in the resource group.",
    ),
    (
        re.compile(
            r"\bprivate (?:storage|repository|repositories)|\bprivate\b.+\blimit", re.IGNORECASE
        ),
        "Free private storage of the owner, upgrade its plan, or publish to a public repository.",
    ),
    (
        _STORAGE,
        "Free storage of the owner, ask the Hub's support for more, or use another owner.",
    ),
    (
        re.compile(r"\brights to create\b|\bcreate a repository\b", re.IGNORECASE),
        "Use a token that may create repositories of this owner, or have the repository created.",
    ),
)


@contextmanager
def translated(doing: str) -> Iterator[None]:
    """Let only our errors out; they begin with what was being done."""
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        LocalTokenNotFoundError,
        OfflineModeIsEnabled,
        OIDCError,
    )

    # The HTTP library is huggingface_hub's choice (httpx, then httpx2): its base class is reached
    # through the only public class that derives from it.
    transport_error = cast("type[Exception]", HfHubHTTPError.__bases__[0])
    try:
        yield
    except HubmergeError:
        raise
    except HfHubHTTPError as error:
        raise _from_response(error, doing) from None
    except (LocalTokenNotFoundError, OIDCError) as error:
        raise AccessError(f"{doing}: no token: {_one_line(error)}") from None
    except OfflineModeIsEnabled:
        raise UsageError(
            "HF_HUB_OFFLINE is set, so nothing can be published",
            "Unset it, or use --no-push to write a folder.",
        ) from None
    except HFValidationError as error:
        raise UsageError(f"{doing}: {_one_line(error)}") from None
    except transport_error as error:
        raise TransientError(f"{doing}: {type(error).__name__}: {_one_line(error)}") from None
    except (OSError, RuntimeError, ValueError) as error:
        raise _from_builtin(error, doing) from None


def _from_builtin(error: Exception, doing: str) -> HubmergeError:
    """Translate an error of hf_xet, which raises Python's own, or of the operating system.

    huggingface_hub itself wraps what failed in an upload or a download in one of these.
    """
    if hasattr(error.__cause__, "response"):
        return _from_response(error.__cause__, doing)
    text = f"{doing}: {type(error).__name__}: {_one_line(error)}"
    if error.__cause__ is not None:  # anyone who has the url may upload by it
        cause = _URL.sub("…", _one_line(error.__cause__))
        text += f" ({type(error.__cause__).__name__}: {cause})"
    if type(error).__name__ == "XetAuthenticationError":  # hf_xet may not be installed
        return AccessError(f"{doing}: {_one_line(error)}")
    if isinstance(error, ConnectionError):
        # hf_xet names the url, and with it the repository, whose name may hold any number.
        said = _URL.sub("", str(error))
        is_forbidden = bool(_FORBIDDEN.search(said))
        if is_forbidden or _UNAUTHORIZED.search(said):
            text = f"{doing}: the Hub refused the token ({_one_line(error)})"
            return AccessError(text, _hint_for_refusal(403 if is_forbidden else 401, said))
        return TransientError(text)
    if isinstance(error, OSError) and error.errno is not None:
        return HubmergeError(f"{doing}: {error.strerror}: {error.filename}")
    return TransientError(text)


def _from_response(error: Any, doing: str) -> HubmergeError:
    status = error.response.status_code
    said = getattr(error, "server_message", None) or _one_line(error)
    text = f"{doing}: {said} (HTTP {status})"
    told = _WAIT_TOLD.search(said)
    if status == 429 and told is not None:
        return _quota_used_up(text, told)
    if status in _TRANSIENT_STATUSES:
        return TransientError(text, _wait_seconds(error.response.headers))
    if status in (401, 403, 404) or (status == 400 and _STORAGE.search(said)):
        return AccessError(text, _hint_for_refusal(status, said))
    if status == 409 and "in progress" in said:
        return CommitConflictError(text)
    if status == 412:
        return TargetChangedError(text)
    is_lost = status == 400 and "LFS pointer" in said
    return BlobMissingError(text) if is_lost else HubmergeError(text)


def _hint_for_refusal(status: int, said: str) -> str:
    """Return what helps; never to log in if the Hub has accepted the token."""
    if status == 401:
        return AccessError.usual_hint
    if status == 404:
        return "Check the name of the repository, and that the token has access to it."
    for pattern, hint in _REFUSALS:
        if pattern.search(said):
            return hint
    return "Use a token that has write access: the Hub accepted this one, but it lacks that right."


def _quota_used_up(text: str, told: re.Match[str]) -> RetriesExhaustedError:
    """Return the error for a quota that the Hub says will be free in minutes or hours.

    Its headers may be of another quota, which is free sooner.
    """
    count = int(told["count"]) if (told["count"] or "").isdigit() else 1
    unit = (told["unit"] or "hour").lower()
    seconds = count * (60.0 if unit == "minute" else 3600.0)
    if seconds <= LONGEST_WAIT_SECONDS:
        return TransientError(text, seconds)
    plural = "s" * (count != 1)
    return RetriesExhaustedError(
        text, f"Rerun in about {count} {unit}{plural}: the run resumes where this one ended."
    )


def _wait_seconds(headers: Mapping[str, str]) -> float | None:
    """Return how long the Hub asks to wait, by `Retry-After` or by the headers of a quota."""
    from huggingface_hub.utils import parse_ratelimit_headers  # type: ignore[attr-defined]

    after = headers.get("Retry-After", "").strip()
    if after.isdigit():
        return float(after)
    if after:
        try:
            return max(0.0, parsedate_to_datetime(after).timestamp() - time.time())
        except ValueError:
            return None
    quota = parse_ratelimit_headers(headers)
    return float(quota.reset_in_seconds) if quota is not None and quota.remaining == 0 else None


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:500]
