"""What a config says of quantization, and whether tensors are quantized at all.

A run that starts from a quantized model usually trains it dequantized, and keeps the base model's
config: published so, loaders would look for scales that are not there, or quantize once more.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from hubmerge.hf_format.dtypes import BY_NAME, DType
from hubmerge.hf_format.json_text import Entry

# `quantization` alone is what MLX writes.
_SECTIONS = frozenset({"quantization_config", "compression_config", "quantization"})

# Methods whose weights are 8-bit floats; those of the others are packed into integers.
_FLOAT8 = ("fp8", "fbgemm_fp8", "mxfp8")

# Integers that a quantized weight is packed into. A model's own indexes are int64.
_PACKED = frozenset({"uint8", "int8", "int16", "int32"})


class StoredAs(NamedTuple):
    """A tensor's name, element type and number of dimensions."""

    name: str
    dtype: str
    ndim: int


def is_quantization(entry: Entry) -> bool:
    """Return whether a config's entry says how its weights are quantized."""
    return entry.key in _SECTIONS and isinstance(entry.value, dict) and bool(entry.value)


def method_of(section: dict[str, Any]) -> str:
    """Return the method's name, for messages."""
    return str(section.get("quant_method") or f"{section.get('bits', 'some')} bits")


def is_without_weights(section: dict[str, Any], tensors: Iterable[StoredAs]) -> bool:
    """Return whether none of `tensors` is of the form that this quantization gives."""
    needs_float8 = section.get("quant_method") in _FLOAT8
    return not any(_is_quantized(tensor, only_float8=needs_float8) for tensor in tensors)


def _is_quantized(tensor: StoredAs, *, only_float8: bool) -> bool:
    dtype: DType | None = BY_NAME.get(tensor.dtype)
    if dtype is not None and dtype.kind == "scaled":
        return True
    return not only_float8 and tensor.dtype in _PACKED and tensor.ndim >= 2
