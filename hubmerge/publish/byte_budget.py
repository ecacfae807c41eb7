"""A bound on what the staging folder holds: a writer waits until there is space."""

from __future__ import annotations

import threading
from collections.abc import Callable

_LOOK_EVERY_SECONDS = 0.5


class Aborted(Exception):  # noqa: N818 - it ends a thread; the error is what made it end
    """The run has failed elsewhere."""


class ByteBudget:
    """A number of bytes to acquire and release.

    Attributes:
        peak_bytes: the most that was ever acquired at one time.
    """

    def __init__(self, cap_bytes: int) -> None:
        self._cap_bytes = cap_bytes
        self._acquired_bytes = 0
        self._changed = threading.Condition()
        self._aborted = False
        self.peak_bytes = 0

    def acquire(
        self, size_bytes: int, check: Callable[[], None], on_wait: Callable[[bool], None]
    ) -> None:
        """Wait until `size_bytes` are free, and acquire them; raise Aborted.

        Args:
            check: called now and then meanwhile; what it raises ends the wait.
            on_wait: told when the wait begins (True) and ends, unless there is none.
        """
        if self._try_acquire(size_bytes, 0):
            return
        on_wait(True)
        while not self._try_acquire(size_bytes, _LOOK_EVERY_SECONDS):
            check()
        on_wait(False)

    def _try_acquire(self, size_bytes: int, within_seconds: float) -> bool:
        with self._changed:
            is_over = self._changed.wait_for(
                lambda: self._aborted or self._acquired_bytes + size_bytes <= self._cap_bytes,
                within_seconds,
            )
            self.check()
            if is_over:
                self._acquired_bytes += size_bytes
                self.peak_bytes = max(self.peak_bytes, self._acquired_bytes)
            return is_over

    def release(self, size_bytes: int) -> None:
        """Free `size_bytes` again."""
        with self._changed:
            self._acquired_bytes -= size_bytes
            self._changed.notify_all()

    def abort(self) -> None:
        """Make every waiting thread raise Aborted."""
        with self._changed:
            self._aborted = True
            self._changed.notify_all()

    def check(self) -> None:
        """Raise Aborted if the run has failed elsewhere."""
        if self._aborted:
            raise Aborted
