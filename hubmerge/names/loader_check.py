"""The real loader's verdict on the names, before a byte is converted.

The planned files are written as headers with a hole for the data (a few KB of disk), opened with
safetensors' own reader, and what that sees is loaded by transformers onto the meta device: whatever
it then calls missing, unexpected or mismatched, it would call so after hours of conversion and
upload. Tensors are made on the meta device before transformers gets them: it would read the holes
otherwise, which takes minutes for the largest models.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any, Protocol

from hubmerge.errors import CheckpointError
from hubmerge.formatting import format_list
from hubmerge.names.architecture import Architecture, quiet_transformers
from hubmerge.names.reference import differences

Shapes = dict[str, tuple[int, ...]]


class PlannedFile(Protocol):
    """One output file: its name, its first bytes, and how long it will be."""

    @property
    def filename(self) -> str: ...
    @property
    def header(self) -> bytes: ...
    @property
    def size_bytes(self) -> int: ...


def check_with_loader(files: Iterable[PlannedFile], architecture: Architecture) -> None:
    """Load the planned files without their data.

    Raises:
        CheckpointError: a name or shape is not what the model has; all are listed.
    """
    with tempfile.TemporaryDirectory(prefix="hubmerge-check-") as folder:
        tensors: dict[str, Any] = {}
        for file in files:
            tensors |= _without_data(file, Path(folder) / file.filename)
    info = _load(tensors, architecture)
    if isinstance(info, str):
        shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        problems = [info, *_own_comparison(shapes, architecture)]
    else:
        problems = _problems(info)
    if problems:
        raise CheckpointError(
            f"{architecture.model_class.__name__} would not load whole: " + "; ".join(problems),
            "Correct names with --rename or --model-key, or check that the config is this "
            "model's; --no-check-model converts all the same.",
        )


def _without_data(file: PlannedFile, path: Path) -> dict[str, Any]:
    """The tensors of a planned file as safetensors sees them, on the meta device."""
    import torch
    from safetensors import safe_open

    with open(path, "wb") as out:
        out.write(file.header)
        out.truncate(file.size_bytes)
    with safe_open(path, framework="pt") as opened:
        return {
            name: torch.empty(opened.get_slice(name).get_shape(), device="meta")
            for name in opened.keys()  # noqa: SIM118 - it is no mapping
        }


def _load(tensors: dict[str, Any], architecture: Architecture) -> Mapping[str, Any] | str:
    """What the loader says of the tensors: its lists of keys, or why it refuses them."""
    try:
        with quiet_transformers():
            _, info = architecture.model_class.from_pretrained(
                None,
                config=deepcopy(architecture.model.config),
                state_dict=tensors,
                device_map="meta",
                output_loading_info=True,
                ignore_mismatched_sizes=True,
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
        problems.append(f"{len(mismatched)} of another shape: {format_list(mismatched)}")
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
        problems.append(f"{len(mismatched)} of another shape: {format_list(mismatched)}")
    return [problem for problem in problems if problem]
