"""Checkpoints whose tensors several ranks hold in parts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed._shard.sharded_tensor import Shard as LocalShard
from torch.distributed._shard.sharded_tensor import init_from_local_shards
from torch.distributed.checkpoint import FileSystemWriter, HuggingFaceStorageWriter
from torch.distributed.checkpoint._extension import ZStandard
from torch.distributed.checkpoint.filesystem import SerializationFormat
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    MetadataIndex,
    TensorProperties,
)
from torch.distributed.checkpoint.planner import TensorWriteData, WriteItem, WriteItemType
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Placement, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.placement_types import _StridedShard

from tests.support.checkpoints.registry import Tensors, case, filled

ROWS, COLUMNS, DEPTH, WHOLE = Shard(0), Shard(1), Shard(2), Replicate()


@dataclass(frozen=True)
class Sharded:
    """A full tensor, and how the ranks share it (no placements: every rank has a plain copy)."""

    full: torch.Tensor
    placements: tuple[Placement, ...] = ()

    def on(self, mesh: DeviceMesh) -> torch.Tensor:
        """This rank's share."""
        if not self.placements:
            return self.full
        # Every rank has the full tensor: nothing to send, so any dtype will do.
        return distribute_tensor(self.full, mesh, self.placements, src_data_rank=None)


def save_sharded(
    folder: Path,
    tensors: dict[str, Sharded],
    mesh_shape: Sequence[int] = (),
    *,
    use_collectives: bool = True,
    beside: dict[str, Any] | None = None,
    **writer_options: Any,
) -> Tensors:
    """Save these as `{"model": ...}` on a mesh; returns the full tensors by checkpoint key."""
    mesh = init_device_mesh("cpu", tuple(mesh_shape) or (dist.get_world_size(),))
    state = {"model": {name: sharded.on(mesh) for name, sharded in tensors.items()}}
    writer = FileSystemWriter(folder, **{"sync_files": False, **writer_options})
    dcp.save(state | (beside or {}), storage_writer=writer, use_collectives=use_collectives)
    return {f"model.{name}": sharded.full for name, sharded in tensors.items()}


def mixture(*, columns: bool = True) -> dict[str, Sharded]:
    """Even, uneven, empty, replicated and 0-d tensors of several dtypes for a 1-d mesh."""
    tensors = {
        "model.embed_tokens.weight": Sharded(filled("embed", 97, 12), (ROWS,)),
        "model.layers.0.q_proj.weight": Sharded(filled("q", 8, 12), (ROWS,)),
        "model.layers.0.few.weight": Sharded(filled("few", 1, 12), (ROWS,)),
        "model.layers.0.none.weight": Sharded(filled("none", 0, 12), (ROWS,)),
        "model.layers.0.norm.weight": Sharded(filled("norm", 5, dtype=torch.bfloat16), (ROWS,)),
        "model.layers.0.counts": Sharded(filled("counts", 7, dtype=torch.int64), (ROWS,)),
        "model.layers.0.mask": Sharded(filled("mask", 5, 3, dtype=torch.bool), (ROWS,)),
        "model.layers.0.copied.weight": Sharded(filled("copied", 6, 4), (WHOLE,)),
        "model.layers.0.plain.weight": Sharded(filled("plain", 6, 4)),
        "model.layers.0.scale": Sharded(filled("scale")),
        "model.layers.0.copied_scale": Sharded(filled("copied scale"), (WHOLE,)),
        "lm_head.weight": Sharded(filled("head", 97, 12, dtype=torch.float64), (ROWS,)),
    }
    if columns:
        tensors |= {
            "model.layers.0.o_proj.weight": Sharded(filled("o", 12, 8), (COLUMNS,)),
            "model.layers.0.uneven.weight": Sharded(filled("uneven", 6, 7), (COLUMNS,)),
            "model.layers.0.narrow.weight": Sharded(filled("narrow", 9, 1), (COLUMNS,)),
            "model.layers.0.flags": Sharded(filled("flags", 3, 7, dtype=torch.bool), (COLUMNS,)),
            "model.layers.0.experts.up": Sharded(filled("up", 4, 6, 5), (COLUMNS,)),
            "model.layers.0.experts.down": Sharded(filled("down", 4, 6, 5), (DEPTH,)),
        }
    return tensors


