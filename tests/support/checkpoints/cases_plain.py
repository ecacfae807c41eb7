"""Checkpoints that one process writes: dtypes, strides, bytes entries, record formats."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import DefaultSavePlanner, FileSystemWriter
from torch.distributed.checkpoint._extension import ZStandard
from torch.distributed.checkpoint.filesystem import SerializationFormat
from torch.utils.serialization import config as serialization_config

from tests.support.checkpoints.registry import Tensors, case, filled

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
INTEGERS = (torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
UNSIGNED = (torch.uint16, torch.uint32, torch.uint64)
EIGHT_BIT_FLOATS = (
    torch.float8_e4m3fn,
    torch.float8_e5m2,
    torch.float8_e4m3fnuz,
    torch.float8_e5m2fnuz,
    torch.float8_e8m0fnu,
)


def save_alone(folder: Path, state: dict[str, Any], **writer_options: Any) -> None:
    """`dcp.save` in a process that is part of no group."""
    writer = FileSystemWriter(folder, **{"sync_files": False, **writer_options})
    dcp.save(state, storage_writer=writer, no_dist=True)


def save_model_alone(folder: Path, tensors: Tensors, **writer_options: Any) -> Tensors:
    """Save these as `{"model": ...}`; returns what the checkpoint then holds, by its own keys."""
    save_alone(folder, {"model": dict(tensors)}, **writer_options)
    return {f"model.{name}": tensor for name, tensor in tensors.items()}


def tensors_of(*dtypes: torch.dtype) -> Tensors:
    """One matrix, one vector and one 0-d tensor of each of these dtypes."""
    tensors: Tensors = {}
    for dtype in dtypes:
        stem = f"model.layers.{str(dtype).removeprefix('torch.')}"
        tensors[f"{stem}.weight"] = filled(f"{stem}.weight", 7, 5, dtype=dtype)
        tensors[f"{stem}.bias"] = filled(f"{stem}.bias", 3, dtype=dtype)
        tensors[f"{stem}.scale"] = filled(f"{stem}.scale", dtype=dtype)
    return tensors


@case(1)
def dtypes(folder: Path) -> Tensors:
    """Every float, integer and bool dtype, each also as a 0-d tensor."""
    return save_model_alone(folder, tensors_of(*FLOATS, *INTEGERS))


@case(1)
def dtypes_unsigned(folder: Path) -> Tensors:
    """The dtypes without a storage class of their own (written as `_rebuild_tensor_v3`)."""
    return save_model_alone(folder, tensors_of(*UNSIGNED))


@case(1, dtypes=("auto",))
def dtypes_fp8(folder: Path) -> Tensors:
    """fp8 tensors beside a wider one: only `--dtype auto` can take them."""
    return save_model_alone(folder, tensors_of(*EIGHT_BIT_FLOATS, torch.bfloat16))


def fp4_tensors() -> Tensors:
    """float4 (two numbers in each byte), beside dtypes that stand before and after it in a file."""
    fp4 = torch.float4_e2m1fn_x2
    tensors = {"a": filled("f4", 7, 5, dtype=fp4), "b": filled("f4 bias", 3, dtype=fp4)}
    tensors["none"] = torch.empty(0, 4, dtype=torch.uint8).view(fp4)
    others = {str(dtype): filled("x", 3, dtype=dtype) for dtype in (torch.bool, torch.uint8)}
    return {f"model.{name}.weight": tensor for name, tensor in (tensors | others).items()}


@case(1, dtypes=("auto",))
def dtypes_fp4(folder: Path) -> Tensors:
    """float4: only `--dtype auto` can take it."""
    return save_model_alone(folder, fp4_tensors())


@case(1, torch_reads=False, dtypes=("auto",))
def safetensors_records_fp4(folder: Path) -> Tensors:
    """float4 in safetensors files, where its shape counts numbers and not bytes."""
    return save_model_alone(
        folder, fp4_tensors(), serialization_format=SerializationFormat.SAFETENSORS
    )


@case(1)
def dtypes_complex(folder: Path) -> Tensors:
    """complex64, which is never cast, beside a dtype that is."""
    return save_model_alone(folder, tensors_of(torch.complex64, torch.float32))


@case(1, dtypes=("bfloat16", "float32", "auto"))
def extremes(folder: Path) -> Tensors:
    """Finite numbers that the cast makes infinite, or zero."""
    numbers = torch.tensor([3.4e38, -3.4e38, 65520.0, 1e-45, 3.3895e38], dtype=torch.float32)
    wider = torch.tensor([1e300, -1e39, 1e-300, 3.4028235677973366e38], dtype=torch.float64)
    return save_model_alone(folder, {"model.a.weight": numbers, "model.b.weight": wider})


@case(1)
def empties(folder: Path) -> Tensors:
    """Tensors without elements, first, last and between others."""
    shapes = {"a": (0,), "b": (3, 4), "c": (3, 0), "d": (0, 5, 2), "e": (2,), "f": (0,)}
    tensors = {f"model.{n}.weight": filled(n, *shape) for n, shape in shapes.items()}
    return save_model_alone(folder, tensors)


@case(1)
def only_empties(folder: Path) -> Tensors:
    """A model whose tensors all lack elements."""
    return save_model_alone(folder, {"model.a": torch.empty(0), "model.b": torch.empty(2, 0)})


@case(1)
def strides(folder: Path) -> Tensors:
    """Tensors whose elements do not lie in row-major order in their record."""
    tensors = {
        "model.conv.weight": filled("c", 6, 4, 3, 5).to(memory_format=torch.channels_last),
        "model.conv3d.weight": filled("d", 2, 3, 4, 3, 2).to(memory_format=torch.channels_last_3d),
        "model.transposed.weight": filled("t", 9, 13).t(),
        "model.permuted.weight": filled("p", 4, 5, 6).permute(2, 0, 1),
        "model.half.weight": filled("h", 10, 8, dtype=torch.bfloat16).t(),
        "model.mask": filled("m", 5, 3, dtype=torch.bool).t(),
        # As many elements as its storage, but not the same: the first is skipped, one is shared.
        "model.overlapping.weight": torch.arange(4.0).as_strided((2, 2), (1, 1), 1),
        # A stride that means nothing where the size is 1.
        "model.single.weight": filled("s", 8).as_strided((1, 8), (77, 1)),
    }
    return save_model_alone(folder, tensors)


@case(1)
def views(folder: Path) -> Tensors:
    """Tensors that show a part of their storage, or share it with another."""
    base = filled("base", 12, 10)
    tied = filled("tied", 16, 8)
    tensors = {
        "model.rows.weight": base[3:7],
        "model.columns.weight": base[:, 2:5],
        "model.stepped.weight": base[::3, ::2],
        "model.expanded.weight": filled("e", 1, 6).expand(5, 6),
        "model.flipped.weight": base.flip(0),
        "model.parameter.weight": torch.nn.Parameter(filled("q", 4, 4)),
        "model.embed_tokens.weight": tied,
        "lm_head.weight": tied,
    }
    return save_model_alone(folder, tensors)


@case(1)
def bytes_entries(folder: Path) -> Tensors:
    """Python objects, extra states and an optimizer around and inside the model."""
    weight = filled("w", 6, 6)
    model: dict[str, Any] = {
        "model.layers.0.weight": weight,
        "model.layers.0._extra_state": {"amax": [1.0, 2.0], "recipe": "delayed", "n": None},
        "model.layers.1._extra_state": b"raw bytes",
        "model.layers.1.weight": filled("v", 3),
    }
    state = {
        "model": model,
        "optimizer": {
            "state": {"model.layers.0.weight": {"step": torch.tensor(3.0), "exp_avg": weight * 2}},
            "param_groups": [{"lr": 1e-4, "betas": (0.9, 0.95), "params": ["a", "b"]}],
        },
        "extra_state": {"global_step": 7, "rng": torch.arange(5, dtype=torch.uint8)},
        "modeling_notes": {"weight": filled("not a model weight", 2, 2)},
        "step": 7,
    }
    save_alone(folder, state)
    kept = {f"model.{name}": t for name, t in model.items() if isinstance(t, torch.Tensor)}
    return kept | {
        "optimizer.state.model.layers.0.weight.step": torch.tensor(3.0),
        "optimizer.state.model.layers.0.weight.exp_avg": weight * 2,
        "extra_state.rng": torch.arange(5, dtype=torch.uint8),
        "modeling_notes.weight": filled("not a model weight", 2, 2),
    }


@case(1)
def nested(folder: Path) -> Tensors:
    """A state dict of dicts and lists: the key's path has many segments."""
    layers = [{"weight": filled(f"layer {i}", 3, 4), "bias": filled(f"b {i}", 3)} for i in range(3)]
    save_alone(
        folder, {"model": {"model": {"layers": layers}, "lm_head": {"weight": layers[0]["bias"]}}}
    )
    expected = {
        f"model.model.layers.{i}.{name}": tensor
        for i, layer in enumerate(layers)
        for name, tensor in layer.items()
    }
    return expected | {"model.lm_head.weight": layers[0]["bias"]}


