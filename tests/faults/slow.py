"""The command, so slow at writing that a test can interrupt it: python -m tests.faults.slow ARGS"""

from __future__ import annotations

import os
import time
from typing import Any

from hubmerge.cli import main

_write = os.write


def _slowly(*args: Any) -> int:
    time.sleep(0.3)
    return _write(*args)


if __name__ == "__main__":
    os.write = _slowly
    main()