@case(2)
def rows_and_columns_2(folder: Path) -> Tensors:
    """A tensor-parallel mixture on two ranks, beside an optimizer and python objects."""
    return save_sharded(folder, mixture(), beside={"extra_state": {"step": 3}, "seed": 42})


@case(3)
def rows_and_columns_3(folder: Path) -> Tensors:
    """The mixture on three ranks: more uneven and empty shards."""
    return save_sharded(folder, mixture())


@case(2, dtypes=("auto",))
def fp8_2(folder: Path) -> Tensors:
    """fp8 weights in rows and columns, with their scales."""
    fp8 = {"e4m3": torch.float8_e4m3fn, "e5m2": torch.float8_e5m2}
    tensors = {
        f"model.{name}.{way}.weight": Sharded(filled(name, 6, 10, dtype=dtype), (placement,))
        for name, dtype in fp8.items()
        for way, placement in {"rows": ROWS, "columns": COLUMNS, "whole": WHOLE}.items()
    }
    tensors["model.e4m3.rows.weight_scale_inv"] = Sharded(filled("s", 1, 1), (WHOLE,))
    return save_sharded(folder, tensors)


@case(2)
def files_per_rank_2(folder: Path) -> Tensors:
    """Four files for each rank, some of them empty."""
    return save_sharded(folder, mixture(), thread_count=4)


# torch takes one rank's file for the whole.
@case(2, torch_reads=False)
def rank_metadata_2(folder: Path) -> Tensors:
    """No collectives: no `.metadata`, but one `__{rank}.metadata` for each rank."""
    return save_sharded(folder, mixture(), use_collectives=False, beside={"step": 3})


@case(2)
def zstd_2(folder: Path) -> Tensors:
    """Compressed records of row and column shards."""
    return save_sharded(folder, mixture(), _extensions=[ZStandard()])


@case(2, torch_reads=False)
def safetensors_records_2(folder: Path) -> Tensors:
    """Row shards in safetensors data files, with bytes entries before them."""
    return save_sharded(
        folder,
        mixture(columns=False),
        beside={"step": 3, "optimizer": {"lr": 0.1}},
        serialization_format=SerializationFormat.SAFETENSORS,
    )


def save_hugging_face(folder: Path, tensors: Tensors, **options: Any) -> Tensors:
    """Row shards through torch's own Hugging Face writer, one set of files for each rank."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    writer = HuggingFaceStorageWriter(str(folder), save_distributed=True, **options)
    state = {name: Sharded(full, (ROWS,)).on(mesh) for name, full in tensors.items()}
    dcp.save(state, storage_writer=writer)
    return tensors


def hugging_face_model(prefix: str = "") -> Tensors:
    """A small model's tensors by the names that the Hub knows, after a prefix."""
    shapes = {"model.embed_tokens": (31, 8), "model.layers.0.up": (10, 8), "lm_head": (31, 8)}
    return {
        f"{prefix}{name}.weight": filled(prefix + name, *shape) for name, shape in shapes.items()
    } | {f"{prefix}model.norm.weight": filled("n", 8, dtype=torch.bfloat16)}


@case(2, naming="bare", torch_reads=False)
def hugging_face_2(folder: Path) -> Tensors:
    """`shard-*.safetensors` and no metadata file, with the Hub's own names (as Automodel)."""
    return save_hugging_face(folder, hugging_face_model())


@case(2, torch_reads=False)
def hugging_face_prefixed_2(folder: Path) -> Tensors:
    """The same under a `model.` prefix."""
    return save_hugging_face(folder, hugging_face_model("model."))


@case(2, naming="bare", torch_reads=False)
def hugging_face_files_2(folder: Path) -> Tensors:
    """Several files for each rank."""
    tensors = hugging_face_model()
    files = {name: 1 + i % 2 for i, name in enumerate(tensors)}
    return save_hugging_face(folder, tensors, fqn_to_index_mapping=files)


