"""Progress on stderr: tqdm bars in a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import threading
import time
from contextlib import suppress
from types import TracebackType
from typing import Any

from tqdm import tqdm

from hubmerge.errors import printable
from hubmerge.formatting import human_bytes
from hubmerge.progress import Progress

# Seconds between two lines in a log file.
_LOG_EVERY_SECONDS = 30.0


class _Stderr:
    """stderr, as a file that never fails: a terminal that has gone must not end the work."""

    def write(self, text: str) -> int:
        with suppress(OSError):
            sys.stderr.write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError):
            sys.stderr.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(sys.stderr, name)


class Bars(Progress):
    """Shows converted bytes and uploaded shards; a context manager. `quiet` shows nothing.

    Args:
        words: what is being done to the bytes, and what has been done to them.
    """

    def __init__(
        self,
        *,
        quiet: bool,
        uploads: bool = False,
        words: tuple[str, str] = ("converting", "converted"),
    ) -> None:
        self._quiet, self._uploads = quiet, uploads
        self._doing, self._done = words
        self._is_terminal = sys.stderr.isatty()
        self._out = _Stderr()
        self._lock = threading.Lock()
        self._bars: list[tqdm[Any]] = []
        self._total_bytes = self._done_bytes = 0
        self._logged = time.monotonic()

    def start(self, total_bytes: int, total_shards: int) -> None:
        self._total_bytes = total_bytes
        if self._quiet or not total_bytes:
            return
        if not self._is_terminal:
            plural = "s" * (total_shards != 1)
            self._line(f"{self._doing} {human_bytes(total_bytes)} in {total_shards} file{plural}")
            return
        title = self._done.capitalize()
        self._bars = [self._bar(total=total_bytes, desc=title, unit="B", unit_scale=True)]
        if self._uploads:
            self._bars.append(self._bar(total=total_shards, desc="Uploaded", unit=" files"))

    def _bar(self, **options: Any) -> tqdm[Any]:
        # Of a file that is not stderr itself, tqdm would not ask for the terminal's width.
        return tqdm(file=self._out, dynamic_ncols=True, **options)

    def converted(self, size_bytes: int) -> None:
        with self._lock:
            self._done_bytes += size_bytes
            if self._bars:
                self._bars[0].update(size_bytes)
            elif time.monotonic() - self._logged >= _LOG_EVERY_SECONDS:
                self._logged = time.monotonic()
                done, total = human_bytes(self._done_bytes), human_bytes(self._total_bytes)
                self._line(f"{self._done} {done} of {total}")

    def uploaded(self, filename: str) -> None:
        with self._lock:
            if self._bars:
                self._bars[1].update(1)
            else:
                self._line(f"uploaded {filename}")

    def note(self, text: str) -> None:
        self._line(text)

    def warn(self, text: str) -> None:
        self._line(f"Warning: {text}")

    def _line(self, text: str) -> None:
        if not self._quiet:
            tqdm.write(printable(text), file=self._out)

    def __enter__(self) -> Bars:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for bar in self._bars:
            bar.close()
