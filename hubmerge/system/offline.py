"""Block network access in one thread.

`HF_HUB_OFFLINE` is read once, when huggingface_hub is imported, and applies to the whole process,
in which another thread may be downloading. An audit hook sees every socket and its thread. Since
huggingface_hub would retry five times, it is also told that this thread is offline. Both patches
stay installed; outside `no_network` they have no effect.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

_RESOLVING = {"socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr"}
_SENDING = {"socket.connect", "socket.sendto", "socket.sendmsg"}


class NetworkRefusedError(OSError):
    """Raised by any attempt to use the network under `no_network`."""


class _ThisThread(threading.local):
    is_offline = False


_this_thread = _ThisThread()


@contextmanager
def no_network() -> Iterator[None]:
    """Block network access in this thread while the block runs; other threads keep it."""
    _install()
    before, _this_thread.is_offline = _this_thread.is_offline, True
    try:
        yield
    finally:
        _this_thread.is_offline = before


@cache
def _install() -> None:
    from huggingface_hub import constants

    is_offline_mode = constants.is_offline_mode
    constants.is_offline_mode = lambda: _this_thread.is_offline or is_offline_mode()
    sys.addaudithook(_refuse)


def _refuse(event: str, args: tuple[Any, ...]) -> None:
    if event not in _RESOLVING and event not in _SENDING:
        return
    # The address of a Unix socket is a path.
    is_local = event in _SENDING and isinstance(args[-1], (str, bytes))
    if _this_thread.is_offline and not is_local:
        raise NetworkRefusedError("the network is not used here")