@case(2)
def sharded_tensors_2(folder: Path) -> Tensors:
    """The older `ShardedTensor` (FSDP1), each rank holding several shards of a matrix."""
    full = {"model.grid.weight": filled("grid", 8, 6), "model.flat.weight": filled("flat", 9)}
    parts: dict[str, list[list[tuple[tuple[int, ...], tuple[int, ...]]]]] = {
        "model.grid.weight": [
            [((0, 0), (4, 2)), ((4, 2), (4, 4))],
            [((0, 2), (4, 4)), ((4, 0), (4, 2))],
        ],
        "model.flat.weight": [[((0,), (5,))], [((5,), (4,))]],
    }
    rank = dist.get_rank()
    state: dict[str, Any] = {}
    for name, by_rank in parts.items():
        shards = [
            LocalShard.from_tensor_and_offsets(_box(full[name], at, size), list(at), rank)
            for at, size in by_rank[rank]
        ]
        state[name] = init_from_local_shards(shards, *full[name].shape)
    dcp.save({"model": state}, storage_writer=FileSystemWriter(folder, sync_files=False))
    return {f"model.{name}": tensor for name, tensor in full.items()}


def _box(full: torch.Tensor, offsets: Sequence[int], sizes: Sequence[int]) -> torch.Tensor:
    slices = tuple(slice(o, o + s) for o, s in zip(offsets, sizes, strict=True))
    return full[slices].clone()


class Tiled(torch.Tensor):
    """A tensor of which this process saves the given boxes, through torch's own protocol."""

    boxes: list[ChunkStorageMetadata]

    @staticmethod
    def of(full: torch.Tensor, boxes: Sequence[tuple[Sequence[int], Sequence[int]]]) -> Tiled:
        """Save only these boxes (offsets, sizes) of the full tensor."""
        tiled = full.as_subclass(Tiled)
        tiled.boxes = [ChunkStorageMetadata(torch.Size(o), torch.Size(s)) for o, s in boxes]
        return tiled

    def __create_write_items__(self, fqn: str, _object: Any) -> list[WriteItem]:
        plain = self.as_subclass(torch.Tensor)
        properties = TensorProperties.create_from_tensor(plain)
        return [
            WriteItem(
                index=MetadataIndex(fqn, box.offsets),
                type=WriteItemType.SHARD,
                tensor_data=TensorWriteData(box, properties, plain.size()),
            )
            for box in self.boxes
        ]

    def __create_chunk_list__(self) -> list[ChunkStorageMetadata]:
        return self.boxes

    def __get_tensor_shard__(self, index: MetadataIndex) -> torch.Tensor:
        box = next(box for box in self.boxes if box.offsets == index.offset)
        return _box(self.as_subclass(torch.Tensor), box.offsets, box.sizes)


def _grid(shape: Sequence[int], steps: Sequence[int]) -> Iterator[tuple[list[int], list[int]]]:
    """The boxes of a regular grid over a shape; the last of a row may be smaller."""
    for corner in product(*(range(0, n, step) for n, step in zip(shape, steps, strict=True))):
        sizes = [min(s, n - at) for n, s, at in zip(shape, steps, corner, strict=True)]
        yield list(corner), sizes


@case(2)
def interleaved_2(folder: Path) -> Tensors:
    """Many small chunks of each tensor, dealt to the ranks in turn."""
    steps = {
        "model.rows.weight": ((41, 6), (1, 6)),
        "model.columns.weight": ((6, 41), (6, 3)),
        "model.tiles.weight": ((17, 19), (4, 5)),
        "model.blocks.weight": ((5, 6, 7), (2, 3, 2)),
        "model.four.weight": ((3, 2, 4, 5), (2, 1, 3, 2)),
        "model.vector.bias": ((23,), (2,)),
    }
    full = {name: filled(name, *shape) for name, (shape, _) in steps.items()}
    rank = dist.get_rank()
    state = {
        name: Tiled.of(full[name], list(_grid(shape, step))[rank::2])
        for name, (shape, step) in steps.items()
    }
    dcp.save({"model": state}, storage_writer=FileSystemWriter(folder, sync_files=False))
    return {f"model.{name}": tensor for name, tensor in full.items()}


