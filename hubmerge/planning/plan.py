"""The plan: every byte of every output file but the weights themselves, known in advance.

A pure function of a checkpoint's description, the naming and the options. It reads no tensor and
imports no torch; converting, publishing, verifying and resuming only carry it out.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod

from hubmerge.checkpoint.boxes import dtype_of
from hubmerge.checkpoint.schema import Checkpoint, StoredTensor, file_extents
from hubmerge.checkpoint.tiling import covered
from hubmerge.errors import CheckpointError, NoModelWeightsError, UnsafeInputError, UsageError
from hubmerge.formatting import human_bytes
from hubmerge.hf_format.dtypes import BY_NAME, DType
from hubmerge.hf_format.filenames import ADAPTER_NAME, MODEL_STEM, SINGLE_NAME
from hubmerge.hf_format.safetensors_header import MAX_HEADER_BYTES, build_header, file_order
from hubmerge.names.views import Part
from hubmerge.names.weights import Dropped, Naming, Weight
from hubmerge.planning.options import DTYPES

# The Hub refuses larger files.
MAX_SHARD_BYTES = 500_000_000_000


@dataclass(frozen=True, slots=True)
class PlannedTensor:
    """One tensor of an output file.

    Attributes:
        name: as the file's header has it.
        dtype: as the file's header has it.
        shape: as the file's header has it.
        source_dtype: the element type of the stored tensors.
        parts: the recipe, see `TensorView`: the elements of stored tensors that it consists of.
            The chunks of those are proved to cover them.
        may_overflow: whether the cast may make a finite number infinite (float16 only).
    """

    name: str
    dtype: DType
    shape: tuple[int, ...]
    source_dtype: DType
    parts: tuple[Part, ...]
    may_overflow: bool = False

    @property
    def key(self) -> str:
        """The stored tensor that it comes from; of several, the first."""
        return self.parts[0].source.key

    @property
    def size_bytes(self) -> int:
        return prod(self.shape) * self.dtype.itemsize

    @property
    def is_cast(self) -> bool:
        """Whether its elements change their type."""
        return self.dtype is not self.source_dtype


@dataclass(frozen=True)
class PlannedShard:
    """One output file: its tensors in the order in which they lie in it."""

    filename: str
    tensors: tuple[PlannedTensor, ...]

    @cached_property
    def header(self) -> bytes:
        """The file's first bytes, up to the first tensor."""
        return build_header((t.name, t.dtype, t.shape) for t in self.tensors)

    @cached_property
    def size_bytes(self) -> int:
        """Of the whole file."""
        return len(self.header) + sum(tensor.size_bytes for tensor in self.tensors)


