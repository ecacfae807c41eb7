"""Random checkpoints: whatever the mesh, the chunks, the dtypes and the shards, the same bytes.

The checkpoints are saved by torch's own planners and writers, one after the other for each rank;
only the collectives between them are replaced. That takes milliseconds instead of processes.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, reject, settings
from hypothesis import strategies as st
from torch.distributed.checkpoint import DefaultSavePlanner, FileSystemWriter
from torch.distributed.checkpoint._extension import ZStandard
from torch.distributed.checkpoint.filesystem import SerializationFormat
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from torch.distributed.tensor import Placement, Replicate, Shard
from torch.distributed.tensor._utils import _compute_local_shape_and_global_offset

import hubmerge
from hubmerge.checkpoint.data_files import DataFiles
from hubmerge.checkpoint.metadata import read_checkpoint
from hubmerge.conversion.shard_writer import write_shard
from hubmerge.errors import NoModelWeightsError
from hubmerge.names.options import NamingOptions
from hubmerge.names.views import NotAViewError, TensorView
from hubmerge.names.weights import Naming, Weight
from hubmerge.planning.plan import make_plan
from tests.support import oracle
from tests.support.checkpoints.cases_sharded import Tiled
from tests.support.checkpoints.registry import filled
from tests.support.recipes import SHAPES, Operation, apply, on_views, recipes

Box = tuple[tuple[int, ...], tuple[int, ...]]

FLOATS = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
OTHERS = [torch.bool, torch.int8, torch.int64, torch.uint8, torch.uint16, torch.complex64]
EIGHT_BIT = [torch.float8_e4m3fn, torch.float8_e5m2]

# Of a folder, what neither torch nor transformers writes.
OURS = {"README.md", ".hubmerge.json"}


def examples(count: int) -> settings:
    """The same examples in every run, without a limit on the time of one."""
    return settings(
        max_examples=count,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )


@dataclass(frozen=True)
class Stored:
    """A tensor, and the boxes of it that each rank saves (None: every rank saves all of it)."""

    full: torch.Tensor
    boxes: list[list[Box]] | None

    def on(self, rank: int) -> torch.Tensor:
        """What this rank hands to the planner."""
        return self.full if self.boxes is None else Tiled.of(self.full, self.boxes[rank])


@dataclass(frozen=True)
class Saved:
    """A checkpoint to be: its tensors by name inside `{"model": ...}`, and how it is written."""

    tensors: dict[str, Stored]
    ranks: int
    options: dict[str, Any] = field(default_factory=dict)

    def wanted(self, dtype: str) -> dict[str, torch.Tensor]:
        """The tensors that a conversion must give."""
        whole = {name: stored.full for name, stored in self.tensors.items()}
        return oracle.cast(oracle.hub_tensors(whole, bare=True), dtype)


def save_as_ranks(
    folder: Path, saved: Saved, damage: Callable[[Metadata], None] = lambda metadata: None
) -> None:
    """`dcp.save` of all ranks in this process; `damage` may change what `.metadata` will say."""
    planners = [DefaultSavePlanner() for _ in range(saved.ranks)]
    writers = [
        FileSystemWriter(folder, sync_files=False, **saved.options) for _ in range(saved.ranks)
    ]
    plans = []
    for rank, (planner, writer) in enumerate(zip(planners, writers, strict=True)):
        state = {name: stored.on(rank) for name, stored in saved.tensors.items()}
        planner.set_up_planner({"model": state}, is_coordinator=rank == 0)
        writer.set_up_storage_writer(rank == 0, rank=rank, use_collectives=True)
        plans.append(writer.prepare_local_plan(planner.create_local_plan()))
    plans, metadata = planners[0].create_global_plan(plans)
    plans = writers[0].prepare_global_plan(plans)
    results = [
        writer.write_data(planner.finish_plan(plan), planner).value()
        for writer, planner, plan in zip(writers, planners, plans, strict=True)
    ]
    damage(metadata)
    writers[0].finish(metadata, results)


# ---- Strategies ----


def mesh_boxes(
    shape: Sequence[int], mesh: Sequence[int], placements: Sequence[Placement]
) -> list[list[Box]]:
    """The one box that DTensor would give each rank."""
    boxes = []
    for coordinate in itertools.product(*map(range, mesh)):
        sizes, offsets = _compute_local_shape_and_global_offset(
            tuple(shape), tuple(mesh), list(coordinate), placements
        )
        boxes.append([(tuple(offsets), tuple(sizes))])
    return boxes


def placements_for(dims: int, mesh: Sequence[int]) -> st.SearchStrategy[list[Placement]]:
    """A placement for each mesh dimension, none of them beyond the tensor's dimensions."""
    ways: list[Placement] = [Replicate(), *(Shard(dim) for dim in range(dims))]
    return st.lists(st.sampled_from(ways), min_size=len(mesh), max_size=len(mesh))


