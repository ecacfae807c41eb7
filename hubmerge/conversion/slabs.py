"""The elements of one planned tensor, as a stream of output bytes in blocks of bounded size.

An output tensor is one or more boxes of a stored tensor, and a box is filled from the stored chunks
that intersect it. A box is cut into slabs that fit a buffer; each slab is gathered from the chunks,
cast, and handed on. Uneven and column shards, replicas, 0-d tensors and experts' slices all go this
one way.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

from hubmerge.checkpoint.records import DataFiles, Payload
from hubmerge.checkpoint.schema import Chunk
from hubmerge.conversion.cast import cast, finite_made_infinite
from hubmerge.errors import CheckpointError, DamagedFileError
from hubmerge.names.weights import Box
from hubmerge.planning.plan import Plan, PlannedTensor

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    # Whole numbers as wide as an element: copying those never touches a bit.
    Elements = npt.NDArray[np.unsignedinteger[Any]]

# Bytes of a slab, before and after the cast. Small enough to stay in a core's cache between the
# read, the cast, the hash and the write: larger buffers were slower in every measurement.
BLOCK_BYTES = 1 << 21


@dataclass(frozen=True, slots=True)
class Slab:
    """A piece of a tensor's output that fits one block."""

    box: Box
    size_bytes: int


def open_data_files(plan: Plan) -> DataFiles:
    """The data files that the plan needs, each proved to be there and long enough.

    Raises:
        DamagedFileError, UnsafeInputError: one is not.
    """
    files = DataFiles(plan.checkpoint.folder)
    files.check_sizes(plan.data_files, plan.first_key_past)
    return files


def slabs(tensor: PlannedTensor) -> Iterator[Slab]:
    """Cut the output of `tensor` into consecutive slabs of at most `BLOCK_BYTES`."""
    itemsize = tensor.dtype.itemsize
    most_elements = BLOCK_BYTES // max(itemsize, tensor.source_dtype.itemsize)
    for box in tensor.boxes:
        for piece in _cut_in_order(box, tensor.order, most_elements):
            yield Slab(piece, prod(piece.sizes) * itemsize)


def _cut_in_order(box: Box, order: tuple[int, ...] | None, most_elements: int) -> Iterator[Box]:
    """Cut a box as the output has its dimensions; the pieces have them as they are stored."""
    if order is None:
        yield from _cut(box, most_elements)
        return
    back = _inverse(order)
    seen = Box(_permuted(box.offsets, order), _permuted(box.sizes, order))
    for piece in _cut(seen, most_elements):
        yield Box(_permuted(piece.offsets, back), _permuted(piece.sizes, back))


