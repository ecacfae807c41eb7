"""The repository as others meet it: what lies at its top, and that its guide leads somewhere."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[1]
TOP = {"hubmerge", "tests", "pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md"}


def test_nothing_else_lies_at_the_top() -> None:
    """A visitor sees the package, its tests and four files; all else has a dot before its name."""
    done = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)
    names = {line.partition("/")[0] for line in done.stdout.splitlines()}
    assert {name for name in names if not name.startswith(".")} == TOP


def test_the_guides_name_files_that_are_there() -> None:
    """A module that is renamed takes its line in the guides along."""
    for guide in ("CONTRIBUTING.md", "SECURITY.md"):
        text = (ROOT / ".github" / guide).read_text()
        paths = re.findall(r"`((?:hubmerge|tests)/[\w/]+(?:\.py)?)`", text)
        assert paths
        assert [path for path in paths if not (ROOT / path).exists()] == []


def test_the_guide_names_tables_that_are_there() -> None:
    """The same for what is named inside a module."""
    text = (ROOT / ".github/CONTRIBUTING.md").read_text()
    named = re.findall(r"`(\w+)`[^|`]*`(hubmerge/[\w/]+\.py)`", text)
    assert len(named) > 3
    assert [name for name, path in named if name not in (ROOT / path).read_text()] == []
