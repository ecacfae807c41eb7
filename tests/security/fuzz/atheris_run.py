"""Fuzz one target: python -m tests.security.fuzz.atheris_run TARGET [LIBFUZZER ARGS]

Needs `pip install atheris`. Starts from `corpus/TARGET`; new inputs go to a folder that can be
given first, findings to the current one: put those into the corpus. For five minutes:

python -m tests.security.fuzz.atheris_run metadata /tmp/new -max_total_time=300 -rss_limit_mb=3000
"""

from __future__ import annotations

import sys

import atheris

with atheris.instrument_imports(include=["hubmerge", "json", "pickle", "ast"]):
    from tests.security.fuzz.targets import CORPUS, TARGETS


def main() -> None:
    """Hand the target to libFuzzer."""
    name = sys.argv.pop(1)
    atheris.Setup([*sys.argv, str(CORPUS / name)], TARGETS[name])
    atheris.Fuzz()


if __name__ == "__main__":
    main()
