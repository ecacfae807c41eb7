"""Let the operating system fail, or the process die, at the n-th of the calls that matter."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

WRITES = ("write", "fsync", "replace", "unlink", "mkdir", "open")
READS = ("preadv",)


@contextmanager
def at_each(names: tuple[str, ...], happen: Callable[[str, int], None]) -> Iterator[list[str]]:
    """Before each call of these functions of `os`, call `happen(name, how many came before)`.

    Yields:
        The names of the calls so far, in order.
    """
    real = {name: getattr(os, name) for name in names}
    calls: list[str] = []

    def wrapped(name: str) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            if name != "open" or args[1] & os.O_CREAT:  # opening to read changes nothing
                calls.append(name)
                happen(name, len(calls) - 1)
            return real[name](*args, **options)

        return call

    try:
        for name in names:
            setattr(os, name, wrapped(name))
        yield calls
    finally:
        for name in names:
            setattr(os, name, real[name])


def failing(number: int, error_number: int) -> Callable[[str, int], None]:
    """Raise this error of the operating system at call `number`, and at all later ones."""

    def happen(name: str, count: int) -> None:
        if count >= number and name != "unlink":
            raise OSError(error_number, os.strerror(error_number))

    return happen


def dying(number: int) -> Callable[[str, int], None]:
    """End this process as kill -9 does, just before call `number`."""

    def happen(_name: str, count: int) -> None:
        if count == number:
            os.kill(os.getpid(), signal.SIGKILL)

    return happen


def in_child(work: Callable[[], None]) -> int:
    """Run `work` in a forked process; how that ended: 0, 1 for an exception, or minus a signal."""
    child = os.fork()
    if child == 0:
        try:
            work()
        except BaseException:  # noqa: BLE001 - the parent is told
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
