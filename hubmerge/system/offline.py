"""No network for what runs in one thread.

`HF_HUB_OFFLINE` is read when huggingface_hub is imported and holds for a whole process, in which a
caller may be downloading in another thread. An audit hook sees every socket and knows its thread.
huggingface_hub would try five times over to get past it, and is told that this thread is offline.
Neither is taken back, and neither does anything outside `no_network`.
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
    """What runs under `no_network` gets this in place of a connection."""


class _ThisThread(threading.local):
    is_offline = False


_this_thread = _ThisThread()


@contextmanager
def no_network() -> Iterator[None]:
    """Refuse this thread the network while the block runs; other threads keep it."""
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
    # A socket's address in the file system is a text: it leads to this machine only.
    is_local = event in _SENDING and isinstance(args[-1], (str, bytes))
    if _this_thread.is_offline and not is_local:
        raise NetworkRefusedError("the network is not used here")
