"""Record in a folder how it was made, so that `verify` needs no options.

The record is the one that a push puts into its commit: options and the hashes of the small files,
but no local path. Anyone who passes the folder on can forge it, so the type of every value is
checked.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hubmerge.errors import CheckpointError
from hubmerge.planning.option_record import record_options
from hubmerge.planning.publication import Publication
from hubmerge.system.disk import content_ids, open_regular

FOLDER_RECORD = ".hubmerge.json"

# Larger than any record, which has a line for each small file.
_MAX_BYTES = 2**20


def recorded_options(publication: Publication, small: Mapping[str, bytes]) -> dict[str, Any]:
    """Return what is recorded: the options of the plan, and the hashes of each small file."""
    files = {name: content_ids(content) for name, content in small.items()}
    return {**record_options(publication.options, publication.plan), "files": files}


def record_text(publication: Publication, small: Mapping[str, bytes]) -> bytes:
    """Return the content of a folder's record."""
    return (json.dumps(recorded_options(publication, small), indent=1) + "\n").encode()


def read_record(folder: Path) -> dict[str, Any] | None:
    """Return the record of a folder; None if it has none.

    Raises:
        CheckpointError: the record is damaged.
    """
    try:
        with open_regular(folder / FOLDER_RECORD) as file:
            text = file.read(_MAX_BYTES)
    except OSError:
        return None
    try:
        record = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _damaged(folder, str(error)) from None
    if not isinstance(record, dict):
        raise _damaged(folder, "not an object")
    return record


def _damaged(folder: Path, reason: str) -> CheckpointError:
    return CheckpointError(
        f"{folder / FOLDER_RECORD}: damaged ({reason})",
        "Remove it, and verify with the options that the folder was made with.",
    )
