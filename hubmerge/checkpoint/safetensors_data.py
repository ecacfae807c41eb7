"""Storage format: safetensors data, in which a chunk is the entry that has the tensor's key."""

from __future__ import annotations

from math import prod
from typing import BinaryIO

from hubmerge.checkpoint.payload import ByteSource, Payload
from hubmerge.checkpoint.schema import Chunk
from hubmerge.checkpoint.sharding_info import saved_offsets
from hubmerge.errors import DamagedFileError
from hubmerge.hf_format.dtypes import DType
from hubmerge.hf_format.safetensors_header import HeaderTensor, read_header

Entries = dict[str, tuple[HeaderTensor, tuple[int, ...] | None]]
"""Tensors by key, and where each begins in the whole tensor, if the file says so."""


def read_entries(opened: BinaryIO, label: str, offset: int) -> Entries:
    """Read the header of the safetensors data that begin at `offset` of a file.

    Args:
        label: the file's name, for messages.

    Raises:
        CheckpointError: there is no such header, or it is malformed.
    """
    tensors, metadata = read_header(opened, label, offset)
    offsets = saved_offsets(tensors, metadata, label)
    return {tensor.name: (tensor, offsets.get(tensor.name)) for tensor in tensors}


def find_entry(file: ByteSource, entries: Entries, chunk: Chunk, key: str, dtype: DType) -> Payload:
    """Find the elements of `chunk`, a piece of the tensor `key`.

    Raises:
        DamagedFileError: the file does not hold that chunk.
    """
    if key not in entries:
        raise DamagedFileError(file.name, "the tensor is not in it")
    entry, offsets = entries[key]
    if offsets not in (None, chunk.offsets):
        # torch's writer keeps one chunk of each tensor in a file, and loses the others.
        raise DamagedFileError(
            file.name, f"holds the chunk at {offsets} instead of the one at {chunk.offsets}"
        )
    if (entry.dtype, entry.shape) != (dtype, chunk.sizes):
        raise DamagedFileError(
            file.name,
            f"holds {entry.dtype.name} {entry.shape} instead of {dtype.name} {chunk.sizes}",
        )
    return Payload(file, entry.offset, None, prod(chunk.sizes))
