"""Every error that hubmerge raises, and the exit code of the command for it.

::

    HubmergeError                   1   a failure without a class of its own
    ├── BlobMissingError                the Hub has lost uploaded content; it is uploaded again
    ├── UsageError                  2   an option or a folder that cannot be used as asked
    ├── CheckpointError             3   the checkpoint is bad or incomplete
    │   ├── NotACheckpointError         no checkpoint in the given folder
    │   ├── DamagedFileError            a data file is missing, too short, or has other content
    │   └── NoModelWeightsError         a checkpoint without any key of a model
    ├── UnsafeInputError            4   the input asks for something unsafe
    ├── RetriesExhaustedError       5   the same command, run again, resumes
    │   └── TransientError              a fault of the Hub or the network, retried for a while
    │       └── CommitConflictError     another commit to the repository was faster
    ├── AccessError                 6   token or permission
    ├── InsufficientSpaceError      7   not enough disk or memory
    ├── MismatchError               8   stored content differs from the checkpoint
    └── TargetChangedError          9   somebody else moved the target branch

The command exits with 130 when it is interrupted and with 143 when it is terminated.

Each message says what happened to which file or tensor; ``hint`` says what to do next, by default
what suits most errors of the class.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from errno import EDQUOT, EFBIG, ENOSPC

# The operating system's errors when there is no space for a file.
DISK_FULL = (ENOSPC, EDQUOT, EFBIG)

# No message needs more characters; a hostile file could fill the terminal.
_MAX_MESSAGE = 4000

# Anywhere in a message: a library may repeat the request header that it was given.
_TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{16,}")


def printable(text: str) -> str:
    """Return `text` with control and unencodable characters escaped, for a terminal."""
    if text.replace("\n", "").isprintable():
        return text
    return "".join(c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in text)


def _message(text: str) -> str:
    shown = _TOKEN.sub("hf_…", printable(text[:_MAX_MESSAGE]))
    return shown + "…" * (len(text) > _MAX_MESSAGE)


class HubmergeError(Exception):
    """The base class of all errors of hubmerge.

    Args:
        message: what happened to which file or tensor.
        hint: what to do next, in one sentence; by default what suits most errors of the class.
    """

    exit_code = 1
    usual_hint = (
        "Run the same command again; if it fails again, report it with the output of HF_DEBUG=1."
    )

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(_message(message))
        self.hint = _message(hint or self.usual_hint)


class BlobMissingError(HubmergeError):
    """The Hub has lost uploaded content, and refuses a commit that refers to it."""


class UsageError(HubmergeError):
    """An option or a folder cannot be used as asked."""

    exit_code = 2
    usual_hint = "See --help of the command."


class CheckpointError(HubmergeError):
    """The checkpoint is bad or incomplete."""

    exit_code = 3
    usual_hint = "Copy the checkpoint again from where it was written, or use an earlier step."


class NotACheckpointError(CheckpointError):
    """There is no checkpoint in the given folder."""


class NoModelWeightsError(CheckpointError):
    """The checkpoint has no key that belongs to a model."""


class DamagedFileError(CheckpointError):
    """A data file is missing, too short, or does not hold what `.metadata` says.

    Args:
        file: the file's path relative to the checkpoint.
        problem: what is wrong with it.
        key: the tensor that cannot be read because of it.
        expected_bytes, actual_bytes: sizes, if the size is wrong.
    """

    def __init__(
        self,
        file: str,
        problem: str,
        *,
        key: str | None = None,
        expected_bytes: int | None = None,
        actual_bytes: int | None = None,
    ) -> None:
        message = f"{file}: {problem}"
        if key is not None:
            message += f", while reading {key!r}"
        if expected_bytes is not None:
            message += f" (expected {expected_bytes:,} bytes, found {actual_bytes or 0:,})"
        super().__init__(message)
        self.file = file
        self.problem = problem
        self.key = key
        self.expected_bytes = expected_bytes
        self.actual_bytes = actual_bytes

    def while_reading(self, key: str | None, expected_bytes: int | None = None) -> DamagedFileError:
        """Return the same error with the tensor that was being read."""
        return DamagedFileError(
            self.file,
            self.problem,
            key=self.key or key,
            expected_bytes=expected_bytes if self.expected_bytes is None else self.expected_bytes,
            actual_bytes=self.actual_bytes,
        )


class UnsafeInputError(HubmergeError):
    """The input asks for something unsafe; nothing was executed."""

    exit_code = 4
    usual_hint = "Do not use this checkpoint unless you know who wrote it."


class RetriesExhaustedError(HubmergeError):
    """A transient fault outlasted the bounded retries; the same command resumes."""

    exit_code = 5
    usual_hint = "Run the same command again: it resumes where this run ended."


class TransientError(RetriesExhaustedError):
    """A fault that may go away by itself; `wait_seconds` is what the Hub asks to wait, if known."""

    attempts = 6

    def __init__(self, message: str, wait_seconds: float | None = None) -> None:
        super().__init__(message)
        self.wait_seconds = wait_seconds


class CommitConflictError(TransientError):
    """Another commit to the repository was faster.

    If many ranks commit at the same time, one succeeds at each attempt, so that the others need
    more attempts.
    """

    attempts = 12


class AccessError(HubmergeError):
    """The token is missing, revoked, or may not do what was asked."""

    exit_code = 6
    usual_hint = (
        "Log in with `hf auth login`, or set HF_TOKEN to a token that may write to the repository."
    )


class InsufficientSpaceError(HubmergeError):
    """There is not enough disk or memory."""

    exit_code = 7
    usual_hint = "Free some space and run the same command again."


class MismatchError(HubmergeError):
    """Stored content differs from what the checkpoint gives."""

    exit_code = 8
    usual_hint = "Publish it again from the checkpoint."


class TargetChangedError(HubmergeError):
    """The target branch was moved by somebody else since the run began."""

    exit_code = 9
    usual_hint = "Look at the branch, then run the same command again to replace it."


def from_os_error(error: OSError, what: str = "") -> HubmergeError:
    """Return the HubmergeError for an OSError; `what` names the file if `error` does not."""
    name = what or (str(error.filename) if error.filename is not None else "a file")
    reason = error.strerror or str(error) or type(error).__name__
    if error.errno in DISK_FULL:
        return InsufficientSpaceError(f"{name}: the disk is full ({reason})")
    return HubmergeError(f"{name}: {reason}", "Check that the file can be read and written.")


@contextmanager
def only_our_errors() -> Iterator[None]:
    """Turn every other exception into a HubmergeError, at the boundary of the library."""
    try:
        yield
    except HubmergeError:
        raise
    except OSError as error:
        raise from_os_error(error) from error
    except MemoryError as error:
        raise InsufficientSpaceError(
            "not enough memory", "Free some, or use another machine."
        ) from error
    except BaseException as error:
        # Like an interrupt, a panic in Rust (hf_xet, safetensors) is not an Exception.
        if not isinstance(error, Exception) and type(error).__module__ != "pyo3_runtime":
            raise
        if isinstance(error, RuntimeError) and "can't start new thread" in str(error):
            raise InsufficientSpaceError(
                "not enough memory for a thread", "Free some, or allow more."
            ) from error
        raise HubmergeError(
            f"unexpected {type(error).__name__}: {error}",
            "This is a bug in hubmerge: please report it with the output of HF_DEBUG=1.",
        ) from error
