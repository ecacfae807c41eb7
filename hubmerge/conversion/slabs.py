"""The elements of one planned tensor, as a stream of output bytes in blocks of bounded size.

The output is cut into slabs that fit a block; each is gathered from the parts of the plan that
stand in it, cast, and handed on. Slices, transposed tensors, experts and tensors that are put
together from several stored ones all go this one way.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from itertools import accumulate
from math import prod
from typing import TYPE_CHECKING, NamedTuple

from hubmerge.checkpoint.boxes import BLOCK_BYTES, SHORT_BYTES, BoxReader, elements, row_major
from hubmerge.checkpoint.data_files import DataFiles
from hubmerge.checkpoint.schema import Box, StoredTensor
from hubmerge.conversion.cast import cast, finite_made_infinite
from hubmerge.errors import CheckpointError
from hubmerge.names.views import Part
from hubmerge.planning.plan import Plan, PlannedTensor

if TYPE_CHECKING:
    from hubmerge.checkpoint.boxes import Elements

SCRATCH_BYTES = 3 * BLOCK_BYTES
"""Work space of a `TensorReader`."""

# A part whose elements are further apart than this is not read with all that lies between.
_MAX_SPARSITY = 4


class Slab(NamedTuple):
    """A run of a tensor's output that fits one block.

    Attributes:
        start: its first element, counted in row-major order.
        stop: the one after its last.
        size_bytes: how long it is in the output file.
    """

    start: int
    stop: int
    size_bytes: int


def open_data_files(plan: Plan) -> DataFiles:
    """Open the data files that the plan needs, each proved to be there and long enough.

    Raises:
        DamagedFileError: one is missing or too short.
        UnsafeInputError: one is not a regular file, or lies outside the checkpoint.
    """
    files = DataFiles(plan.checkpoint.folder)
    files.check_sizes(plan.data_files, plan.first_key_past)
    return files


def slabs(tensor: PlannedTensor) -> Iterator[Slab]:
    """Cut the output of `tensor` into consecutive slabs of at most `BLOCK_BYTES`."""
    itemsize = tensor.dtype.itemsize
    most = BLOCK_BYTES // max(itemsize, tensor.source_dtype.itemsize)
    inner = 1  # slabs end where a slice of the innermost dimensions that fit does
    for size in reversed(tensor.shape):
        if inner * size > most:
            break
        inner *= max(1, size)
    step, count = most // inner * inner, prod(tensor.shape)
    for start in range(0, count, step):
        stop = min(start + step, count)
        yield Slab(start, stop, (stop - start) * itemsize)


class TensorReader:
    """Reads slabs of one planned tensor, best in order: a compressed chunk is read forward.

    Args:
        tensor: what to read.
        files: the data files of its checkpoint.
        scratch: `SCRATCH_BYTES` of work space, which readers may share one after another.
    """

    def __init__(self, tensor: PlannedTensor, files: DataFiles, scratch: memoryview) -> None:
        self._tensor, self._files = tensor, files
        block = len(scratch) // 3
        self._stored, self._dense, self._span = (
            scratch[n * block : (n + 1) * block] for n in range(3)
        )
        self._readers: dict[str, BoxReader] = {}
        # By where they begin in the output, and the furthest that any so far reaches: those that
        # stand in a slab are found at once.
        self._parts = sorted(tensor.parts, key=lambda part: part.offset)
        self._offsets = [part.offset for part in self._parts]
        self._reached = list(accumulate((part.last for part in self._parts), max))

    def read(self, slab: Slab, out: memoryview) -> None:
        """Fill `out` (``slab.size_bytes`` long) with the slab as it stands in the output file.

        Raises:
            DamagedFileError: a chunk is not stored as planned.
            UnsafeInputError: a record names something to execute.
            CheckpointError: a value is too large for float16.
        """
        tensor = self._tensor
        if not tensor.is_cast:
            self._gather(slab, out)
            return
        stored = self._stored[: (slab.stop - slab.start) * tensor.source_dtype.itemsize]
        self._gather(slab, stored)
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

    def _gather(self, slab: Slab, out: memoryview) -> None:
        first = bisect_left(self._reached, slab.start)
        for part in self._parts[first : bisect_left(self._offsets, slab.stop)]:
            for piece in part.between(slab.start, slab.stop):
                self._copy(piece._replace(offset=piece.offset - slab.start), out)

    def _copy(self, part: Part, out: memoryview) -> None:
        """Copy the elements of `part` to their places in `out`."""
        itemsize = self._tensor.source_dtype.itemsize
        sizes = [1] * len(part.origin)
        for axis in part.axes:
            sizes[axis.dim] += (axis.size - 1) * axis.step
        box = Box(part.origin, tuple(sizes))
        count = prod(axis.size for axis in part.axes)
        is_dense = prod(sizes) == count
        if is_dense and len({axis.dim for axis in part.axes}) == len(part.axes):
            strides = [itemsize] * len(sizes)
            for axis in part.axes:
                strides[axis.dim] = axis.stride * itemsize
            target = _strided(out, part.offset, itemsize, tuple(sizes), strides)
            self._reader(part.source).read(box, target)
        elif prod(sizes) <= len(self._dense) // itemsize and (
            prod(sizes) <= max(_MAX_SPARSITY * count, SHORT_BYTES // itemsize)
        ):
            dense = elements(self._dense, itemsize)[: prod(sizes)].reshape(sizes)
            self._reader(part.source).read(box, dense)
            shape = tuple(axis.size for axis in part.axes)
            stored = row_major(box.sizes)
            steps = [axis.step * stored[axis.dim] * itemsize for axis in part.axes]
            strides = [axis.stride * itemsize for axis in part.axes]
            found = _strided(self._dense, 0, itemsize, shape, steps)
            _strided(out, part.offset, itemsize, shape, strides)[...] = found
        else:
            for half in _halves(part):
                self._copy(half, out)

    def _reader(self, source: StoredTensor) -> BoxReader:
        reader = self._readers.get(source.key)
        if reader is None:
            reader = self._readers[source.key] = BoxReader(source, self._files, self._span)
        return reader


def _halves(part: Part) -> Iterator[Part]:
    """Cut a part in two along the loop that reaches furthest in its stored tensor."""
    stored = row_major(part.source.shape)
    number = max(
        range(len(part.axes)),
        key=lambda n: (part.axes[n].size - 1) * part.axes[n].step * stored[part.axes[n].dim],
    )
    axis = part.axes[number]
    for begin, size in ((0, axis.size // 2), (axis.size // 2, axis.size - axis.size // 2)):
        origin = list(part.origin)
        origin[axis.dim] += begin * axis.step
        kept = (axis._replace(size=size),) if size > 1 else ()
        axes = (*part.axes[:number], *kept, *part.axes[number + 1 :])
        yield Part(part.source, tuple(origin), part.offset + begin * axis.stride, axes)


def _strided(
    buffer: memoryview, first: int, itemsize: int, sizes: tuple[int, ...], strides: list[int]
) -> Elements:
    """Return a region of the buffer, whose bounds numpy checks; `strides` in bytes."""
    import numpy as np

    return np.ndarray(sizes, f"u{itemsize}", buffer, first * itemsize, strides)
