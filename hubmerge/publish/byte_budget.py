"""A bound on what the staging folder holds: whoever wants to write waits until there is room."""

from __future__ import annotations

import threading
from collections.abc import Callable

_LOOK_EVERY_SECONDS = 0.5


class Aborted(Exception):  # noqa: N818 - it ends a thread; the error is what made it end
    """The run has failed elsewhere."""


class ByteBudget:
    """So many bytes, taken and given back.

    Attributes:
        peak_bytes: the most that was ever taken at one time.
    """

    def __init__(self, cap_bytes: int) -> None:
        self._cap_bytes = cap_bytes
        self._taken_bytes = 0
        self._changed = threading.Condition()
        self._aborted = False
        self.peak_bytes = 0

    def acquire(self, size_bytes: int, check: Callable[[], None]) -> None:
        """Wait until there is room for `size_bytes`, and take it; raises Aborted.

        Args:
            check: called now and then meanwhile; ends the waiting by what it raises.
        """
        while not self._take_soon(size_bytes):
            check()

    def _take_soon(self, size_bytes: int) -> bool:
        with self._changed:
            is_over = self._changed.wait_for(
                lambda: self._aborted or self._taken_bytes + size_bytes <= self._cap_bytes,
                _LOOK_EVERY_SECONDS,
            )
            self.check()
            if is_over:
                self._taken_bytes += size_bytes
                self.peak_bytes = max(self.peak_bytes, self._taken_bytes)
            return is_over

    def release(self, size_bytes: int) -> None:
        """Say that `size_bytes` are free again."""
        with self._changed:
            self._taken_bytes -= size_bytes
            self._changed.notify_all()

    def abort(self) -> None:
        """End everybody's waiting."""
        with self._changed:
            self._aborted = True
            self._changed.notify_all()

    def check(self) -> None:
        """Raises Aborted if the run has failed elsewhere."""
        if self._aborted:
            raise Aborted