@st.composite
def cut_boxes(draw: st.DrawFn, shape: Sequence[int], ranks: int) -> list[list[Box]]:
    """The tensor cut again and again at random places, its parts dealt to random ranks."""
    boxes: list[Box] = [((0,) * len(shape), tuple(shape))]
    for _ in range(draw(st.sampled_from([3, 6, 9, 1, 0]))):
        which = draw(st.integers(0, len(boxes) - 1))
        offsets, sizes = boxes[which]
        long_dims = [dim for dim, size in enumerate(sizes) if size > 1]
        if not long_dims:
            continue
        dim = draw(st.sampled_from(long_dims))
        at = draw(st.integers(1, sizes[dim] - 1))
        boxes[which : which + 1] = _cut(offsets, sizes, dim, at)
    dealt: list[list[Box]] = [[] for _ in range(ranks)]
    for box in draw(st.permutations(boxes)):
        dealt[draw(st.integers(0, ranks - 1))].append(box)
    return dealt


def _cut(offsets: tuple[int, ...], sizes: tuple[int, ...], dim: int, at: int) -> list[Box]:
    def changed(values: tuple[int, ...], value: int) -> tuple[int, ...]:
        return (*values[:dim], value, *values[dim + 1 :])

    upper = (offsets, changed(sizes, at))
    lower = (changed(offsets, offsets[dim] + at), changed(sizes, sizes[dim] - at))
    return [upper, lower]


@st.composite
def full_tensors(
    draw: st.DrawFn, name: str, dtypes: Sequence[torch.dtype], min_size: int = 0
) -> torch.Tensor:
    """A small tensor of up to four dimensions, not always row-major in memory."""
    dims = draw(st.sampled_from([2, 3, 1, 4, 0]))  # lists() would mostly be empty or short
    shape = [draw(st.sampled_from([5, 2, 7, 9, 4, 1, min_size])) for _ in range(dims)]
    tensor = filled(name, *shape, dtype=draw(st.sampled_from(dtypes)))
    return draw(in_memory_order(tensor))


@st.composite
def in_memory_order(draw: st.DrawFn, tensor: torch.Tensor) -> torch.Tensor:
    """The same tensor, with its dimensions in any order in memory."""
    order = draw(st.permutations(range(tensor.ndim)))
    inverse = [order.index(dim) for dim in range(tensor.ndim)]
    return tensor.permute(order).clone(memory_format=torch.contiguous_format).permute(inverse)


names = st.text(st.sampled_from('ab.Z_-0é"\\/日😀'), min_size=1, max_size=8)
name_sets = st.sets(names, min_size=2, max_size=6).map(sorted)


@st.composite
def on_meshes(draw: st.DrawFn, dtypes: Sequence[torch.dtype]) -> Saved:
    """Tensors placed on one mesh, as a trainer does; any record format."""
    mesh = draw(st.lists(st.integers(1, 4), min_size=1, max_size=2))
    tensors = {}
    for name in draw(name_sets):
        full = draw(full_tensors(name, dtypes))
        placements = draw(placements_for(full.ndim, mesh))
        placed = mesh_boxes(full.shape, mesh, placements)
        plain = draw(st.booleans()) if full.ndim else True
        tensors[name] = Stored(full, None if plain else placed)
    ranks = len(list(itertools.product(*map(range, mesh))))
    formats = list(SerializationFormat)
    options = draw(writer_options(formats if _all_contiguous(tensors) else formats[:1]))
    return Saved(tensors, ranks, options)


def _all_contiguous(tensors: dict[str, Stored]) -> bool:
    return all(stored.full.is_contiguous() for stored in tensors.values())


@st.composite
def in_pieces(draw: st.DrawFn, dtypes: Sequence[torch.dtype], min_size: int = 0) -> Saved:
    """Tensors cut at random, several chunks for each rank."""
    ranks = draw(st.integers(1, 4))
    tensors = {}
    for name in draw(name_sets):
        full = draw(full_tensors(name, dtypes, min_size))
        tensors[name] = Stored(full, draw(cut_boxes(full.shape, ranks)))
    return Saved(tensors, ranks, draw(writer_options(list(SerializationFormat)[:1])))


