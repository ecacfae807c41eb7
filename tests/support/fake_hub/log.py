"""What was asked of the Hub, in order: tests assert on requests, not only on results."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field


@dataclass
class Entry:
    """One request. `status` is None where the connection ended without a response."""

    method: str
    endpoint: str
    path: str
    repo_id: str | None = None
    revision: str | None = None
    user: str | None = None
    status: int | None = None
    received: int = 0
    fault: str | None = None
    time: float = field(default_factory=time.time)
    seconds: float = 0.0
    done: bool = False


class RequestLog:
    """Append-only list of entries, safe to read from the test's thread while requests run."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self.crashes: list[str] = []

    def __iter__(self) -> Iterator[Entry]:
        return iter(list(self.entries))

    def __len__(self) -> int:
        return len(self.entries)

    def start(self, entry: Entry) -> Entry:
        """Record a request as soon as it arrives, so that one which hangs is visible too."""
        self.entries.append(entry)
        return entry

    def finish(self, entry: Entry) -> None:
        """Close an entry."""
        entry.seconds = time.time() - entry.time
        entry.done = True

    def select(self, endpoint: str | None = None, **fields: object) -> list[Entry]:
        """The entries of an endpoint (all of them without one) whose fields equal those given."""
        found = []
        for entry in self:
            same = all(getattr(entry, name) == value for name, value in fields.items())
            if same and endpoint in (None, entry.endpoint):
                found.append(entry)
        return found

    def count(self, endpoint: str | None = None, **fields: object) -> int:
        """How many requests `select` finds."""
        return len(self.select(endpoint, **fields))

    def endpoints(self) -> list[str]:
        """The endpoints in the order in which they were called."""
        return [entry.endpoint for entry in self]

    def clear(self) -> None:
        """Forget the past, so that a test can count from here."""
        self.entries.clear()