@dataclass(frozen=True, repr=False)
class Plan:
    """All output files that hold weights, and what was decided about each stored tensor.

    Attributes:
        notes: how the checkpoint was found; `warnings`: what is in doubt. One sentence each.
        stem: what the names of the model's files begin with.
    """

    checkpoint: Checkpoint
    shards: tuple[PlannedShard, ...]
    dropped: tuple[Dropped, ...]
    warnings: tuple[str, ...]
    layout: str
    notes: tuple[str, ...] = ()
    stem: str = MODEL_STEM

    def __repr__(self) -> str:
        files = f"{len(self.shards)} file{'s' * (len(self.shards) != 1)}"
        return (
            f"<Plan of {files}, {self.total_parameters:,} parameters, "
            f"{human_bytes(self.total_size)}, {len(self.warnings)} warnings>"
        )

    @cached_property
    def total_size(self) -> int:
        """Bytes of all tensors, without headers."""
        return sum(t.size_bytes for shard in self.shards for t in shard.tensors)

    @cached_property
    def total_parameters(self) -> int:
        return sum(prod(t.shape) for shard in self.shards for t in shard.tensors)

    @cached_property
    def is_adapter(self) -> bool:
        """Return whether this is an adapter, to be loaded by PEFT, and no whole model."""
        return self.shards[0].filename == ADAPTER_NAME

    @cached_property
    def model_shards(self) -> tuple[PlannedShard, ...]:
        """The files of the model itself, without those of modules that follow it."""
        return tuple(shard for shard in self.shards if "/" not in shard.filename)

    @property
    def index_name(self) -> str:
        return f"{self.stem}.safetensors.index.json"

    @cached_property
    def index(self) -> bytes | None:
        """Content of the index file; None if one file holds the model."""
        if self.shards[0].filename in (f"{self.stem}.safetensors", ADAPTER_NAME):
            return None
        tensors = [(t, shard.filename) for shard in self.model_shards for t in shard.tensors]
        weight_map = {tensor.name: filename for tensor, filename in tensors}
        metadata = {
            "total_parameters": sum(prod(tensor.shape) for tensor, _ in tensors),
            "total_size": sum(tensor.size_bytes for tensor, _ in tensors),
        }
        index = {"metadata": metadata, "weight_map": weight_map}
        return (json.dumps(index, indent=2, sort_keys=True) + "\n").encode()

    @cached_property
    def main_dtype(self) -> str | None:
        """The floating dtype that most bytes have, or None if there is none."""
        sizes: dict[str, int] = {}
        for shard in self.shards:
            for tensor in shard.tensors:
                if tensor.dtype.kind == "float":
                    sizes[tensor.dtype.name] = sizes.get(tensor.dtype.name, 0) + tensor.size_bytes
        return max(sizes, key=lambda name: sizes[name]) if sizes else None

    @cached_property
    def sources(self) -> dict[str, StoredTensor]:
        """The stored tensors that the weights come from, by key."""
        return {
            part.source.key: part.source
            for shard in self.shards
            for tensor in shard.tensors
            for part in tensor.parts
        }

    @cached_property
    def data_files(self) -> dict[str, int]:
        """The data files that the weights come from, and how long each must be at least."""
        return file_extents(c for source in self.sources.values() for c in source.chunks)

    def first_key_past(self, file: str, offset: int) -> str | None:
        """Return the first stored tensor that has a chunk in `file` which ends beyond `offset`."""
        for source in self.sources.values():
            if any(c.file == file and c.offset + c.length > offset for c in source.chunks):
                return source.key
        return None

    @cached_property
    def digest(self) -> str:
        """A hash of this plan: equal for two plans only if they give the same files."""
        digest = hashlib.sha256(self.checkpoint.metadata_sha256.encode())
        for shard in self.shards:
            digest.update(shard.filename.encode() + b"\0" + shard.header)
            for t in shard.tensors:
                for source, *recipe in t.parts:
                    digest.update(repr((source.key, recipe)).encode())
        return digest.hexdigest()


def make_plan(
    checkpoint: Checkpoint,
    naming: Naming,
    *,
    dtype: str,
    shard_size: int,
    allow_overflow: bool = False,
    notes: tuple[str, ...] = (),
    stem: str = MODEL_STEM,
) -> Plan:
    """Plan the output files.

    Args:
        notes: see `Plan`.
        stem: see `Plan`.
        allow_overflow: let values become infinite in float16.
        dtype: what floating tensors become; ``auto`` leaves them as stored.
        shard_size: bytes of tensors that one file holds at most; a larger tensor is alone in one.

    Raises:
        UsageError: an option cannot be used.
        CheckpointError: a tensor is incomplete, or has a dtype that cannot be converted.
        UnsafeInputError: a name or size that no reader would accept.
    """
    if dtype not in DTYPES:
        raise UsageError(f"unknown dtype {dtype!r}", f"Use one of: {', '.join(DTYPES)}.")
    if shard_size < 1:
        raise UsageError(f"the shard size must be at least 1 byte, not {shard_size}")
    if not naming.weights:
        raise NoModelWeightsError("no model weights are left to convert")
    _check_names(naming.weights)
    proved: dict[str, StoredTensor] = {}
    folders: dict[str, list[PlannedTensor]] = {}
    for weight in sorted(naming.weights, key=lambda weight: (weight.folder, weight.name)):
        tensor = _plan_tensor(weight, weight.dtype or dtype, allow_overflow, proved)
        folders.setdefault(weight.folder, []).append(tensor)
    own = folders.pop("", [])
    groups = _pack(own, shard_size, stem) if naming.files is None else _by_file(own, naming.files)
    groups |= {f"{folder}/{SINGLE_NAME}": tensors for folder, tensors in folders.items()}
    shards = tuple(_shard(name, group) for name, group in groups.items())
    for shard in shards:
        if len(shard.header) - 8 > MAX_HEADER_BYTES:
            raise UnsafeInputError(f"{shard.filename}: the header would be too long for any reader")
        if shard.size_bytes > MAX_SHARD_BYTES:
            raise UsageError(
                f"{shard.filename} would have {shard.size_bytes:,} bytes; the Hub takes at most "
                f"{MAX_SHARD_BYTES:,} per file",
                "Use a smaller --shard-size, such as 5GB.",
            )
    dropped, warnings = tuple(naming.dropped), tuple(naming.warnings)
    return Plan(checkpoint, shards, dropped, warnings, naming.layout, notes, stem)