@st.composite
def writer_options(draw: st.DrawFn, formats: Sequence[SerializationFormat]) -> dict[str, Any]:
    """Files for each rank, and how a record is written."""
    options: dict[str, Any] = {
        "thread_count": draw(st.integers(1, 3)),
        "single_file_per_rank": draw(st.booleans()),
        "serialization_format": draw(st.sampled_from(formats)),
    }
    if options["serialization_format"] is SerializationFormat.TORCH_SAVE and draw(st.booleans()):
        options["_extensions"] = [ZStandard()]
    return options


shard_sizes = st.one_of(st.integers(1, 3_000), st.just(2_000_000_000))


# ---- Properties ----


def assert_same_bytes(saved: Saved, dtype: str, shard_size: int) -> None:
    """Convert, and compare every file with what `save_file` writes for the same tensors."""
    with TemporaryDirectory() as scratch:
        source, out = Path(scratch) / "checkpoint", Path(scratch) / "out"
        save_as_ranks(source, saved)
        naming = NamingOptions(allow_overflow=True)  # as `Tensor.to` has it
        if not saved.wanted(dtype):
            with pytest.raises(NoModelWeightsError):
                hubmerge.convert(source, out, naming=naming)
            return
        hubmerge.convert(source, out, dtype=dtype, shard_size=shard_size, naming=naming)
        written = {p.name: p.read_bytes() for p in out.iterdir() if p.name not in OURS}
    expected = oracle.expected_folder(saved.wanted(dtype), shard_size).files
    assert written.keys() == expected.keys()
    for name, data in expected.items():
        assert written[name] == data, name


@examples(120)
@given(
    on_meshes(FLOATS + OTHERS),
    st.sampled_from(["bfloat16", "float16", "float32", "auto"]),
    shard_sizes,
)
def test_any_mesh_gives_the_bytes_of_save_file(saved: Saved, dtype: str, shard_size: int) -> None:
    """Rows, columns, both, replicas, uneven and empty shards: no placement changes the output."""
    assert_same_bytes(saved, dtype, shard_size)


@examples(120)
@given(
    in_pieces(FLOATS + OTHERS),
    st.sampled_from(["bfloat16", "float16", "float32", "auto"]),
    shard_sizes,
)
def test_any_chunks_give_the_bytes_of_save_file(saved: Saved, dtype: str, shard_size: int) -> None:
    """Any way to cut tensors into boxes and to deal them to ranks gives the same output."""
    assert_same_bytes(saved, dtype, shard_size)


@examples(25)
@given(in_pieces(EIGHT_BIT + FLOATS), shard_sizes)
def test_fp8_passes_unchanged(saved: Saved, shard_size: int) -> None:
    """With `auto`, fp8 bits arrive as they were stored."""
    assert_same_bytes(saved, "auto", shard_size)


