"""What a checkpoint holds, as plain values: no file handle, no torch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import NamedTuple

from hubmerge.hf_format.dtypes import BY_NAME


class Box(NamedTuple):
    """A region of a tensor, in elements."""

    offsets: tuple[int, ...]
    sizes: tuple[int, ...]


class Chunk(NamedTuple):
    """One stored piece of a tensor.

    Attributes:
        offsets: where its box begins in the tensor, in elements.
        sizes: how large its box is, in elements.
        file: path relative to the checkpoint's folder, already checked to stay inside it.
        offset: where the stored bytes begin in the file.
        length: how many bytes are stored.
        codecs: what the stored bytes went through, in decode order (``stream.zstd/1``).
        is_record: whether the bytes are a `torch.save` record (or safetensors data, in which the
            tensor is found by its key); if false they are the elements themselves.
    """

    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    file: str
    offset: int
    length: int
    codecs: tuple[str, ...] = ()
    is_record: bool = True


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor of a checkpoint.

    Attributes:
        key: its flat name in the checkpoint (FQN).
        dtype: torch's name of its element type.
        shape: its shape.
        chunks: its stored pieces; `hubmerge.checkpoint.tiling.covered` proves that they cover it.
        path: the keys of the nested dicts that it was saved in, if the checkpoint says.
    """

    key: str
    dtype: str
    shape: tuple[int, ...]
    chunks: Sequence[Chunk]
    path: tuple[str, ...] | None = None

    @property
    def parameters(self) -> int:
        """The number of its elements."""
        return prod(self.shape)

    @property
    def size_bytes(self) -> int:
        """Bytes of all elements as stored; 0 if safetensors has no such dtype."""
        dtype = BY_NAME.get(self.dtype)
        return self.parameters * dtype.itemsize if dtype else 0


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint as its metadata describes it.

    Attributes:
        folder: the folder of its files.
        tensors: by key, in the checkpoint's order.
        objects: keys of entries that are pickled Python objects; they are never loaded.
        metadata_sha256: over the content of the files that describe it, in order.
        has_save_id: whether that content differs from one save to the next, whatever was saved.
    """

    folder: Path
    tensors: dict[str, StoredTensor]
    objects: tuple[str, ...]
    metadata_sha256: str
    has_save_id: bool = False


def file_extents(chunks: Iterable[Chunk]) -> dict[str, int]:
    """Return the bytes that each data file must have to hold these chunks, by relative path."""
    extents: dict[str, int] = {}
    for chunk in chunks:
        end = chunk.offset + chunk.length
        if extents.get(chunk.file, -1) < end:
            extents[chunk.file] = end
    return extents
