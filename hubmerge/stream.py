"""The elements of one planned tensor, as a stream of output bytes in blocks of bounded size.

An output tensor is one or more boxes of a stored tensor, and a box is filled from the stored chunks
that intersect it. A box is cut into slabs that fit a buffer; each slab is gathered from the chunks,
cast, and handed on. Uneven and column shards, replicas, 0-d tensors and experts' slices all go this
one way.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from math import prod
from typing import TYPE_CHECKING

from hubmerge.checkpoint.model import Chunk
from hubmerge.checkpoint.records import DataFiles, Payload
from hubmerge.names.model import Box
from hubmerge.plan import PlannedTensor

if TYPE_CHECKING:
    import torch

# Bytes of a slab, before and after the cast. Small enough to stay in a core's cache between the
# read, the cast, the hash and the write: larger buffers were slower in every measurement.
BLOCK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Slab:
    """A piece of a tensor's output that fits one block."""

    box: Box
    start: int
    """Offset of its first byte in the tensor's output."""
    size_bytes: int


def slabs(tensor: PlannedTensor) -> Iterator[Slab]:
    """Cut the output of `tensor` into consecutive slabs of at most `BLOCK_BYTES`."""
    itemsize = tensor.dtype.itemsize
    most_elements = BLOCK_BYTES // max(itemsize, tensor.source_dtype.itemsize)
    start = 0
    for box in tensor.boxes:
        for piece in _cut(box, most_elements):
            size_bytes = prod(piece.sizes) * itemsize
            yield Slab(piece, start, size_bytes)
            start += size_bytes