def _permuted(values: tuple[int, ...], order: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(values[dim] for dim in order)


def _inverse(order: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(sorted(range(len(order)), key=order.__getitem__))


def _cut(box: Box, most_elements: int) -> Iterator[Box]:
    """Cut a box, in row-major order, into boxes of at most `most_elements`."""
    offsets, sizes = box.offsets, box.sizes
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
    dim -= 1  # everything inside this one fits, together with some of its own
    most = max(1, most_elements // inner)
    inside = (0,) * (len(sizes) - dim - 1)
    for outer in _places(sizes[:dim]):
        for begin in range(0, sizes[dim], most):
            count = min(most, sizes[dim] - begin)
            place = [*outer, begin, *inside]
            place[0] *= box.step
            yield Box(
                tuple(map(int.__add__, offsets, place)),
                ((1,) * dim + (count,) + sizes[dim + 1 :]),
                box.step,
            )


def _places(sizes: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    """Every place in a box of these sizes, in row-major order.

    One after another: `itertools.product` lists each range first, and a hostile one is endless.
    """
    for number in range(prod(sizes)):
        place, rest = [], number
        for size in reversed(sizes):
            rest, within = divmod(rest, size)
            place.append(within)
        yield tuple(reversed(place))


class TensorReader:
    """Reads slabs of one planned tensor, best in order: a compressed chunk is read forward.

    Args:
        scratch: two blocks of work space, which readers may share one after another.
    """

    def __init__(self, tensor: PlannedTensor, files: DataFiles, scratch: memoryview) -> None:
        self._tensor, self._files = tensor, files
        self._stored, self._span = scratch[:BLOCK_BYTES], scratch[BLOCK_BYTES:]
        self._payloads: dict[int, Payload] = {}
        # Chunks stand in row-major order: by their first row, those near a box are found at once.
        self._first_rows = [chunk.offsets[0] for chunk in tensor.chunks if chunk.offsets]
        self._most_rows = max((c.sizes[0] for c in tensor.chunks if c.sizes), default=0)

    def check(self) -> None:
        """Prove that every chunk is stored as planned, before any is read; errors as of `read`."""
        for number, chunk in enumerate(self._tensor.chunks):
            self._payload(number, chunk)

    def read(self, slab: Slab, out: memoryview) -> None:
        """Fill `out` (``slab.size_bytes`` long) with the slab as it stands in the output file."""
        tensor = self._tensor
        if not tensor.is_cast:
            self._gather(slab.box, out)
            return
        stored = self._stored[: prod(slab.box.sizes) * tensor.source_dtype.itemsize]
        self._gather(slab.box, stored)
        cast(stored, tensor.source_dtype.name, out, tensor.dtype.name, self._span)
        if tensor.dtype.name == "float16" and not tensor.may_overflow:
            lost = finite_made_infinite(stored, tensor.source_dtype.name, out)
            if lost is not None:
                raise CheckpointError(
                    f"{tensor.name!r} holds {lost:.6g}, which float16 cannot "
                    "(its largest is 65504)",
                    "Use --dtype bfloat16, keep this tensor as stored with --keep-dtype, or accept "
                    "infinite values with --allow-overflow.",
                )

    def _gather(self, box: Box, out: memoryview) -> None:
        for number in self._near(box):
            chunk = self._tensor.chunks[number]
            part = _part_in(chunk, box)
            if part is None:
                continue
            try:
                self._copy(self._payload(number, chunk), chunk, box, part, out)
            except DamagedFileError as error:
                raise error.while_reading(self._tensor.key) from None

    def _near(self, box: Box) -> range:
        """The numbers of the chunks that may have rows of `box`."""
        if not box.offsets:
            return range(len(self._tensor.chunks))
        first = box.offsets[0]
        end = first + (box.sizes[0] - 1) * box.step + 1
        return range(
            bisect_right(self._first_rows, first - self._most_rows),
            bisect_left(self._first_rows, end),
        )

    def _payload(self, number: int, chunk: Chunk) -> Payload:
        payload = self._payloads.get(number)
        if payload is None:
            tensor = self._tensor
            payload = self._files.payload(chunk, tensor.key, tensor.source_dtype)
            self._payloads[number] = payload
        return payload

    def _copy(self, payload: Payload, chunk: Chunk, box: Box, part: Box, out: memoryview) -> None:
        """Copy `part`, which `chunk` holds, to its place in `out`, which is `box`."""
        itemsize = self._tensor.source_dtype.itemsize
        strides = payload.strides or _row_major(chunk.sizes)
        first = _dot(map(int.__sub__, part.offsets, chunk.offsets), strides)
        is_plain = payload.strides is None
        order = self._tensor.order
        is_straight = is_plain and order is None and box.step == 1
        if is_straight and part == box and _is_one_run(part.sizes, chunk.sizes):
            payload.source.read_into(payload.offset + first * itemsize, out)
            return
        target = _elements(out, itemsize)
        if order is None:
            target = target.reshape(box.sizes)
        else:  # the output has other dimensions first: see it as the stored tensor has them
            target = target.reshape(_permuted(box.sizes, order)).transpose(_inverse(order))
        place = list(map(int.__sub__, part.offsets, box.offsets))
        if box.step > 1:
            place[0] //= box.step
            strides = (strides[0] * box.step, *strides[1:])
        target = _narrow(target, tuple(place), part.sizes)
        if is_plain:
            for span, start in _spans(part.sizes, strides, first, len(self._span) // itemsize):
                self._read_span(payload, start, strides, _narrow(target, span.offsets, span.sizes))
        else:
            stored = payload.source.view(payload.offset, payload.extent * itemsize)
            target[...] = _strided(stored, itemsize, part.sizes, strides, first)

    def _read_span(
        self, payload: Payload, first: int, strides: tuple[int, ...], target: Elements
    ) -> None:
        """Read from the first to the last element of `target` at once; copy what belongs to it."""
        itemsize = self._tensor.source_dtype.itemsize
        extent = 1 + _dot((n - 1 for n in target.shape), strides)
        buffer = self._span[: extent * itemsize]
        payload.source.read_into(payload.offset + first * itemsize, buffer)
        target[...] = _strided(buffer, itemsize, target.shape, strides, 0)


def _part_in(chunk: Chunk, box: Box) -> Box | None:
    """What of `box` is in `chunk`; None where nothing is."""
    low = list(map(max, box.offsets, chunk.offsets))
    box_ends = list(map(int.__add__, box.offsets, box.sizes))
    if box.step > 1:
        low[0] += (box.offsets[0] - low[0]) % box.step  # up to the next row that the box has
        box_ends[0] = box.offsets[0] + (box.sizes[0] - 1) * box.step + 1
    chunk_ends = map(int.__add__, chunk.offsets, chunk.sizes)
    sizes = list(map(int.__sub__, map(min, box_ends, chunk_ends), low))
    if any(size <= 0 for size in sizes):
        return None
    if box.step > 1:
        sizes[0] = 1 + (sizes[0] - 1) // box.step
    return Box(tuple(low), tuple(sizes), box.step)


def _narrow(elements: Elements, offsets: tuple[int, ...], sizes: tuple[int, ...]) -> Elements:
    return elements[tuple(map(slice, offsets, map(int.__add__, offsets, sizes)))]


def _dot(a: Iterable[int], b: Iterable[int]) -> int:
    return sum(map(int.__mul__, a, b))


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
    for outer in _places(sizes[:dim]):
        for begin in range(0, sizes[dim], step):
            count = min(step, sizes[dim] - begin)
            offsets = (*outer, begin, *((0,) * (len(sizes) - dim - 1)))
            place = first + _dot(offsets, strides)
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


def _elements(buffer: memoryview, itemsize: int) -> Elements:
    import numpy as np

    return np.frombuffer(buffer, dtype=f"u{itemsize}")


def _strided(
    buffer: memoryview,
    itemsize: int,
    sizes: tuple[int, ...],
    strides: tuple[int, ...],
    first: int,
) -> Elements:
    """A region of the buffer, whose bounds numpy checks; `strides` and `first` in elements."""
    import numpy as np

    strides_bytes = [stride * itemsize for stride in strides]
    return np.ndarray(sizes, f"u{itemsize}", buffer, first * itemsize, strides_bytes)


def same_elements(left: PlannedTensor, right: PlannedTensor, files: DataFiles) -> bool:
    """Do two tensors have the same bytes? Read side by side, in blocks, to the first difference."""
    if (left.shape, left.dtype) != (right.shape, right.dtype):
        return False
    blocks = [memoryview(bytearray(BLOCK_BYTES)) for _ in range(2)]
    readers = [
        TensorReader(tensor, files, memoryview(bytearray(2 * BLOCK_BYTES)))
        for tensor in (left, right)
    ]
    for reader in readers:
        reader.check()  # a shape may be large enough to be busy with for ever, a file is not
    for slab in slabs(left):
        for reader, block in zip(readers, blocks, strict=True):
            reader.read(slab, block[: slab.size_bytes])
        if blocks[0][: slab.size_bytes] != blocks[1][: slab.size_bytes]:
            return False
    return True


def is_all_zero(tensor: PlannedTensor, files: DataFiles) -> bool:
    """Return whether a floating tensor holds nothing but zeros, of either sign.

    It is read in blocks, up to the first value that is not zero.
    """
    reader = TensorReader(tensor, files, memoryview(bytearray(2 * BLOCK_BYTES)))
    reader.check()
    block = memoryview(bytearray(BLOCK_BYTES))
    for slab in slabs(tensor):
        reader.read(slab, block[: slab.size_bytes])
        # The sign is the highest bit.
        if (_elements(block[: slab.size_bytes], tensor.dtype.itemsize) << 1).any():
            return False
    return True
