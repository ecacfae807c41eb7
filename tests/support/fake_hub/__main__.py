"""``python -m tests.support.fake_hub --port N --dir DIR [--lfs]``: the Hub for shell tests and CI.

Prints its URL and tokens, one ``name: value`` per line, then runs until SIGINT or SIGTERM. With
--env-file it appends the variables that a client needs (HF_ENDPOINT, HF_TOKEN, ...) to a file such
as $GITHUB_ENV.

Tokens belong to the user alice, a member of the organisation acme: write, read (may not write),
fine_user (fine-grained, without access to acme), fine_org (with it), revoked; stranger belongs to
the user mallory.
"""

from __future__ import annotations

import argparse
import signal
import sys
import threading
from pathlib import Path

from .server import Hub, Transport


def main() -> int:
    """Run until told to stop."""
    parser = argparse.ArgumentParser(prog="python -m tests.support.fake_hub", description=__doc__)
    parser.add_argument("--port", type=int, default=0, help="default: any free one")
    parser.add_argument("--dir", type=Path, required=True, help="a new or empty folder for blobs")
    parser.add_argument("--lfs", action="store_true", help="clients shall upload over LFS, not xet")
    parser.add_argument("--part-size", type=int, default=1 << 20, help="LFS: larger files in parts")
    parser.add_argument("--upload-bytes-per-s", type=float, help="LFS: limit the bandwidth")
    parser.add_argument("--env-file", type=Path, help="append HF_ENDPOINT and so on to this file")
    args = parser.parse_args()

    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    transport: Transport = "lfs" if args.lfs else "xet"
    with Hub(args.dir, transport, port=args.port, part_size=args.part_size) as hub:
        hub.upload_bytes_per_s = args.upload_bytes_per_s
        if args.env_file is not None:
            variables = {k: v for k, v in hub.env().items() if k.startswith("HF_")}
            with args.env_file.open("a") as file:
                file.writelines(f"{key}={value}\n" for key, value in variables.items())
        said = [f"url: {hub.url}", *(f"token {k}: {v}" for k, v in hub.tokens.items())]
        sys.stdout.write("\n".join(said) + "\n")
        sys.stdout.flush()
        stop.wait()
    return 1 if hub.log.crashes else 0


if __name__ == "__main__":
    raise SystemExit(main())
