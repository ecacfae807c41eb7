"""Write safetensors headers, byte for byte as the library does, and read them safely.

A file is: 8 bytes little-endian header length, the header (JSON, padded with spaces to a multiple
of 8), then the tensors' bytes one after another without gaps. Format:
https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from math import prod
from typing import Any, BinaryIO, TypeGuard

from hubmerge.errors import CheckpointError
from hubmerge.hf_format.dtypes import BY_CODE, DType

# Readers refuse a longer header (safetensors' own limit).
MAX_HEADER_BYTES = 100_000_000

# torch's own limit.
_MAX_DIMS = 64

# transformers refuses a file without this entry.
_METADATA = {"format": "pt"}


@dataclass(frozen=True, slots=True)
class HeaderTensor:
    """One tensor of a header, of torch's shape; ``offset`` counts bytes from the file's start."""

    name: str
    dtype: DType
    shape: tuple[int, ...]
    offset: int

    @property
    def size_bytes(self) -> int:
        return prod(self.shape) * self.dtype.itemsize


def file_order(name: str, dtype: DType) -> tuple[int, str]:
    """Sort key of a tensor in a file: safetensors lays out larger alignments first, then names."""
    return dtype.order, name


def build_header(tensors: Iterable[tuple[str, DType, tuple[int, ...]]]) -> bytes:
    """Return the header that ``safetensors.torch.save_file(…, {"format": "pt"})`` writes.

    Args:
        tensors: name, dtype and torch's shape of each tensor, already sorted by `file_order`.
    """
    entries: dict[str, Any] = {"__metadata__": _METADATA}
    end = 0
    for name, dtype, shape in tensors:
        start, end = end, end + prod(shape) * dtype.itemsize
        sizes = (*shape[:-1], shape[-1] * dtype.packed) if dtype.packed > 1 else shape
        entries[name] = {"dtype": dtype.code, "shape": sizes, "data_offsets": (start, end)}
    text = json.dumps(entries, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def read_header(
    file: BinaryIO, label: str, start: int = 0
) -> tuple[list[HeaderTensor], dict[str, str]]:
    """Read and check the header of safetensors data, which reach to the end of an open file.

    Args:
        label: the file's name, for messages.
        start: where the data begin in the file, in bytes.

    Returns:
        The tensors in file order, and the header's ``__metadata__``.

    Raises:
        CheckpointError: the header is not well formed, or disagrees with the file's size.
    """
    file_bytes = file.seek(0, 2)
    file.seek(start)
    prefix = file.read(8)
    header_bytes = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
    if not 2 <= header_bytes <= min(MAX_HEADER_BYTES, file_bytes - start - 8):
        raise CheckpointError(f"{label}: not a safetensors file")
    try:
        entries = json.loads(file.read(header_bytes).decode(), object_pairs_hook=_distinct)
    except (ValueError, RecursionError):
        raise CheckpointError(f"{label}: the safetensors header is not valid JSON") from None
    if not isinstance(entries, dict):
        raise CheckpointError(f"{label}: the safetensors header is not a JSON object")
    metadata = entries.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise CheckpointError(f"{label}: the safetensors header's __metadata__ is not text")
    data_start = start + 8 + header_bytes
    tensors = [_entry(name, entry, data_start, label) for name, entry in entries.items()]
    tensors.sort(key=lambda tensor: tensor.offset)
    _check_extent(tensors, data_start, file_bytes, label)
    return tensors, metadata


def _check_extent(
    tensors: list[HeaderTensor], data_start: int, file_bytes: int, label: str
) -> None:
    """Check that tensors fill the data section without gap or overlap, as the format demands."""
    end = data_start
    for tensor in tensors:
        if tensor.offset != end:
            raise CheckpointError(f"{label}: {tensor.name!r} overlaps another tensor, or a gap")
        end += tensor.size_bytes
    if end != file_bytes:
        raise CheckpointError(
            f"{label}: the header describes {end:,} bytes, the file has {file_bytes:,}"
        )


def _entry(name: str, entry: Any, data_start: int, label: str) -> HeaderTensor:
    problem = CheckpointError(f"{label}: the safetensors header's entry for {name!r} is malformed")
    if not isinstance(entry, dict):
        raise problem
    dtype_code, shape, offsets = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
    dtype = BY_CODE.get(dtype_code) if isinstance(dtype_code, str) else None
    if dtype is None:
        code = dtype_code if isinstance(dtype_code, str) else type(dtype_code).__name__
        raise CheckpointError(f"{label}: {name!r} has the unknown dtype {code}")
    if not (is_sizes(shape) and is_sizes(offsets)) or len(offsets) != 2:
        raise problem
    if dtype.packed > 1:
        if not shape or shape[-1] % dtype.packed:
            raise problem
        shape[-1] //= dtype.packed
    tensor = HeaderTensor(name, dtype, tuple(shape), data_start + offsets[0])
    if tensor.size_bytes != offsets[1] - offsets[0]:
        raise problem
    return tensor


def is_sizes(value: Any) -> TypeGuard[list[int]]:
    """Return whether `value`, read from a file, is a list of valid sizes or offsets."""
    return (
        isinstance(value, list)
        and len(value) <= _MAX_DIMS
        and all(type(n) is int and 0 <= n < 2**63 for n in value)
    )


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Build a JSON object; refuse duplicate keys, of which readers use different ones."""
    entries = dict(pairs)
    if len(entries) < len(pairs):
        raise ValueError("duplicate key")
    return entries
