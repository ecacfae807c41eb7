"""Every error that hubmerge raises, and the exit code that the command gives for it.

::

    HubmergeError                 1   something failed that has no more exact class
    ├── BlobMissingError              the Hub has lost what was uploaded; it is sent again
    ├── UsageError                2   an option or a folder that cannot be used as asked
    ├── CheckpointError           3   the checkpoint is bad, incomplete or not one at all
    │   ├── NotACheckpointError       no checkpoint in the folder that was given
    │   ├── DamagedFileError          a data file is missing, too short, or lies about its content
    │   └── NoModelWeightsError       a checkpoint, but no key in it belongs to a model
    ├── UnsafeInputError          4   the input asks for something that must never be done
    ├── RetriesExhaustedError            5   the same command, run again, resumes
    │   └── TransientError              a fault of the Hub or the network, tried again for a while
    │       └── CommitConflictError             another commit to the repository was faster
    ├── AccessError               6   token or permission
    ├── InsufficientSpaceError               7   not enough disk or memory
    ├── MismatchError             8   what is stored is not what the checkpoint gives
    └── TargetChangedError        9   somebody else moved the target branch

The command gives 130 when it is interrupted and 143 when it is terminated.

Each message says what happened and to which file or tensor; ``hint`` says what to do next: what
fits the single case, or else what fits the class.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from errno import EDQUOT, EFBIG, ENOSPC

# What the operating system says where there is no room for a file.
DISK_FULL = (ENOSPC, EDQUOT, EFBIG)

# No message needs more; a hostile file could fill the terminal.
_MAX_MESSAGE = 4000

# Wherever it stood: a library may repeat the header that it was given.
_TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{16,}")


def printable(text: str) -> str:
    """`text` for a terminal: what would move the cursor or cannot be encoded is escaped."""
    if text.replace("\n", "").isprintable():
        return text
    return "".join(c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in text)


def _message(text: str) -> str:
    shown = _TOKEN.sub("hf_…", printable(text[:_MAX_MESSAGE]))
    return shown + "…" * (len(text) > _MAX_MESSAGE)


class HubmergeError(Exception):
    """Base of all errors of hubmerge.

    Args:
        message: what happened, and to which file or tensor.
        hint: what to do next, as one sentence; by default what fits most errors of the class.
    """

    exit_code = 1
    usual_hint = (
        "Run the same command again; if it ends so again, report it with what HF_DEBUG=1 adds."
    )

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(_message(message))
        self.hint = _message(hint or self.usual_hint)


class BlobMissingError(HubmergeError):
    """The Hub has lost content that was uploaded, and refuses a commit that names it."""


class UsageError(HubmergeError):
    """An option or a folder cannot be used as asked."""

    exit_code = 2
    usual_hint = "See what the command's --help says of it."


class CheckpointError(HubmergeError):
    """The checkpoint is bad or incomplete."""

    exit_code = 3
    usual_hint = "Copy the checkpoint again from where it was written, or use an earlier step."


class NotACheckpointError(CheckpointError):
    """There is no checkpoint in the folder that was given."""


class NoModelWeightsError(CheckpointError):
    """The checkpoint has no key that belongs to a model."""


class DamagedFileError(CheckpointError):
    """A data file is missing, too short, or does not hold what `.metadata` says.

    Args:
        file: the file's path relative to the checkpoint.
        problem: what is wrong with it.
        key: the tensor that cannot be read because of it.
        expected_bytes, actual_bytes: sizes, where a size is what is wrong.
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
        """The same error, now that the tensor is known."""
        return DamagedFileError(
            self.file,
            self.problem,
            key=self.key or key,
            expected_bytes=expected_bytes if self.expected_bytes is None else self.expected_bytes,
            actual_bytes=self.actual_bytes,
        )


class UnsafeInputError(HubmergeError):
    """The input asks for something that must never be done; nothing was executed."""

    exit_code = 4
    usual_hint = "Do not use this checkpoint unless you know who wrote it."


class RetriesExhaustedError(HubmergeError):
    """A passing fault outlasted the bounded retries; the same command resumes."""

    exit_code = 5
    usual_hint = "Run the same command again: it resumes where this run ended."


class TransientError(RetriesExhaustedError):
    """A fault that may go away by itself; `wait_seconds` where the Hub said how long."""

    attempts = 6

    def __init__(self, message: str, wait_seconds: float | None = None) -> None:
        super().__init__(message)
        self.wait_seconds = wait_seconds


class CommitConflictError(TransientError):
    """Another commit to the repository was faster.

    Of many ranks that commit at the same time one gets through at each attempt of the others, so
    that these may need more of them.
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
    usual_hint = "Free some room and run the same command again."


class MismatchError(HubmergeError):
    """Stored bytes are not those that the checkpoint gives."""

    exit_code = 8
    usual_hint = "Publish it again from the checkpoint."


class TargetChangedError(HubmergeError):
    """The target branch was moved by somebody else since the run began."""

    exit_code = 9
    usual_hint = "Look at the branch, then run the same command again to replace it."


def from_os_error(error: OSError, what: str = "") -> HubmergeError:
    """Our error for one of the operating system's; `what` names the file where it does not."""
    name = what or (str(error.filename) if error.filename is not None else "a file")
    reason = error.strerror or str(error) or type(error).__name__
    if error.errno in DISK_FULL:
        return InsufficientSpaceError(f"{name}: the disk is full ({reason})")
    return HubmergeError(f"{name}: {reason}", "Check that the file can be read and written.")


@contextmanager
def only_our_errors() -> Iterator[None]:
    """The boundary of the library: whatever else is raised inside becomes a HubmergeError."""
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
        # A panic in Rust (hf_xet, safetensors) is no Exception, as an interrupt is none.
        if not isinstance(error, Exception) and type(error).__module__ != "pyo3_runtime":
            raise
        if isinstance(error, RuntimeError) and "can't start new thread" in str(error):
            raise InsufficientSpaceError(
                "not enough memory for a thread", "Free some, or allow more."
            ) from error
        raise HubmergeError(
            f"unexpected {type(error).__name__}: {error}",
            "This is a defect of hubmerge: please report it, with what HF_DEBUG=1 adds.",
        ) from error
