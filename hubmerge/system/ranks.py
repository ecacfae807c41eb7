"""Several processes on one job, started by torchrun; one process alone is the same with one rank.

``torchrun --nnodes N --nproc-per-node M -m hubmerge …``: torchrun's own key-value store carries
plans, results and errors. Nobody ever waits for a rank without looking whether one has failed, so
that an error in one ends all, with its message and its exit code.
"""

from __future__ import annotations

import base64
import json
import os
import pickle
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from hubmerge import errors
from hubmerge.errors import HubmergeError, RetriesExhaustedError, UsageError

if TYPE_CHECKING:
    from hubmerge.planning.plan import PlannedShard

T = TypeVar("T")

_FAILED, _REPORTED = "failed", "reported"
_LOOK_EVERY_SECONDS = 0.5

# Nodes that are slow to import from a shared disk are waited for.
_START_WITHIN = timedelta(minutes=3)

# How long a failed rank stays, so that torchrun does not end rank 0 before it has said why.
_REPORT_WITHIN_SECONDS = 15.0


class Ranks:
    """The processes of this job, as one of them sees them; this class is one process alone."""

    rank = 0
    count = 1
    local_count = 1
    """Processes on this machine."""

    def share(self, shards: Sequence[PlannedShard]) -> list[PlannedShard]:
        """This rank's part of the shards, balanced by bytes, in the given order."""
        loads = [0] * self.count
        mine = set()
        for shard in sorted(shards, key=lambda s: s.size_bytes, reverse=True):
            rank = loads.index(min(loads))
            loads[rank] += shard.size_bytes
            if rank == self.rank:
                mine.add(shard.filename)
        return [shard for shard in shards if shard.filename in mine]

    def all_gather(self, value: T) -> list[T]:
        """Every rank's value, by rank, on every rank; raises the error of one that failed."""
        return [value]

    def check(self) -> None:
        """Raises the error of another rank, if one has failed."""

    def fail(self, error: BaseException) -> bool:  # noqa: ARG002 - alone, there is nobody to tell
        """Tell the others that this rank has failed; will rank 0 say so to the user?"""
        return True

    def reported(self) -> None:
        """Rank 0 has told the user how the run ended."""


class TorchrunRanks(Ranks):
    """The processes that torchrun started."""

    def __init__(self) -> None:
        import torch.distributed as dist

        self.rank, self.count = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        self.local_count = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        # torchrun's agent keeps the store, unless it says that rank 0 must.
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
        """A process that was not started by torchrun, but by one that was, would wait for ever."""
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
            # Pickles between processes of one command, never from a file.
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
        except RuntimeError:  # the store has gone, with whoever kept it
            return False
        return True

    def reported(self) -> None:
        if self.rank == 0:
            with suppress(RuntimeError):
                self._store.set(_REPORTED, "1")


@contextmanager
def _store_is_there() -> Iterator[None]:
    """The store goes with the process that keeps it; what it then raises says nothing of that."""
    try:
        yield
    except RuntimeError as error:
        raise RetriesExhaustedError(
            "another process of this job has gone, and took the job's store along",
            "See what it said last; the same command resumes where this run ended.",
        ) from error


def _describe(error: BaseException) -> dict[str, Any]:
    return {
        "type": type(error).__name__,
        "message": str(error) or type(error).__name__,
        "hint": getattr(error, "hint", ""),
        "exit_code": getattr(error, "exit_code", 1),
    }


def _rebuild(failure: dict[str, Any]) -> HubmergeError:
    """The other rank's error, with its message, hint and exit code."""
    kind = getattr(errors, failure["type"], None)
    known = kind if isinstance(kind, type) and issubclass(kind, HubmergeError) else HubmergeError
    error = known.__new__(known)
    HubmergeError.__init__(error, failure["message"], failure["hint"])
    error.exit_code = failure["exit_code"]
    return error


SINGLE_PROCESS = Ranks()


def current_ranks() -> Ranks:
    """The job that torchrun started this process for, or one process alone.

    Raises:
        UsageError: the variables of another launcher, or of a job whose store does not answer.
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
