"""Read any box of a stored tensor, however it was sharded.

A box is filled from the stored chunks that intersect it. Uneven and column shards, replicas and
0-d tensors all go this one way.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from math import prod
from typing import TYPE_CHECKING, Any

from hubmerge.checkpoint.data_files import DataFiles
from hubmerge.checkpoint.payload import Payload
from hubmerge.checkpoint.schema import Box, Chunk, StoredTensor
from hubmerge.checkpoint.tiling import covered
from hubmerge.errors import CheckpointError, DamagedFileError
from hubmerge.hf_format.dtypes import BY_NAME, UNSUPPORTED_NAMES, DType

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    # Whole numbers as wide as an element: copying those never touches a bit.
    Elements = npt.NDArray[np.unsignedinteger[Any]]

# Bytes that are read and worked on at a time. Small enough to stay in a core's cache between the
# read, the cast, the hash and the write: larger buffers were slower in every measurement.
BLOCK_BYTES = 1 << 21

# A region whose elements are further apart than this is not read from its first to its last byte,
# unless it is so short that one read costs no more than two.
_MAX_SPARSITY = 4
SHORT_BYTES = 64 << 10


class BoxReader:
    """Reads boxes of one stored tensor, best in order: a compressed chunk is read forward.

    Args:
        tensor: its chunks are proved to cover it, see `hubmerge.checkpoint.tiling.covered`.
        files: the data files of its checkpoint.
        scratch: work space, which readers may share one after another.
    """

    def __init__(self, tensor: StoredTensor, files: DataFiles, scratch: memoryview) -> None:
        self._tensor, self._files, self._scratch = tensor, files, scratch
        self._dtype = dtype_of(tensor)
        self._chunks = tensor.chunks
        self._payloads: dict[int, Payload] = {}
        # Chunks are in row-major order: by their first row, those near a box are found at once.
        self._first_rows = [chunk.offsets[0] for chunk in self._chunks if chunk.offsets]
        self._max_rows = max((c.sizes[0] for c in self._chunks if c.sizes), default=0)

    def check(self) -> None:
        """Prove that every chunk is stored as described; errors as of `read`."""
        for number in range(len(self._chunks)):
            self._payload(number)

    def read(self, box: Box, target: Elements) -> None:
        """Fill `target`, an array of the box's sizes with any strides.

        Raises:
            DamagedFileError: a chunk is not stored as described.
            UnsafeInputError: a record names something to execute.
        """
        for number in self._near(box):
            chunk = self._chunks[number]
            within = _intersection(chunk, box)
            if within is None:
                continue
            try:
                place = tuple(map(int.__sub__, within.offsets, box.offsets))
                self._copy(number, chunk, within, _narrow(target, place, within.sizes))
            except DamagedFileError as error:
                raise error.while_reading(self._tensor.key) from None

    def _near(self, box: Box) -> range:
        """Return the numbers of the chunks that may have rows of `box`."""
        if not box.offsets:
            return range(len(self._chunks))
        first = box.offsets[0]
        return range(
            bisect_right(self._first_rows, first - self._max_rows),
            bisect_left(self._first_rows, first + box.sizes[0]),
        )

    def _payload(self, number: int) -> Payload:
        payload = self._payloads.get(number)
        if payload is None:
            payload = self._files.payload(self._chunks[number], self._tensor.key, self._dtype)
            self._payloads[number] = payload
        return payload

    def _copy(self, number: int, chunk: Chunk, box: Box, target: Elements) -> None:
        """Copy `box`, which `chunk` holds, to `target`."""
        payload = self._payload(number)
        itemsize = self._dtype.itemsize
        strides = payload.strides or row_major(chunk.sizes)
        first = _dot(map(int.__sub__, box.offsets, chunk.offsets), strides)
        begin = payload.offset + first * itemsize
        if payload.strides is None:
            if _is_one_run(box.sizes, chunk.sizes) and target.flags.c_contiguous:
                payload.source.read_into(begin, target.reshape(-1).data.cast("B"))
                return
            extent = 1 + _dot((n - 1 for n in box.sizes), strides)
            if extent <= max(_MAX_SPARSITY * target.size, SHORT_BYTES // itemsize):
                for span, start in _spans(box.sizes, strides, len(self._scratch) // itemsize):
                    self._read_span(
                        payload, first + start, strides, _narrow(target, span.offsets, span.sizes)
                    )
                return
        stored = payload.source.view(payload.offset, payload.extent * itemsize)
        target[...] = _strided(stored, itemsize, box.sizes, strides, first)

    def _read_span(
        self, payload: Payload, first: int, strides: tuple[int, ...], target: Elements
    ) -> None:
        """Read from the first to the last element of `target` at once; copy what belongs to it."""
        itemsize = self._dtype.itemsize
        extent = 1 + _dot((n - 1 for n in target.shape), strides)
        buffer = self._scratch[: extent * itemsize]
        payload.source.read_into(payload.offset + first * itemsize, buffer)
        target[...] = _strided(buffer, itemsize, target.shape, strides, 0)


def same_elements(left: StoredTensor, right: StoredTensor, files: DataFiles) -> bool:
    """Return whether two tensors have the same bytes, reading up to the first difference.

    Raises:
        CheckpointError: the chunks of one do not cover it, or are not stored as described.
    """
    if (left.shape, left.dtype) != (right.shape, right.dtype):
        return False
    both = [_blocks(tensor, files) for tensor in (left, right)]
    return all((block == other).all() for block, other in zip(*both, strict=True))


def is_all_zero(tensor: StoredTensor, files: DataFiles) -> bool:
    """Return whether a floating tensor holds nothing but zeros, of either sign.

    Raises:
        CheckpointError: its chunks do not cover it, or are not stored as described.
    """
    # The sign is the highest bit.
    return not any((block << 1).any() for block in _blocks(tensor, files))


def _blocks(tensor: StoredTensor, files: DataFiles) -> Iterator[Elements]:
    """Read a tensor one block after another, once all its chunks are known to be there."""
    reader = BoxReader(covered(tensor), files, memoryview(bytearray(BLOCK_BYTES)))
    reader.check()  # a shape may be large enough to be busy with for ever, a file is not
    itemsize = dtype_of(tensor).itemsize
    block = elements(memoryview(bytearray(BLOCK_BYTES)), itemsize)
    for box in cut(Box((0,) * len(tensor.shape), tensor.shape), BLOCK_BYTES // itemsize):
        found = block[: prod(box.sizes)]
        reader.read(box, found.reshape(box.sizes))
        yield found


def dtype_of(tensor: StoredTensor) -> DType:
    """Return the element type of a tensor.

    Raises:
        CheckpointError: safetensors has no such type.
    """
    dtype = BY_NAME.get(tensor.dtype)
    if dtype is None or (dtype.packed > 1 and not tensor.shape):
        is_known = dtype or tensor.dtype in UNSUPPORTED_NAMES
        reason = "has no safetensors form" if is_known else "is not known"
        raise CheckpointError(
            f"{tensor.key!r} is stored as {tensor.dtype} {tensor.shape}, which {reason}",
            "Save it in an element type that safetensors has.",
        )
    return dtype


def cut(box: Box, max_elements: int) -> Iterator[Box]:
    """Cut a box, in row-major order, into boxes of at most `max_elements`."""
    offsets, sizes = box
    if 0 in sizes:
        return
    inner = 1  # elements in one step of the dimension that is cut
    dim = len(sizes)
    while dim > 0 and inner * sizes[dim - 1] <= max_elements:
        dim -= 1
        inner *= sizes[dim]
    if dim == 0:
        yield box
        return
    dim -= 1  # everything inside this one fits, together with some of its own
    most = max(1, max_elements // inner)
    inside = (0,) * (len(sizes) - dim - 1)
    for outer in _positions(sizes[:dim]):
        for begin in range(0, sizes[dim], most):
            count = min(most, sizes[dim] - begin)
            yield Box(
                tuple(map(int.__add__, offsets, (*outer, begin, *inside))),
                (1,) * dim + (count,) + sizes[dim + 1 :],
            )


def _positions(sizes: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    """Yield every position in a box of these sizes, in row-major order.

    One after another: `itertools.product` lists each range first, and a hostile one is endless.
    """
    for number in range(prod(sizes)):
        position, rest = [], number
        for size in reversed(sizes):
            rest, within = divmod(rest, size)
            position.append(within)
        yield tuple(reversed(position))


def _intersection(chunk: Chunk, box: Box) -> Box | None:
    """Return what of `box` is in `chunk`; None if nothing is."""
    low = tuple(map(max, box.offsets, chunk.offsets))
    box_ends = map(int.__add__, box.offsets, box.sizes)
    chunk_ends = map(int.__add__, chunk.offsets, chunk.sizes)
    sizes = tuple(map(int.__sub__, map(min, box_ends, chunk_ends), low))
    return None if any(size <= 0 for size in sizes) else Box(low, sizes)


def _spans(
    sizes: tuple[int, ...], strides: tuple[int, ...], max_elements: int
) -> Iterator[tuple[Box, int]]:
    """Cut a strided region into boxes whose first and last element lie within `max_elements`.

    Yields:
        Each box, and how far its first element is from that of the region.
    """
    dim = len(sizes)
    extent = 1
    while dim > 0 and extent + (sizes[dim - 1] - 1) * strides[dim - 1] <= max_elements:
        dim -= 1
        extent += (sizes[dim] - 1) * strides[dim]
    if dim == 0:
        yield Box((0,) * len(sizes), sizes), 0
        return
    dim -= 1
    step = 1 + (max_elements - extent) // strides[dim]
    for outer in _positions(sizes[:dim]):
        for begin in range(0, sizes[dim], step):
            count = min(step, sizes[dim] - begin)
            offsets = (*outer, begin, *((0,) * (len(sizes) - dim - 1)))
            yield (
                Box(offsets, (1,) * dim + (count,) + sizes[dim + 1 :]),
                _dot(offsets, strides),
            )


def row_major(sizes: tuple[int, ...]) -> tuple[int, ...]:
    """Return the strides of a contiguous tensor, in elements."""
    strides = [1] * len(sizes)
    for dim in range(len(sizes) - 2, -1, -1):
        strides[dim] = strides[dim + 1] * sizes[dim + 1]
    return tuple(strides)


def _is_one_run(sizes: tuple[int, ...], chunk_sizes: tuple[int, ...]) -> bool:
    """Return whether a box of these sizes is one run of bytes in a row-major chunk."""
    dim = len(sizes)
    while dim > 0 and sizes[dim - 1] == chunk_sizes[dim - 1]:
        dim -= 1
    return all(size == 1 for size in sizes[: max(0, dim - 1)])


def _narrow(target: Elements, offsets: tuple[int, ...], sizes: tuple[int, ...]) -> Elements:
    if target.shape == sizes:
        return target
    return target[tuple(map(slice, offsets, map(int.__add__, offsets, sizes)))]


def _dot(a: Iterable[int], b: Iterable[int]) -> int:
    return sum(map(int.__mul__, a, b))


def elements(buffer: memoryview, itemsize: int) -> Elements:
    """Return the buffer as an array of numbers of that many bytes."""
    import numpy as np

    return np.frombuffer(buffer, dtype=f"u{itemsize}")


def _strided(
    buffer: memoryview,
    itemsize: int,
    sizes: tuple[int, ...],
    strides: tuple[int, ...],
    first: int,
) -> Elements:
    """Return a region of the buffer, whose bounds numpy checks; all numbers in elements."""
    import numpy as np

    strides_bytes = [stride * itemsize for stride in strides]
    return np.ndarray(sizes, f"u{itemsize}", buffer, first * itemsize, strides_bytes)
