"""The command, so slow at each write (of shards, or `SLOW`) that a test can interrupt it:

SLOW=preadv python -m tests.support.faults.slow ARGS
"""

from __future__ import annotations

import os
import time
from typing import Any

from hubmerge.cli.app import main

_NAME = os.environ.get("SLOW", "write")
_real = getattr(os, _NAME)


def _slowly(*args: Any) -> Any:
    time.sleep(0.3)
    return _real(*args)


if __name__ == "__main__":
    setattr(os, _NAME, _slowly)
    main()
