"""Progress on stderr: a status line and bars on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import os
import sys
import threading
import time
from contextlib import suppress
from types import TracebackType
from typing import Any

from tqdm import tqdm

from hubmerge.errors import printable
from hubmerge.formatting import human_bytes, plural
from hubmerge.progress import Progress

# Seconds between two lines in a log file.
LOG_EVERY_SECONDS = 30.0

_WAITING = "Waiting for upload"

# Below this many columns, sizes give way to the speed and the time left.
_NARROW = 72
_NARROW_FORMAT = "{desc} {percentage:3.0f}%|{bar}|{rate_fmt}, {remaining}"
_WIDE_FORMAT = "{desc} {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt}, {rate_fmt}, {remaining} left"


def _columns() -> int:
    """Return the width of stderr's terminal (stdout may be a pipe); 0 if it does not say."""
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns
    except OSError:
        return 0


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
    """Shows what is going on; a context manager.

    Args:
        quiet: show warnings alone.
        verbose: keep each status as a line.
        uploads: show a bar for uploads too.
        words: what is being done to the bytes, and what has been done to them.
    """

    def __init__(
        self,
        *,
        quiet: bool = False,
        verbose: bool = False,
        uploads: bool = False,
        words: tuple[str, str] = ("converting", "converted"),
    ) -> None:
        self._quiet, self._verbose, self._uploads = quiet, verbose, uploads
        self._doing, self._done = words
        self._is_terminal = sys.stderr.isatty()
        self._out = _Stderr()
        self._lock = threading.RLock()
        self._status: tqdm[Any] | None = None
        self._bars: list[tqdm[Any]] = []
        self._total_bytes = self._done_bytes = self._uploaded_bytes = 0
        self._left = threading.Event()

    def status(self, text: str) -> None:
        with self._lock:
            if self._verbose:
                self._timed_line(text)
            elif self._is_terminal and not self._quiet:
                if self._status is None:
                    self._status = self._bar(bar_format="{desc}", leave=False)
                self._status.set_description_str(printable(text))

    def _end_status(self) -> None:
        if self._status is not None:
            self._status.close()
            self._status = None

    def start(self, total_bytes: int, total_shards: int) -> None:
        with self._lock:
            self._end_status()
            self._total_bytes = total_bytes
            if self._quiet or not total_bytes:
                return
            if not self._is_terminal:
                size, files = human_bytes(total_bytes), plural(total_shards, "file")
                self._timed_line(f"{self._doing} {size} in {files}")
                threading.Thread(target=self._log, name="progress", daemon=True).start()
                return
            layout = _NARROW_FORMAT if 0 < _columns() < _NARROW else _WIDE_FORMAT
            titles = [self._done.capitalize(), *(["Uploaded"] if self._uploads else [])]
            self._bars = [
                self._bar(
                    total=total_bytes,
                    desc=title.ljust(len(self._done)),
                    bar_format=layout,
                    unit="B",
                    unit_scale=True,
                )
                for title in titles
            ]

    def _bar(self, **options: Any) -> tqdm[Any]:
        # Of a file that is not stderr itself, tqdm would not ask for the terminal's width.
        return tqdm(file=self._out, dynamic_ncols=True, **options)

    def _log(self) -> None:
        """The thread: a line every half minute, also when nothing moves."""
        while not self._left.wait(LOG_EVERY_SECONDS):
            done, total = human_bytes(self._done_bytes), human_bytes(self._total_bytes)
            uploaded = f", uploaded {human_bytes(self._uploaded_bytes)}" * self._uploads
            self._timed_line(f"{self._done} {done} of {total}{uploaded}")

    def converted(self, size_bytes: int) -> None:
        with self._lock:
            self._done_bytes += size_bytes
            if self._bars:
                self._bars[0].update(size_bytes)

    def uploaded_bytes(self, size_bytes: int) -> None:
        with self._lock:
            self._uploaded_bytes += size_bytes
            if len(self._bars) > 1:
                self._bars[1].update(size_bytes)

    def uploaded(self, filename: str) -> None:
        with self._lock:
            if not self._bars:
                self._timed_line(f"uploaded {filename}")

    def waiting(self, is_waiting: bool) -> None:
        with self._lock:
            if self._bars:
                title = _WAITING if is_waiting else self._done.capitalize()
                self._bars[0].set_description_str(title)

    def note(self, text: str) -> None:
        if not self._quiet:
            self._line(text)

    def warn(self, text: str) -> None:
        self._line(f"Warning: {text}")

    def _timed_line(self, text: str) -> None:
        if not self._quiet:
            self._line(f"{time.strftime('%H:%M:%S')} {text}")

    def _line(self, text: str) -> None:
        tqdm.write(printable(text), file=self._out)

    def __enter__(self) -> Bars:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._left.set()
        with self._lock:
            self._end_status()
            for bar in self._bars:
                bar.close()
