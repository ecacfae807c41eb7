"""The ranks of one job, started by torchrun; a single process is a job with one rank.

``torchrun --nnodes N --nproc-per-node M -m hubmerge …``: torchrun's own key-value store carries
results and errors. A rank that waits for another checks whether one has failed, so that an error
in one ends all of them, with its message and its exit code.
"""

from __future__ import annotations

import base64
import json
import os
import pickle
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any, TypeVar

from hubmerge import errors
from hubmerge.errors import HubmergeError, RetriesExhaustedError, UsageError

T = TypeVar("T")

_FAILED, _REPORTED = "failed", "reported"
_LOOK_EVERY_SECONDS = 0.5

# Long enough for nodes that import Python packages from a slow shared disk.
_START_WITHIN = timedelta(minutes=3)

# How long a failed rank stays alive: when it exits, torchrun kills rank 0, which reports the error.
_REPORT_WITHIN_SECONDS = 15.0


class Ranks:
    """The ranks of this job as seen from one of them; this base class is a single process."""

    rank = 0
    count = 1
    local_count = 1
    """Processes on this machine."""

    def on_rank_zero(self, do: Callable[[], T]) -> T:
        """Call `do` on rank 0 alone; return its result, or raise its error, on every rank."""
        found = self.all_gather([do()] if self.rank == 0 else [])
        return found[0][0]

    def all_gather(self, value: T) -> list[T]:
        """Return every rank's value, by rank; raise the error of a rank that failed."""
        return [value]

    def check(self) -> None:
        """Raise the error of another rank if one has failed."""

    def fail(self, error: BaseException) -> bool:  # noqa: ARG002 - a single process has no others
        """Publish the error of this rank; return whether rank 0 reports it to the user."""
        return True

    def reported(self) -> None:
        """Let the other ranks exit: the outcome was reported to the user."""


class TorchrunRanks(Ranks):
    """The ranks of a job that torchrun started."""

    def __init__(self) -> None:
        import torch.distributed as dist

        self.rank, self.count = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        self.local_count = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        # torchrun's agent hosts the store, unless it leaves that to rank 0.
        agent_has_store = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
        store = dist.TCPStore(  # type: ignore[attr-defined]
            os.environ["MASTER_ADDR"],
            int(os.environ["MASTER_PORT"]),
            is_master=not agent_has_store and self.rank == 0,
            wait_for_workers=False,
            timeout=_START_WITHIN,
        )
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        self._store = dist.PrefixStore(  # type: ignore[attr-defined]
            f"hubmerge/{attempt}", store
        )
        self._looked = 0.0
        self._gathered = 0
        self._wait_for_all()

    def _wait_for_all(self) -> None:
        """Raise RuntimeError if not all ranks start, as when a child process of a rank runs us."""
        keys = [f"here/{rank}" for rank in range(self.count)]
        self._store.set(keys[self.rank], "1")
        deadline = time.monotonic() + _START_WITHIN.total_seconds()
        while not self._store.check(keys):
            if time.monotonic() > deadline:
                raise RuntimeError(f"not all have started within {_START_WITHIN}")
            time.sleep(0.05)

    def all_gather(self, value: T) -> list[T]:
        self._gathered += 1
        keys = [f"gather/{self._gathered}/{rank}" for rank in range(self.count)]
        with _store_is_there():
            # These pickles come from processes of the same job, never from a file.
            self._store.set(keys[self.rank], base64.b64encode(pickle.dumps(value)).decode())
            while not self._store.check(keys):
                time.sleep(0.05)
                self.check()
            found = [self._store.get(key) for key in keys]
        return [pickle.loads(base64.b64decode(one)) for one in found]  # noqa: S301

    def check(self) -> None:
        now = time.monotonic()
        if now - self._looked >= _LOOK_EVERY_SECONDS:
            self._looked = now
            with _store_is_there():
                if self._store.check([_FAILED]):
                    raise _rebuild(json.loads(self._store.get(_FAILED)))

    def fail(self, error: BaseException) -> bool:
        try:
            if not self._store.check([_FAILED]):
                self._store.set(_FAILED, json.dumps(_describe(error)))
            deadline = time.monotonic() + _REPORT_WITHIN_SECONDS
            while self.rank and not self._store.check([_REPORTED]):
                if time.monotonic() > deadline:
                    return False
                time.sleep(0.05)
        except RuntimeError:  # the store has ended with its process
            return False
        return True

    def reported(self) -> None:
        if self.rank == 0:
            with suppress(RuntimeError):
                self._store.set(_REPORTED, "1")


@contextmanager
def _store_is_there() -> Iterator[None]:
    """Replace the unclear errors of a store whose process has ended."""
    try:
        yield
    except RuntimeError as error:
        raise RetriesExhaustedError(
            "another process of this job has ended, and the job's store with it",
            "Look at its last message, then rerun; the run resumes where this one ended.",
        ) from error


def _describe(error: BaseException) -> dict[str, Any]:
    return {
        "type": type(error).__name__,
        "message": str(error) or type(error).__name__,
        "hint": getattr(error, "hint", ""),
        "exit_code": getattr(error, "exit_code", 1),
    }


def _rebuild(failure: dict[str, Any]) -> HubmergeError:
    """Return the other rank's error, with its message, hint and exit code."""
    kind = getattr(errors, failure["type"], None)
    known = kind if isinstance(kind, type) and issubclass(kind, HubmergeError) else HubmergeError
    error = known.__new__(known)
    HubmergeError.__init__(error, failure["message"], failure["hint"])
    error.exit_code = failure["exit_code"]
    return error


SINGLE_PROCESS = Ranks()


def current_ranks() -> Ranks:
    """Return the ranks of the job that torchrun started this process for, or a single process.

    Raises:
        UsageError: another launcher set the variables, or the job's store does not answer.
    """
    try:
        return TorchrunRanks() if int(os.environ.get("WORLD_SIZE", "1")) > 1 else SINGLE_PROCESS
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        reason = str(error).partition("\n")[0]
        raise UsageError(
            f"WORLD_SIZE is {os.environ['WORLD_SIZE']}, but these processes cannot reach each "
            f"other: {type(error).__name__}: {reason}",
            "Start hubmerge with torchrun, or unset WORLD_SIZE to let one process do all.",
        ) from error
