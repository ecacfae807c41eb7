"""The command in this process: `hubmerge.cli.app.main` with a real client over real HTTP."""

from __future__ import annotations

import contextlib
import io
import json
import sys
from dataclasses import dataclass
from typing import Any

from hubmerge.cli import app

REPO = "alice/model"


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        """What --json printed."""
        assert self.code == 0, self.err
        result: dict[str, Any] = json.loads(self.out)
        return result


def run_here(*argv: str) -> Done:
    """``hubmerge ARGV`` in this process."""
    out, err, old_argv = io.StringIO(), io.StringIO(), sys.argv
    sys.argv = ["hubmerge", *argv]
    code: Any = None
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            app.main()
    except SystemExit as end:
        code = end.code
    finally:
        sys.argv = old_argv
    return Done(int(code or 0), out.getvalue(), err.getvalue())
