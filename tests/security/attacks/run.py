"""Let hubmerge read hostile checkpoints in a process with little memory and little time.

python -m tests.security.attacks.run (inspect|convert) FOLDER...

Prints one line of JSON for each: how it ended. A process that dies says nothing of the one it died
from; whoever started it goes on with the next.
"""

from __future__ import annotations

import faulthandler
import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

import hubmerge

SECONDS = 5.0
MEMORY_BYTES = 3 * 2**29
"""What an attack may take beyond what the process has before the first."""


def used_bytes() -> int:
    """Address space of this process."""
    pages = Path("/proc/self/statm").read_text().split()[0]
    return int(pages) * resource.getpagesize()


def attempt(what: str, folder: Path) -> dict[str, Any]:
    """Read one checkpoint; how that ended."""
    began = time.monotonic()
    result: dict[str, Any] = {"name": folder.name, "error": None, "code": 0, "message": ""}
    try:
        if what == "inspect":
            hubmerge.inspect(folder)
        else:
            hubmerge.convert(folder, folder.with_name(f"{folder.name}.out"), dtype="auto")
    except Exception as error:  # noqa: BLE001 - which one it is, is the question
        result["error"] = type(error).__name__
        result["code"] = getattr(error, "exit_code", -1)
        result["message"] = str(error)
    return result | {"seconds": time.monotonic() - began}


def main(what: str, folders: list[str]) -> None:
    """Read all of them."""
    if what == "convert":
        import torch

        torch.set_num_threads(1)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    limit = used_bytes() + MEMORY_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    for folder in folders:
        faulthandler.dump_traceback_later(SECONDS, exit=True)
        print(json.dumps(attempt(what, Path(folder))), flush=True)
        faulthandler.cancel_dump_traceback_later()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
