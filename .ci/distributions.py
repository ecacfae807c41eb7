"""Check that a wheel and an sdist hold each file of the package: distributions.py FOLDER."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path


def main(folder: Path) -> None:
    """Compare both files of the folder with what git knows of hubmerge/."""
    listed = subprocess.run(
        ["git", "ls-files", "hubmerge"],  # noqa: S607 - whichever git is there
        capture_output=True,
        text=True,
        check=True,
    )
    wanted = set(listed.stdout.split())
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        in_wheel = {name for name in archive.namelist() if name.startswith("hubmerge/")}
    (sdist,) = folder.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        in_sdist = {name.partition("/")[2] for name in archive.getnames()}
    assert "hubmerge/py.typed" in wanted
    assert in_wheel == wanted, in_wheel ^ wanted
    assert in_sdist >= wanted | {"pyproject.toml", "README.md", "LICENSE"}, wanted - in_sdist


if __name__ == "__main__":
    main(Path(sys.argv[1]))