def _check_names(weights: Iterable[Weight]) -> None:
    seen: dict[tuple[str, str], str] = {}
    for weight in weights:
        name, key = weight.name, weight.key
        if not name or name == "__metadata__" or not name.isprintable():
            raise UnsafeInputError(
                f"a tensor would be called {name!r}, which readers refuse (checkpoint key {key!r})"
            )
        place = weight.folder, name
        if place in seen:
            raise CheckpointError(
                f"{seen[place]!r} and {key!r} would both be called {name!r}",
                "The checkpoint holds more than one model; see `hubmerge inspect`.",
            )
        seen[place] = key


def _plan_tensor(
    weight: Weight, wanted: str, may_overflow: bool, proved: dict[str, StoredTensor]
) -> PlannedTensor:
    """Plan one tensor; `proved` keeps the stored tensors whose chunks have been looked at."""
    parts = []
    for part in weight.view.parts:
        source = proved.get(part.source.key)
        if source is None:
            source = proved[part.source.key] = covered(part.source)
        parts.append(part._replace(source=source))
    stored = _common_dtype(weight)
    target = stored
    if wanted != "auto":
        if stored.kind == "scaled":
            raise CheckpointError(
                f"{weight.key!r} is stored as {stored.name}, which means nothing without its scale "
                f"and is never cast to {wanted}",
                "Use --dtype auto to keep every tensor as it is stored, or --keep-dtype for these.",
            )
        if stored.kind == "float":
            target = BY_NAME[wanted]
    return PlannedTensor(weight.name, target, weight.view.shape, stored, tuple(parts), may_overflow)


def _common_dtype(weight: Weight) -> DType:
    """Return the element type of the stored tensors that a weight consists of."""
    first, *others = weight.sources
    dtype = dtype_of(first)
    for other in others:
        if dtype_of(other) is not dtype:
            raise CheckpointError(
                f"{weight.name!r} is put together from {first.key!r} and {other.key!r}, but they "
                f"are stored as {dtype.name} and {other.dtype}",
                "Save the checkpoint with one dtype for both.",
            )
    return dtype


def _pack(
    tensors: list[PlannedTensor], shard_size: int, stem: str
) -> dict[str, list[PlannedTensor]]:
    """Greedy, in name order: the assignment of VeOmni's script, so that indexes agree.

    Returns:
        The tensors of each file, by its name.
    """
    groups: list[list[PlannedTensor]] = []
    filled = 0
    for tensor in tensors:
        if not groups or filled + tensor.size_bytes > shard_size:
            groups.append([])
            filled = 0
        groups[-1].append(tensor)
        filled += tensor.size_bytes
    if len(groups) == 1:
        return {f"{stem}.safetensors": groups[0]}
    count = len(groups)
    return {
        f"{stem}-{number:05d}-of-{count:05d}.safetensors": group
        for number, group in enumerate(groups, start=1)
    }


def _by_file(
    tensors: list[PlannedTensor], files: Mapping[str, str]
) -> dict[str, list[PlannedTensor]]:
    """Group tensors by the files that naming chose: an adapter's one, or the base model's."""
    groups: dict[str, list[PlannedTensor]] = {}
    for tensor in tensors:
        groups.setdefault(files[tensor.name], []).append(tensor)
    return dict(sorted(groups.items()))


def _shard(name: str, tensors: list[PlannedTensor]) -> PlannedShard:
    return PlannedShard(name, tuple(sorted(tensors, key=lambda t: file_order(t.name, t.dtype))))


def share_of(shards: Sequence[PlannedShard], rank: int, count: int) -> list[PlannedShard]:
    """Return one rank's share of the shards, balanced by bytes, in the given order."""
    loads = [0] * count
    mine = set()
    for shard in sorted(shards, key=lambda s: s.size_bytes, reverse=True):
        least = loads.index(min(loads))
        loads[least] += shard.size_bytes
        if least == rank:
            mine.add(shard.filename)
    return [shard for shard in shards if shard.filename in mine]
