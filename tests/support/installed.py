"""The environment whose `hubmerge` is run as a user would: the one of the tests, or another.

HUBMERGE_ENVIRONMENT names another one: `.ci/run` has one that holds what a user's holds, with
hubmerge from the wheel. What is run there must not find the source tree.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

OTHER = os.environ.get("HUBMERGE_ENVIRONMENT")
BIN = Path(OTHER, "bin") if OTHER else Path(sys.executable).parent
"""The folder of its programs."""
