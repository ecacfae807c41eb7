"""SIGINT (Ctrl-C) and SIGTERM end the command within two seconds, wherever they arrive.

A handler that raises is not enough: Python drops exceptions raised inside a `__del__` or a callback
of the garbage collector, some libraries swallow them, and native code delays them. So a separate
thread is woken by each signal (`signal.set_wakeup_fd`), makes sure that the main thread gets its
exception, gives it time to clean up, and then ends the process.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn

_ENDING = (signal.SIGINT, signal.SIGTERM)

# How long the main thread may take to remove its files, and how often the thread checks.
_CLEAN_UP_SECONDS, _LOOK_EVERY_SECONDS = 1.0, 0.1


class _Terminated(BaseException):
    """SIGTERM arrived."""


class _Ending:
    """The state that the handler, the hook and the thread share."""

    def __init__(self, say: Callable[[int], None]) -> None:
        self._say = say
        self._once = threading.Lock()
        self._raised = threading.Event()
        self.left = threading.Event()

    def handle(self, number: int, _frame: FrameType | None) -> None:
        """Handle a signal: raise, but only once, since clean-up must not be interrupted."""
        if not self._raised.is_set():
            self._raised.set()
            raise KeyboardInterrupt if number == signal.SIGINT else _Terminated

    def unraisable(self, dropped: Any) -> None:
        """Have our exception raised again if Python drops it (`sys.unraisablehook`)."""
        if isinstance(dropped.exc_value, (KeyboardInterrupt, _Terminated)):
            self._raised.clear()
        else:
            sys.__unraisablehook__(dropped)

    def watch(self, reader: int) -> None:
        """Wait for a signal, then for the main thread to end the process; runs in the thread."""
        with open(reader, "rb", buffering=0) as pipe:
            while (number := pipe.read(1)) and number[0] not in _ENDING:
                pass
            if number:
                self._wait_for_the_end(number[0])

    def _wait_for_the_end(self, number: int) -> None:
        for _ in range(round(_CLEAN_UP_SECONDS / _LOOK_EVERY_SECONDS)):
            if self.left.wait(_LOOK_EVERY_SECONDS):
                return
            if not self._raised.is_set():
                signal.pthread_kill(threading.main_thread().ident or 0, number)
        self.end(number)

    def end(self, number: int) -> NoReturn:
        """Print the message and end the process without waiting for uploads in other threads."""
        self._once.acquire()  # never released: a second caller waits for the end of the process
        try:
            self._say(number)
        finally:
            os._exit(128 + number)


@contextmanager
def ended_by_signals(say: Callable[[int], None]) -> Iterator[None]:
    """End the process on a signal, with 128 + its number, after one call of `say` with it.

    To be used in the main thread, which first gets an exception, to clean up. A signal that was
    ignored stays ignored (nohup).
    """
    ending = _Ending(say)
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    thread = threading.Thread(target=ending.watch, args=(reader,), name="signals", daemon=True)
    thread.start()
    former_fd = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    former_hook, sys.unraisablehook = sys.unraisablehook, ending.unraisable
    former = {
        number: signal.signal(number, ending.handle)
        for number in _ENDING
        if signal.getsignal(number) != signal.SIG_IGN
    }
    try:
        yield
    except KeyboardInterrupt:
        ending.end(signal.SIGINT)
    except _Terminated:
        ending.end(signal.SIGTERM)
    finally:
        ending.left.set()
        for number, handler in former.items():
            signal.signal(number, handler)
        sys.unraisablehook = former_hook
        signal.set_wakeup_fd(former_fd)
        os.close(writer)
        thread.join()
