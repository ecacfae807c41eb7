"""What a conversion must produce, worked out the slow and obvious way with torch and safetensors.

Nothing here knows hubmerge: whole tensors in memory, `Tensor.to`, `save_file`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from safetensors.torch import save_file

Tensors = Mapping[str, torch.Tensor]

INDEX_NAME = "model.safetensors.index.json"
CAST_FROM = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
"""The dtypes that `--dtype` changes; integers, bools, complex numbers and fp8 stay."""


def hub_name(key: str) -> str | None:
    """The old script's name for a checkpoint key; None where it drops the key."""
    return key.removeprefix("model.") if key.startswith("model.") else None


def hub_tensors(stored: Tensors, *, bare: bool = False) -> dict[str, torch.Tensor]:
    """The model's tensors by Hub name; with `bare`, keys are Hub names already."""
    stored = {key: t for key, t in stored.items() if t.shape != (0,)}  # FSDP leaves those behind
    if bare:
        return stored
    named = {hub_name(key): tensor for key, tensor in stored.items()}
    return {name: tensor for name, tensor in named.items() if name is not None}


def cast(tensors: Tensors, dtype: str) -> dict[str, torch.Tensor]:
    """Cast as `--dtype` does: floats only, and nothing for "auto"."""
    if dtype == "auto":
        return dict(tensors)
    target: torch.dtype = getattr(torch, dtype)
    return {
        name: tensor.to(target) if tensor.dtype in CAST_FROM else tensor
        for name, tensor in tensors.items()
    }


def assign_shards(sizes: Mapping[str, int], shard_size: int) -> list[list[str]]:
    """The old script's shards: names in order, packed until the next would not fit."""
    shards: list[list[str]] = []
    filled = 0
    for name in sorted(sizes):
        if not shards or filled + sizes[name] > shard_size:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += sizes[name]
    return shards


def shard_filenames(count: int) -> list[str]:
    """`model.safetensors`, or the numbered names of several shards."""
    if count == 1:
        return ["model.safetensors"]
    return [f"model-{i:05d}-of-{count:05d}.safetensors" for i in range(1, count + 1)]


def shard_bytes(tensors: Tensors) -> bytes:
    """What `save_file` writes for these tensors."""
    contiguous = {name: tensor.clone(memory_format=torch.contiguous_format)
                  for name, tensor in tensors.items()}  # fmt: skip
    with TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        save_file(contiguous, path, metadata={"format": "pt"})
        return path.read_bytes()


@dataclass(frozen=True)
class ExpectedFolder:
    """The files of a converted model, and the figures that describe it."""

    files: dict[str, bytes]
    """Content of each shard and of the index, by file name."""
    total_size: int
    total_parameters: int


def expected_folder(tensors: Tensors, shard_size: int) -> ExpectedFolder:
    """The folder for these tensors, which already have their Hub names and final dtypes."""
    sizes = {name: tensor.nbytes for name, tensor in tensors.items()}
    shards = assign_shards(sizes, shard_size)
    names = shard_filenames(len(shards))
    files = {
        file: shard_bytes({name: tensors[name] for name in members})
        for file, members in zip(names, shards, strict=True)
    }
    total_size = sum(sizes.values())
    total_parameters = sum(tensor.numel() for tensor in tensors.values())
    if len(shards) > 1:
        weight_map = {name: file for file, members in zip(names, shards, strict=True)
                      for name in members}  # fmt: skip
        files[INDEX_NAME] = index_bytes(weight_map, total_size, total_parameters)
    return ExpectedFolder(files, total_size, total_parameters)


def index_bytes(weight_map: Mapping[str, str], total_size: int, total_parameters: int) -> bytes:
    """`model.safetensors.index.json` as transformers writes it."""
    content = {
        "metadata": {"total_parameters": total_parameters, "total_size": total_size},
        "weight_map": dict(weight_map),
    }
    return (json.dumps(content, indent=2, sort_keys=True) + "\n").encode()


def bits(tensor: torch.Tensor) -> bytes:
    """A tensor's elements in row-major order, for a comparison that NaN and -0.0 cannot fool."""
    flat = tensor.detach().clone(memory_format=torch.contiguous_format).reshape(-1)
    return bytes(flat.view(torch.uint8).numpy()) if flat.numel() else b""


def same_tensor(left: torch.Tensor, right: torch.Tensor) -> bool:
    """Equal dtype, shape and bits."""
    alike = left.dtype == right.dtype and left.shape == right.shape
    return alike and bits(left) == bits(right)


def names_of(shards: Sequence[Sequence[str]]) -> list[str]:
    """All names of all shards, in order."""
    return [name for shard in shards for name in shard]
