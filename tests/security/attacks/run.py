"""Let hubmerge read hostile checkpoints in a process with little memory and little CPU time.

python -m tests.security.attacks.run (inspect|convert) FOLDER...

Prints one line of JSON for each: how it ended. A process that dies says nothing of the one it died
from; whoever started it goes on with the next.
"""

from __future__ import annotations

import faulthandler
import json
import math
import resource
import signal
import sys
import time
from pathlib import Path
from typing import Any

import hubmerge
from tests.support.patience import NET_SECONDS

SECONDS = 5
"""CPU time that an attack may take; how busy the machine is does not matter."""

MEMORY_BYTES = 3 * 2**29
"""What an attack may take beyond what the process has before the first."""


def used_bytes() -> int:
    """Address space of this process."""
    pages = Path("/proc/self/statm").read_text().split()[0]
    return int(pages) * resource.getpagesize()


def attempt(what: str, folder: Path) -> dict[str, Any]:
    """Read one checkpoint; how that ended."""
    began = time.process_time()
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
    return result | {"seconds": time.process_time() - began}


def main(what: str, folders: list[str]) -> None:
    """Read all of them."""
    if what == "convert":
        import torch

        torch.set_num_threads(1)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    limit = used_bytes() + MEMORY_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    faulthandler.register(signal.SIGXCPU, chain=True)  # says where, and then dies of it
    for folder in folders:
        end = math.ceil(time.process_time()) + SECONDS
        resource.setrlimit(resource.RLIMIT_CPU, (end, resource.RLIM_INFINITY))
        faulthandler.dump_traceback_later(NET_SECONDS, exit=True)  # it waits for something
        print(json.dumps(attempt(what, Path(folder))), flush=True)
        faulthandler.cancel_dump_traceback_later()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
