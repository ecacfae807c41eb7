"""The list of checkpoint cases, and the tensors that they are filled with."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

Tensors = dict[str, torch.Tensor]
Write = Callable[[Path], Tensors]

CASTABLE = ("bfloat16", "float16", "float32", "auto")


@dataclass(frozen=True)
class Case:
    """One checkpoint: who writes it, and what a converter and torch itself can make of it."""

    name: str
    ranks: int
    write: Write
    """Runs in every rank; returns the full tensors by checkpoint key (rank 0's answer counts)."""
    naming: Literal["wrapped", "bare"]
    """wrapped: keys are `model.` + the model's own names. bare: keys are those names."""
    dtypes: tuple[str, ...]
    """The `--dtype` values that this checkpoint can be converted to."""
    torch_reads: bool
    """Whether torch's own single-process `dcp.load` can read it."""
    is_model: bool
    """Whether `assets` holds a config that transformers can load the result with."""


CASES: dict[str, Case] = {}


def case(
    ranks: int,
    *,
    naming: Literal["wrapped", "bare"] = "wrapped",
    dtypes: tuple[str, ...] = CASTABLE,
    torch_reads: bool = True,
    is_model: bool = False,
) -> Callable[[Write], Write]:
    """Register the decorated function, under its own name, as a checkpoint case."""

    def register(write: Write) -> Write:
        name = write.__name__
        CASES[name] = Case(name, ranks, write, naming, dtypes, torch_reads, is_model)
        return write

    return register


def filled(key: str, *shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """The tensor of this name: the same in every process, and different from all others."""
    generator = torch.Generator().manual_seed(zlib.crc32(key.encode()))
    if dtype.is_floating_point and dtype.itemsize > 1:
        tensor = torch.randn(shape, generator=generator, dtype=torch.float32).to(dtype)
        return _with_edge_values(tensor) if tensor.numel() >= 16 else tensor
    if dtype == torch.bool:
        return torch.randint(0, 2, shape, generator=generator).to(torch.bool)
    if dtype.is_complex:
        return torch.randn(shape, generator=generator, dtype=dtype)
    return _random_bits(shape, dtype, generator)


def _random_bits(
    shape: tuple[int, ...], dtype: torch.dtype, generator: torch.Generator
) -> torch.Tensor:
    count = math.prod(shape) * dtype.itemsize
    raw = torch.randint(0, 256, (count,), generator=generator).to(torch.uint8)
    return raw.view(dtype).reshape(shape)


def _with_edge_values(tensor: torch.Tensor) -> torch.Tensor:
    """Put values that a careless cast gets wrong at the start and at the end."""
    # The largest numbers that float16 rounds down to its own largest.
    large = 65280.0 if tensor.dtype == torch.bfloat16 else 65519.0
    edges = [math.inf, -math.inf, -0.0, 1e-40, large, 1.00390625, 1.01171875, 6e-8]
    # Only fp32: torch's own casts give NaN other bits at other places for other dtypes.
    if tensor.dtype == torch.float32:
        edges[5] = math.nan
    flat = tensor.view(-1)
    flat[: len(edges)] = torch.tensor(edges, dtype=torch.float64).to(tensor.dtype)
    flat[-1] = flat[-2] = 1.00390625  # half-way between two bfloat16 values
    return tensor