@examples(60)
@given(
    st.one_of(on_meshes(FLOATS + OTHERS), in_pieces(FLOATS + OTHERS)),
    st.sampled_from(["bfloat16", "auto"]),
    st.sampled_from([16, 24, 40, 64, 1000]),
)
def test_no_block_size_changes_a_byte(saved: Saved, dtype: str, block_bytes: int) -> None:
    """Blocks of a few elements cut small tensors in all the ways that real ones cut large ones."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hubmerge.conversion.slabs.BLOCK_BYTES", block_bytes)
        patch.setattr("hubmerge.conversion.shard_writer.BLOCK_BYTES", block_bytes)
        patch.setattr("hubmerge.conversion.shard_writer.SCRATCH_BYTES", 3 * block_bytes)
        assert_same_bytes(saved, dtype, 2_000_000_000)


@examples(15)
@given(st.data(), st.sampled_from(["bfloat16", "auto"]))
def test_large_tensors_give_the_bytes_of_save_file(data: st.DataObject, dtype: str) -> None:
    """The same with tensors of several real blocks, cut along any dimension."""
    shape = data.draw(st.permutations([5, 271, 613]))
    full = data.draw(in_memory_order(filled("large", *shape)))
    boxes = data.draw(cut_boxes(shape, 2))
    options = data.draw(writer_options(list(SerializationFormat)[:1]))
    assert_same_bytes(Saved({"model.large": Stored(full, boxes)}, 2, options), dtype, 10**9)


@st.composite
def recipes_of_pieces(draw: st.DrawFn) -> tuple[Saved, list[Operation]]:
    """Tensors of one shape, cut at random, and what is done to them."""
    ranks, dtype = draw(st.integers(1, 3)), draw(st.sampled_from(FLOATS))
    shape = draw(st.sampled_from(SHAPES))
    tensors = {}
    for name in "abc"[: draw(st.integers(1, 3))]:
        full = draw(in_memory_order(filled(name, *shape, dtype=dtype)))
        tensors[name] = Stored(full, draw(cut_boxes(full.shape, ranks)))
    saved = Saved(tensors, ranks, draw(writer_options(list(SerializationFormat)[:1])))
    return saved, draw(recipes(len(tensors), shape))


@examples(150)
@given(recipes_of_pieces(), st.sampled_from(["bfloat16", "auto"]), st.sampled_from([24, 64, 1000]))
def test_any_recipe_gives_the_bytes_of_save_file(
    recipe: tuple[Saved, list[Operation]], dtype: str, block_bytes: int
) -> None:
    """Slices, transposed tensors, and tensors put together from several: torch's own elements."""
    saved, operations = recipe
    with TemporaryDirectory() as scratch, pytest.MonkeyPatch.context() as patch:
        patch.setattr("hubmerge.conversion.slabs.BLOCK_BYTES", block_bytes)
        patch.setattr("hubmerge.conversion.shard_writer.SCRATCH_BYTES", 3 * block_bytes)
        save_as_ranks(Path(scratch) / "checkpoint", saved)
        written = write_recipe(Path(scratch), saved, operations, dtype)
    results = apply(operations, [stored.full for stored in saved.tensors.values()])
    expected = {str(number): tensor for number, tensor in enumerate(results)}
    assert written == oracle.shard_bytes(oracle.cast(expected, dtype))


def write_recipe(folder: Path, saved: Saved, operations: Sequence[Operation], dtype: str) -> bytes:
    """Convert what the operations make of the tensors, all into one file."""
    checkpoint = read_checkpoint(folder / "checkpoint")
    stored = [TensorView.whole(checkpoint.tensors[f"model.{name}"]) for name in saved.tensors]
    try:
        views = on_views(operations, stored)
    except NotAViewError:
        reject()
    weights = [Weight(str(number), view) for number, view in enumerate(views)]
    plan = make_plan(checkpoint, Naming(weights, [], "recipe"), dtype=dtype, shard_size=10**9)
    write_shard(plan.shards[0], DataFiles(checkpoint.folder), folder, lambda size: None)
    return (folder / "model.safetensors").read_bytes()


def assert_refused(
    saved: Saved, damage_metadata: Callable[[Metadata], None], damage_files: Callable[[Path], None]
) -> None:
    """A damaged checkpoint gives a checkpoint error, and no file that looks like a model."""
    with TemporaryDirectory() as scratch:
        source, out = Path(scratch) / "checkpoint", Path(scratch) / "out"
        save_as_ranks(source, saved, damage_metadata)
        damage_files(source)
        with pytest.raises(hubmerge.HubmergeError) as refusal:
            hubmerge.convert(source, out, dtype="auto")
        assert refusal.value.exit_code == 3
        assert not out.exists() or not list(out.glob("model*"))


@examples(40)
@given(in_pieces(FLOATS, min_size=1), st.data())
def test_a_missing_chunk_is_refused(saved: Saved, data: st.DataObject) -> None:
    """A hole in a tensor is found from the metadata alone, wherever it is."""

    def lose_one(metadata: Metadata) -> None:
        key = data.draw(st.sampled_from(sorted(metadata.state_dict_metadata)))
        entry = metadata.state_dict_metadata[key]
        assert isinstance(entry, TensorStorageMetadata)
        del entry.chunks[data.draw(st.integers(0, len(entry.chunks) - 1))]

    assert_refused(saved, lose_one, lambda source: None)


@examples(40)
@given(in_pieces(FLOATS, min_size=1), st.data())
def test_a_truncated_file_is_refused(saved: Saved, data: st.DataObject) -> None:
    """A data file that ends too early is found, wherever it ends."""

    def truncate_one(source: Path) -> None:
        files = [path for path in sorted(source.glob("*.distcp")) if path.stat().st_size]
        path = data.draw(st.sampled_from(files))
        with path.open("r+b") as file:
            file.truncate(data.draw(st.integers(0, path.stat().st_size - 1)))

    assert_refused(saved, lambda metadata: None, truncate_one)


@pytest.fixture(autouse=True)
def quiet_torch() -> Any:
    """torch warns about its own experimental writers."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="torch")
        yield
