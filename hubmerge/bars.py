"""Progress on stderr: tqdm bars in a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import threading
from types import TracebackType

from tqdm import tqdm

from hubmerge.progress import Progress

# Seconds between two lines in a log file.
_LOG_EVERY_SECONDS = 30.0


class Bars(Progress):
    """Shows a conversion; a context manager. `quiet` shows nothing at all."""

    def __init__(self, *, quiet: bool) -> None:
        self._quiet = quiet
        self._lock = threading.Lock()
        self._bytes: tqdm[None] | None = None

    def start(self, total_bytes: int, total_shards: int) -> None:
        if self._quiet:
            return
        is_terminal = sys.stderr.isatty()
        self._bytes = tqdm(
            total=total_bytes,
            desc=f"Converting {total_shards} file{'s' * (total_shards != 1)}",
            unit="B",
            unit_scale=True,
            file=sys.stderr,
            mininterval=0.1 if is_terminal else _LOG_EVERY_SECONDS,
            # A log wants lines, not one line drawn over and over.
            bar_format=None if is_terminal else "{desc}: {n_fmt} of {total_fmt}, {rate_fmt}\n",
            dynamic_ncols=is_terminal,
        )

    def converted(self, size_bytes: int) -> None:
        if self._bytes is not None:
            with self._lock:
                self._bytes.update(size_bytes)

    def note(self, text: str) -> None:
        self._line(text)

    def warn(self, text: str) -> None:
        self._line(f"Warning: {text}")

    def _line(self, text: str) -> None:
        if not self._quiet:
            tqdm.write(text, file=sys.stderr)

    def __enter__(self) -> Bars:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bytes is not None:
            self._bytes.close()
