"""Every exception of huggingface_hub, its HTTP library and hf_xet, turned into one of ours."""

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
    TargetChangedError,
    TransientError,
    UsageError,
)

_URL = re.compile(r"\w+://\S+")
_REFUSED = re.compile(r"\b(?:401|403|Unauthorized|Forbidden)\b")
_PASSING_STATUSES = frozenset({408, 429, 500, 502, 503, 504})


@contextmanager
def translated(doing: str) -> Iterator[None]:
    """Raise only errors of ours, which begin with what was being done."""
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        LocalTokenNotFoundError,
        OfflineModeIsEnabled,
        OIDCError,
    )

    # The HTTP library is huggingface_hub's choice (httpx, then httpx2): its base class is found
    # through the one class of it that is public here.
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
    """An error of hf_xet, which raises Python's own; or of the operating system.

    huggingface_hub itself wraps what failed in an upload or a download in one of these.
    """
    if hasattr(error.__cause__, "response"):
        return _from_response(error.__cause__, doing)
    text = f"{doing}: {type(error).__name__}: {_one_line(error)}"
    if error.__cause__ is not None:  # a url may be one that anybody can upload by
        cause = _URL.sub("…", _one_line(error.__cause__))
        text += f" ({type(error.__cause__).__name__}: {cause})"
    if type(error).__name__ == "XetAuthenticationError":  # hf_xet may not be installed
        return AccessError(f"{doing}: {_one_line(error)}")
    if isinstance(error, ConnectionError):
        # hf_xet names the url, and with it the repository, whose name may hold any number.
        if _REFUSED.search(_URL.sub("", str(error))):
            return AccessError(f"{doing}: the Hub refused the token ({_one_line(error)})")
        return TransientError(text)
    if isinstance(error, OSError) and error.errno is not None:
        return HubmergeError(f"{doing}: {error.strerror}: {error.filename}")
    return TransientError(text)


def _from_response(error: Any, doing: str) -> HubmergeError:
    status = error.response.status_code
    said = getattr(error, "server_message", None) or _one_line(error)
    text = f"{doing}: {said} (HTTP {status})"
    if status in _PASSING_STATUSES:
        return TransientError(text, _wait_seconds(error.response.headers))
    if status in (401, 403):
        return AccessError(text)
    if status == 404:
        return AccessError(
            text,
            "Check the name of the repository, and that the token may see it. "
            + AccessError.usual_hint,
        )
    if status == 409 and "in progress" in said:
        return CommitConflictError(text)
    if status == 412:
        return TargetChangedError(text)
    is_lost = status == 400 and "LFS pointer" in said
    return BlobMissingError(text) if is_lost else HubmergeError(text)


def _wait_seconds(headers: Mapping[str, str]) -> float | None:
    """How long the Hub asks to wait: `Retry-After` (seconds or a date), or its quota's headers."""
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
