"""What is in a checkpoint, for a person who wants to know before converting it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from hubmerge.checkpoint.data_files import DataFiles
from hubmerge.checkpoint.locate import Located
from hubmerge.checkpoint.schema import Checkpoint, StoredTensor, file_extents
from hubmerge.errors import DamagedFileError, HubmergeError, NoModelWeightsError
from hubmerge.names.naming import name_weights
from hubmerge.names.weights import Naming

_RANK = re.compile(r"__(\d+)_\d+\.distcp|shard-(\d+)-.*\.safetensors")
_LARGEST = 10
_FIRST = 10


@dataclass(frozen=True, slots=True)
class Group:
    """All entries under one top-level key; `size_bytes` as stored."""

    key: str
    tensors: int
    objects: int
    parameters: int
    size_bytes: int
    dtypes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Inspection:
    """A summary of a checkpoint.

    Attributes:
        layout: whose layout it is and why, or why the names cannot be told.
        names: the first stored keys and the names that they get without a config or base model.
        damaged: what is wrong with each data file that is missing or too short.
        notes: how the checkpoint was found in the folder that was given, and warnings.
    """

    load_dir: str
    groups: tuple[Group, ...]
    ranks: int
    files: int
    file_bytes: int
    format: str
    layout: str
    names: tuple[dict[str, str], ...]
    notes: tuple[str, ...]
    largest: tuple[dict[str, object], ...]
    damaged: tuple[str, ...] = ()


def inspect_checkpoint(checkpoint: Checkpoint, located: Located) -> Inspection:
    """Summarize `checkpoint`; reads only the first bytes of one data file."""
    naming = _naming(checkpoint)
    tensors = sorted(checkpoint.tensors.values(), key=lambda t: t.size_bytes, reverse=True)
    files = file_extents(chunk for tensor in tensors for chunk in tensor.chunks)
    ranks = {next(filter(None, m.groups())) for m in map(_RANK.fullmatch, files) if m}
    return Inspection(
        load_dir=str(checkpoint.folder),
        groups=tuple(_groups(checkpoint)),
        ranks=len(ranks),
        files=len(files),
        file_bytes=sum(files.values()),
        format=_format(checkpoint),
        layout="; ".join(filter(None, (located.layout, naming.layout))),
        names=tuple({"key": w.key, "name": w.name} for w in naming.weights[:_FIRST]),
        notes=(*located.notes, *located.warnings, *naming.warnings),
        damaged=tuple(_damaged_files(checkpoint.folder, files)),
        largest=tuple(
            {"key": t.key, "shape": t.shape, "dtype": t.dtype, "size_bytes": t.size_bytes}
            for t in tensors[:_LARGEST]
        ),
    )


def _damaged_files(folder: Path, expected_bytes: dict[str, int]) -> Iterator[str]:
    """Describe what is wrong with each data file that is missing or too short."""
    files = DataFiles(folder)
    for name, size in expected_bytes.items():
        try:
            files.check_sizes({name: size}, lambda *_: None)
        except DamagedFileError as error:  # noqa: PERF203 - each file is a case of its own
            yield str(error)


def _groups(checkpoint: Checkpoint) -> list[Group]:
    by_root: dict[str, list[StoredTensor]] = {}
    for tensor in checkpoint.tensors.values():
        root = tensor.path[0] if tensor.path and len(tensor.path) > 1 else tensor.key
        by_root.setdefault(root.partition(".")[0], []).append(tensor)
    objects = Counter(key.partition(".")[0] for key in checkpoint.objects)
    groups = []
    for root in dict.fromkeys([*by_root, *objects]):
        tensors = by_root.get(root, [])
        dtypes = Counter(t.dtype for t in tensors)
        groups.append(
            Group(
                root,
                len(tensors),
                objects[root],
                sum(t.parameters for t in tensors),
                sum(t.size_bytes for t in tensors),
                tuple(dtype for dtype, _ in dtypes.most_common()),
            )
        )
    return sorted(groups, key=lambda group: group.size_bytes, reverse=True)


def _format(checkpoint: Checkpoint) -> str:
    chunks = [t.chunks[0] for t in checkpoint.tensors.values() if t.chunks]
    codecs = {codec for chunk in chunks for codec in chunk.codecs}
    if codecs:
        return f"torch.save records, {', '.join(sorted(codecs))}"
    if not chunks or not chunks[0].is_record:
        return "safetensors"
    try:
        is_zip = DataFiles(checkpoint.folder).is_record(chunks[0])
    except HubmergeError as error:
        return f"unknown ({error})"
    return "torch.save records" if is_zip else "safetensors"


def _naming(checkpoint: Checkpoint) -> Naming:
    """Return the names as far as the checkpoint alone determines them."""
    try:
        return name_weights(checkpoint)
    except NoModelWeightsError:
        return Naming([], [], "no model weights")
    except HubmergeError as error:  # a conversion, which knows more, may still work
        return Naming([], [], f"names not told: {error}", [error.hint] if error.hint else [])
