"""SIGINT (Ctrl-C) and SIGTERM end the command within two seconds, wherever they arrive.

A handler that raises is not enough: Python drops what is raised inside a `__del__` or a callback
of the garbage collector, some libraries drop it too, and native code holds it up. So a thread of
its own learns of each signal (`signal.set_wakeup_fd`), sees to it that the main thread gets its
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

# How long the main thread may take to remove its files, and how often the thread looks.
_CLEAN_UP_SECONDS, _LOOK_EVERY_SECONDS = 1.0, 0.1


class _Terminated(BaseException):
    """SIGTERM arrived."""


class _Ending:
    """What the handler, the hook and the thread know of each other."""

    def __init__(self, say: Callable[[int], None]) -> None:
        self._say = say
        self._once = threading.Lock()
        self._raised = threading.Event()
        self.left = threading.Event()

    def handle(self, number: int, _frame: FrameType | None) -> None:
        """The signal handler: raises, but once only, for clean-up must not be interrupted."""
        if not self._raised.is_set():
            self._raised.set()
            raise KeyboardInterrupt if number == signal.SIGINT else _Terminated

    def unraisable(self, dropped: Any) -> None:
        """`sys.unraisablehook`: an exception of ours that Python drops is raised again later."""
        if isinstance(dropped.exc_value, (KeyboardInterrupt, _Terminated)):
            self._raised.clear()
        else:
            sys.__unraisablehook__(dropped)

    def watch(self, reader: int) -> None:
        """The thread: waits for a signal, then until the main thread has ended the process."""
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
        """Say it and end the process; threads in the middle of an upload are not waited for."""
        self._once.acquire()  # for good: whoever comes second waits for the end
        try:
            self._say(number)
        finally:
            os._exit(128 + number)


@contextmanager
def ended_by_signals(say: Callable[[int], None]) -> Iterator[None]:
    """Inside, a signal ends the process with 128 + its number, after one call of `say` with it.

    The main thread, which alone may use this, first gets an exception, to clean up. A signal that
    was ignored stays so (nohup).
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
