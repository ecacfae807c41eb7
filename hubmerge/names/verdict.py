"""The real loader's verdict on the names, before a byte is converted.

The planned files are written as headers with a hole for the data (a few KB of disk), and
transformers loads them onto the meta device: whatever it then calls missing, unexpected or
mismatched, it would call so after hours of conversion and upload.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

from hubmerge.assets import Assets
from hubmerge.errors import CheckpointError
from hubmerge.names.architecture import Architecture, quiet_transformers, write_config
from hubmerge.names.reference import INDEX_NAME, differences

_MOST_LISTED = 10

Shapes = dict[str, tuple[int, ...]]


class PlannedFile(Protocol):
    """One output file: its name, its first bytes, and how long it will be."""

    @property
    def filename(self) -> str: ...
    @property
    def header(self) -> bytes: ...
    @property
    def size_bytes(self) -> int: ...


def check_with_loader(
    files: Iterable[PlannedFile],
    index: bytes | None,
    assets: Assets,
    architecture: Architecture,
    *,
    trust_remote_code: bool,
) -> None:
    """Load the planned files without their data.

    Raises:
        CheckpointError: a name or shape is not what the model has; all are listed.
    """
    with tempfile.TemporaryDirectory(prefix="hubmerge-check-") as name:
        folder = Path(name)
        shapes = _write_holes(files, index, folder)
        write_config(assets, folder, with_code=trust_remote_code)
        info = _load(folder, architecture, trust_remote_code=trust_remote_code)
    if isinstance(info, str):
        problems = [info, *_own_comparison(shapes, architecture)]
    else:
        problems = _problems(info)
    if problems:
        raise CheckpointError(
            f"{architecture.model_class.__name__} would not load whole: " + "; ".join(problems),
            "Correct names with --rename or --model-key, or check that the config is this "
            "model's; --no-check-model converts all the same.",
        )


def _write_holes(files: Iterable[PlannedFile], index: bytes | None, folder: Path) -> Shapes:
    shapes: Shapes = {}
    for file in files:
        with open(folder / file.filename, "wb") as out:
            out.write(file.header)
            out.truncate(file.size_bytes)
        entries = json.loads(file.header[8:])
        del entries["__metadata__"]
        shapes.update((name, tuple(entry["shape"])) for name, entry in entries.items())
    if index is not None:
        (folder / INDEX_NAME).write_bytes(index)
    return shapes


def _load(
    folder: Path, architecture: Architecture, *, trust_remote_code: bool
) -> Mapping[str, Any] | str:
    """What the loader says of the files: its lists of keys, or why it refuses them."""
    try:
        with quiet_transformers():
            _, info = architecture.model_class.from_pretrained(
                folder,
                device_map="meta",
                output_loading_info=True,
                ignore_mismatched_sizes=True,
                use_safetensors=True,
                trust_remote_code=trust_remote_code,
            )
    except Exception as error:  # noqa: BLE001 - whatever the loader raises is its verdict
        return " ".join(f"{type(error).__name__}: {error}".split())[:300]
    return dict(info)


def _problems(info: Mapping[str, Any]) -> list[str]:
    """The loader's verdict in words; nothing where everything fits."""
    problems = [differences(info["unexpected_keys"], info["missing_keys"])]
    mismatched = [
        f"{name} is {tuple(ours)}, the model has {tuple(theirs)}"
        for name, ours, theirs in sorted(info["mismatched_keys"])
    ]
    if mismatched:
        problems.append(_listed(f"{len(mismatched)} of another shape", mismatched))
    return [problem for problem in problems if problem]


def _own_comparison(shapes: Shapes, architecture: Architecture) -> list[str]:
    """What differs from what `save_pretrained` would write: why the loader may have refused."""
    wanted = architecture.hub_shapes
    mismatched = [
        f"{name} is {shape}, the model has {wanted[name]}"
        for name, shape in sorted(shapes.items())
        if name in wanted and wanted[name] != shape
    ]
    problems = [differences(shapes, wanted.keys() - architecture.ties.keys())]
    if mismatched:
        problems.append(_listed(f"{len(mismatched)} of another shape", mismatched))
    return [problem for problem in problems if problem]


def _listed(what: str, items: list[str]) -> str:
    more = f" and {len(items) - _MOST_LISTED} more" if len(items) > _MOST_LISTED else ""
    return f"{what}: {', '.join(items[:_MOST_LISTED])}{more}"