def _cut(box: Box, most_elements: int) -> Iterator[Box]:
    """Cut a box, in row-major order, into boxes of at most `most_elements`."""
    offsets, sizes = box
    if 0 in sizes:
        return
    inner = 1  # elements in one step of the dimension that is cut
    dim = len(sizes)
    while dim > 0 and inner * sizes[dim - 1] <= most_elements:
        dim -= 1
        inner *= sizes[dim]
    if dim == 0:
        yield box
        return
    dim -= 1  # everything inside this one fits, together with some steps of it
    step = max(1, most_elements // inner)
    for outer in product(*(range(sizes[d]) for d in range(dim))):
        for begin in range(0, sizes[dim], step):
            count = min(step, sizes[dim] - begin)
            yield Box(
                (
                    *(offsets[d] + outer[d] for d in range(dim)),
                    offsets[dim] + begin,
                    *offsets[dim + 1 :],
                ),
                ((1,) * dim + (count,) + sizes[dim + 1 :]),
            )


class TensorReader:
    """Reads slabs of one planned tensor, best in order: a compressed chunk is read forward."""

    def __init__(self, tensor: PlannedTensor, files: DataFiles) -> None:
        self._tensor, self._files = tensor, files
        self._payloads: dict[int, Payload] = {}

    def read(self, slab: Slab, out: memoryview, scratch: memoryview) -> None:
        """Fill `out` (``slab.size_bytes`` long) with the slab as it stands in the output file.

        Args:
            scratch: two blocks of work space.
        """
        tensor = self._tensor
        if not tensor.is_cast:
            self._gather(slab.box, out, scratch[BLOCK_BYTES:])
            return
        stored_bytes = prod(slab.box.sizes) * tensor.source_dtype.itemsize
        stored = scratch[:stored_bytes]
        self._gather(slab.box, stored, scratch[BLOCK_BYTES:])
        _cast(stored, tensor.source_dtype.name, out, tensor.dtype.name)

    def _gather(self, box: Box, out: memoryview, scratch: memoryview) -> None:
        for number, chunk in enumerate(self._tensor.chunks):
            low = tuple(map(max, box.offsets, chunk.offsets))
            high = tuple(
                min(a + b, c + d)
                for a, b, c, d in zip(*box, chunk.offsets, chunk.sizes, strict=True)
            )
            if all(a < b for a, b in zip(low, high, strict=True)):
                payload = self._payload(number, chunk)
                self._copy(payload, chunk, box, low, high, out, scratch)

    def _payload(self, number: int, chunk: Chunk) -> Payload:
        payload = self._payloads.get(number)
        if payload is None:
            payload = self._payloads[number] = self._files.payload(
                chunk, self._tensor.key, self._tensor.source_dtype
            )
        return payload

    def _copy(
        self,
        payload: Payload,
        chunk: Chunk,
        box: Box,
        low: tuple[int, ...],
        high: tuple[int, ...],
        out: memoryview,
        scratch: memoryview,
    ) -> None:
        """Copy the part from `low` to `high` of `chunk` to its place in `out`, which is `box`."""
        itemsize = self._tensor.source_dtype.itemsize
        sizes = tuple(b - a for a, b in zip(low, high, strict=True))
        inside_chunk = tuple(a - b for a, b in zip(low, chunk.offsets, strict=True))
        strides = payload.strides or _row_major(chunk.sizes)
        first = sum(a * b for a, b in zip(inside_chunk, strides, strict=True))
        if payload.strides is None and sizes == box.sizes and _is_one_run(sizes, chunk.sizes):
            payload.source.read_into(payload.offset + first * itemsize, out)
            return
        target = _as_integers(out, itemsize).view(box.sizes)
        for dim, (begin, size) in enumerate(zip(low, sizes, strict=True)):
            target = target.narrow(dim, begin - box.offsets[dim], size)
        if payload.strides is not None:
            length = payload.extent * itemsize
            source = _as_integers(payload.source.view(payload.offset, length), itemsize)
            target.copy_(source.as_strided(sizes, strides, first))
            return
        for part, part_first in _spans(sizes, strides, first, len(scratch) // itemsize):
            _read_span(payload, part.sizes, strides, part_first, itemsize, scratch, target, part)


def _read_span(
    payload: Payload,
    sizes: tuple[int, ...],
    strides: tuple[int, ...],
    first: int,
    itemsize: int,
    scratch: memoryview,
    target: torch.Tensor,
    part: Box,
) -> None:
    """Read from the first to the last element of a part in one go, and copy what belongs to it."""
    extent = 1 + sum((n - 1) * s for n, s in zip(sizes, strides, strict=True))
    buffer = scratch[: extent * itemsize]
    payload.source.read_into(payload.offset + first * itemsize, buffer)
    for dim, (begin, size) in enumerate(zip(part.offsets, sizes, strict=True)):
        target = target.narrow(dim, begin, size)
    target.copy_(_as_integers(buffer, itemsize).as_strided(sizes, strides))


def _spans(
    sizes: tuple[int, ...], strides: tuple[int, ...], first: int, most_elements: int
) -> Iterator[tuple[Box, int]]:
    """Cut a strided region into parts whose first and last element lie within `most_elements`.

    Yields:
        The part's place in the region, and its first element's place in the chunk.
    """
    dim = len(sizes)
    extent = 1
    while dim > 0 and extent + (sizes[dim - 1] - 1) * strides[dim - 1] <= most_elements:
        dim -= 1
        extent += (sizes[dim] - 1) * strides[dim]
    if dim == 0:
        yield Box((0,) * len(sizes), sizes), first
        return
    dim -= 1
    step = 1 + (most_elements - extent) // strides[dim]
    for outer in product(*(range(sizes[d]) for d in range(dim))):
        for begin in range(0, sizes[dim], step):
            count = min(step, sizes[dim] - begin)
            offsets = (*outer, begin, *((0,) * (len(sizes) - dim - 1)))
            place = first + sum(a * b for a, b in zip(offsets, strides, strict=True))
            yield Box(offsets, ((1,) * dim + (count,) + sizes[dim + 1 :])), place


def _row_major(sizes: tuple[int, ...]) -> tuple[int, ...]:
    strides = [1] * len(sizes)
    for dim in range(len(sizes) - 2, -1, -1):
        strides[dim] = strides[dim + 1] * sizes[dim + 1]
    return tuple(strides)


def _is_one_run(sizes: tuple[int, ...], chunk_sizes: tuple[int, ...]) -> bool:
    """Do the elements of a part of these sizes lie one after another in a row-major chunk?"""
    dim = len(sizes)
    while dim > 0 and sizes[dim - 1] == chunk_sizes[dim - 1]:
        dim -= 1
    return all(size == 1 for size in sizes[: max(0, dim - 1)])


def _as_integers(buffer: memoryview, itemsize: int) -> torch.Tensor:
    """The buffer as a flat tensor of integers: copying those never touches a bit."""
    import torch

    kinds = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    return torch.frombuffer(buffer, dtype=kinds[itemsize])


def _cast(stored: memoryview, stored_dtype: str, out: memoryview, dtype: str) -> None:
    """Round `stored` to `dtype` into `out`, as ``tensor.to(dtype)`` does."""
    import torch

    source = torch.frombuffer(stored, dtype=getattr(torch, stored_dtype))
    torch.frombuffer(out, dtype=getattr(torch, dtype)).copy_(source)