@case(1, naming="bare")
def bare(folder: Path) -> Tensors:
    """A state dict saved as it is, without a top-level `model`: nothing may be stripped."""
    names = ("model.embed_tokens.weight", "model.layers.0.mlp.up_proj.weight", "lm_head.weight")
    tensors = {name: filled(name, 6, 4) for name in names}
    save_alone(folder, dict(tensors))
    return tensors


@case(1)
def other_prefixes(folder: Path) -> Tensors:
    """Keys under `model.` that are neither `model.model.*` nor the head."""
    names = ("visual.blocks.0.weight", "transformer.h.0.weight", "projector.weight")
    return save_model_alone(folder, {name: filled(name, 4, 3) for name in names})


@case(1)
def without_planner_data(folder: Path) -> Tensors:
    """A planner that flattens nothing leaves no `planner_data` (as Megatron does)."""
    names = ("model.model.layers.0.weight", "model.model.norm.weight", "model.lm_head.weight")
    tensors = {name: filled(name, 6, 4) for name in names}
    planner = DefaultSavePlanner(flatten_state_dict=False)
    writer = FileSystemWriter(folder, sync_files=False)
    dcp.save(dict(tensors), storage_writer=writer, planner=planner, no_dist=True)
    return tensors


@case(1)
def overwritten(folder: Path) -> Tensors:
    """A second save into the same folder leaves files of the first behind."""
    save_model_alone(
        folder, {f"model.{i}.old": filled(f"old {i}", 9) for i in range(8)}, thread_count=4
    )
    return save_model_alone(
        folder, {"model.0.new": filled("new", 9), "model.1.new": filled("n", 2)}
    )


