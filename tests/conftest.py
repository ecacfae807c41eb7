"""What all tests need of the process that they run in."""

from __future__ import annotations

import signal


def pytest_configure() -> None:
    """Ctrl-C can be tried in processes that the tests start, also where pytest runs in background.

    A shell has its background jobs ignore SIGINT, and what is ignored stays so in every child.
    """
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