@case(2)
def interlocked_2(folder: Path) -> Tensors:
    """Chunks that no straight cut parts, as a mosaic's."""
    full = {"model.a.weight": filled("a", 6, 6), "model.b.weight": filled("b", 3, 4, 4)}
    turn = [
        ((0, 0), (2, 4)),
        ((0, 4), (4, 2)),
        ((4, 2), (2, 4)),
        ((2, 0), (4, 2)),
        ((2, 2), (2, 2)),
    ]
    solid = [((0, 0, 0), (2, 1, 3)), ((0, 0, 3), (2, 3, 1)), ((0, 3, 1), (2, 1, 3)),
             ((0, 1, 0), (2, 3, 1)), ((0, 1, 1), (2, 2, 2)), ((2, 0, 0), (1, 4, 4))]  # fmt: skip
    rank = dist.get_rank()
    state = {
        "model.a.weight": Tiled.of(full["model.a.weight"], turn[rank::2]),
        "model.b.weight": Tiled.of(full["model.b.weight"], solid[rank::2]),
    }
    dcp.save({"model": state}, storage_writer=FileSystemWriter(folder, sync_files=False))
    return {f"model.{name}": tensor for name, tensor in full.items()}


@case(4)
def mesh_2x2(folder: Path) -> Tensors:
    """A two-dimensional mesh: every pair of placements, even and uneven."""
    ways = {"rows": ROWS, "columns": COLUMNS, "whole": WHOLE}
    shapes = {"even": (8, 12), "uneven": (7, 5), "small": (1, 3), "tall": (5, 1)}
    tensors = {
        f"model.{shape_name}.{first}_{second}.weight": Sharded(
            filled(f"{shape_name} {first} {second}", *shape), (ways[first], ways[second])
        )
        for shape_name, shape in shapes.items()
        for first, second in product(ways, ways)
    }
    tensors["model.cube.weight"] = Sharded(filled("cube", 5, 6, 7), (DEPTH, COLUMNS))
    return save_sharded(folder, tensors, (2, 2))


@case(4)
def strided_2x2(folder: Path) -> Tensors:
    """FSDP over tensor parallelism: rows are split first by the inner, then by the outer dim."""
    strided = (_StridedShard(0, split_factor=2), ROWS)
    tensors = {
        "model.both.weight": Sharded(filled("both", 8, 3), strided),
        "model.bias": Sharded(filled("bias", 12), strided),
        "model.mixed.weight": Sharded(filled("mixed", 8, 6), (ROWS, COLUMNS)),
    }
    return save_sharded(folder, tensors, (2, 2))


@case(4)
def expert_mesh_4(folder: Path) -> Tensors:
    """Experts on two ranks each, split again along dim 1; the rest in rows over all four."""
    everyone = init_device_mesh("cpu", (4,))
    experts = init_device_mesh("cpu", (2, 2))
    full = {
        "model.layers.0.experts.gate_up_proj": filled("gate_up", 6, 10, 4),
        "model.layers.0.experts.down_proj": filled("down", 6, 4, 5),
        "model.layers.0.q_proj.weight": filled("q", 9, 4),
    }
    state: dict[str, DTensor] = {
        name: distribute_tensor(tensor, experts, [ROWS, COLUMNS], src_data_rank=None)
        if "experts" in name
        else distribute_tensor(tensor, everyone, [ROWS], src_data_rank=None)
        for name, tensor in full.items()
    }
    dcp.save({"model": state}, storage_writer=FileSystemWriter(folder, sync_files=False))
    return {f"model.{name}": tensor for name, tensor in full.items()}


@case(2)
def several_shards_2(folder: Path) -> Tensors:
    """Tensors larger than any buffer, in row and column shards, in two files for each rank."""
    tensors = {
        f"model.layers.{i}.{name}": Sharded(filled(f"{i}{name}", *shape), (way,))
        for i in range(4)
        for name, (shape, way) in {
            "q.weight": ((300, 200), ROWS),
            "up.weight": ((700, 301), COLUMNS),
            "n.weight": ((7,), ROWS),
        }.items()
    }
    tensors["model.embed_tokens.weight"] = Sharded(filled("embed", 3001, 1501), (ROWS,))
    tensors["lm_head.weight"] = Sharded(filled("head", 1501, 2003), (COLUMNS,))
    return save_sharded(folder, tensors, thread_count=2)