@case(1)
def single_tensor(folder: Path) -> Tensors:
    """The smallest model: one 0-d tensor."""
    return save_model_alone(folder, {"model.logit_scale": torch.tensor(2.75)})


@case(1)
def odd_names(folder: Path) -> Tensors:
    """Names that need escaping or ordering by code point in the safetensors header."""
    stems = ("Z", "a-b", "a.b", "a_b", "été", 'quo"te', "back\\slash", "10", "9", "日本", "😀")
    names = [f"model.{stem}.weight" for stem in stems]
    return save_model_alone(folder, {name: filled(name, 3, 2) for name in names})


@case(1)
def zstd(folder: Path) -> Tensors:
    """Records compressed with zstd, one of them larger than a block and well compressible."""
    tensors = tensors_of(torch.float32, torch.bfloat16, torch.int64)
    tensors["model.big.weight"] = filled("big", 300, 1000).round()
    tensors["model.conv.weight"] = filled("c", 6, 4, 3, 5).to(memory_format=torch.channels_last)
    save_alone(folder, {"model": dict(tensors), "step": 3}, _extensions=[ZStandard()])
    return {f"model.{name}": tensor for name, tensor in tensors.items()}


@case(1, torch_reads=False)
def safetensors_records(folder: Path) -> Tensors:
    """Data files that are safetensors files (torch writes them and cannot read them)."""
    return save_model_alone(
        folder,
        tensors_of(*FLOATS, *INTEGERS) | {"model.none.weight": torch.empty(0, 4)},
        serialization_format=SerializationFormat.SAFETENSORS,
        thread_count=3,
    )


@case(1, torch_reads=False)
def safetensors_after_bytes(folder: Path) -> Tensors:
    """Bytes entries come first in the file, and the safetensors part starts after them."""
    tensors = {"model.a.weight": filled("a", 5, 4), "model.b.weight": filled("b", 7)}
    state = {"model": dict(tensors), "optimizer": {"lr": 0.1, "name": "adamw" * 50}}
    save_alone(folder, state, serialization_format=SerializationFormat.SAFETENSORS)
    return {f"model.{name}": tensor for name, tensor in tensors.items()}


@case(1)
def aligned(folder: Path) -> Tensors:
    """Records whose elements begin at a multiple of 64 KB."""
    alignment = serialization_config.save.storage_alignment
    serialization_config.save.storage_alignment = 1 << 16
    try:
        return save_model_alone(folder, tensors_of(torch.float32, torch.bfloat16))
    finally:
        serialization_config.save.storage_alignment = alignment


@case(1)
def many_files(folder: Path) -> Tensors:
    """One file for each entry."""
    tensors = {f"model.layers.{i}.weight": filled(f"many {i}", 3, 4) for i in range(40)}
    return save_model_alone(folder, tensors, single_file_per_rank=False, thread_count=2)


@case(1)
def several_shards(folder: Path) -> Tensors:
    """Tensors from a few bytes to larger than any buffer, for shards of a few megabytes."""
    layer = {"q.weight": (300, 200), "up.weight": (700, 301), "n.weight": (7,)}
    tensors = {
        f"model.layers.{i}.{name}": filled(f"{i}{name}", *shape)
        for i in range(6)
        for name, shape in layer.items()
    }
    tensors["model.embed_tokens.weight"] = filled("embed", 3001, 1501)
    tensors["lm_head.weight"] = filled("head", 1501, 701, dtype=torch.float64)
    return save_model_alone(folder, tensors, thread_count=4)
