"""A tensor that is not there: records slicing and reordering as views of stored tensors.

A `TensorView` takes the operations that move elements without changing them, and says afterwards
which element of which stored tensor stands where. No data is read, and torch is not needed.

Each part of a view is a nest of loops that walk a stored tensor and the view side by side. All
operations are exact or raise `NotAViewError`, and `ValueError` if the shapes do not fit; none takes
longer for more elements.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from operator import index
from typing import Any, NamedTuple

from hubmerge.checkpoint.boxes import row_major
from hubmerge.checkpoint.schema import StoredTensor


class NotAViewError(Exception):
    """What is done to the tensor is more than slicing and reordering."""


class Axis(NamedTuple):
    """One loop of a part.

    Attributes:
        size: how often it goes round, at least 2.
        stride: how many elements of the view one round goes on, counted in row-major order.
        dim: the dimension of the stored tensor that it walks along.
        step: how many elements one round goes on along that dimension.
    """

    size: int
    stride: int
    dim: int
    step: int


class Part(NamedTuple):
    """Elements of one stored tensor that stand in a view.

    Attributes:
        source: the stored tensor.
        origin: its element that comes first in the view.
        offset: where that stands in the view, counted in row-major order.
        axes: the loops, the outermost first: an inner one ends before an outer one goes on.
    """

    source: StoredTensor
    origin: tuple[int, ...]
    offset: int
    axes: tuple[Axis, ...]

    @property
    def last(self) -> int:
        """Where its last element stands in the view."""
        return self.offset + sum((axis.size - 1) * axis.stride for axis in self.axes)

    def between(self, start: int, stop: int) -> Iterator[Part]:
        """Yield what of the part stands in the view from `start` to before `stop`."""
        last = self.last
        if start <= self.offset and last < stop:
            yield self
        elif last >= start and self.offset < stop:
            outer = self.axes[0]
            span = last - self.offset - (outer.size - 1) * outer.stride  # of one round
            before, after = start - self.offset, stop - 1 - self.offset
            touched = range(
                max(0, -((span - before) // outer.stride)),
                min(outer.size, after // outer.stride + 1),
            )
            whole = range(
                max(0, -(-before // outer.stride)),
                min(outer.size, (after - span) // outer.stride + 1),
            )
            if not whole:
                whole = range(touched.stop, touched.stop)
            for number in range(touched.start, whole.start):
                yield from self._round(number).between(start, stop)
            if len(whole) == 1:
                yield self._round(whole.start)
            elif whole:
                first = self._round(whole.start)
                yield first._replace(axes=(outer._replace(size=len(whole)), *self.axes[1:]))
            for number in range(whole.stop, touched.stop):
                yield from self._round(number).between(start, stop)

    def _round(self, number: int) -> Part:
        """Return one round of the outermost loop."""
        outer = self.axes[0]
        origin = list(self.origin)
        origin[outer.dim] += number * outer.step
        offset = self.offset + number * outer.stride
        return Part(self.source, tuple(origin), offset, self.axes[1:])


@dataclass(frozen=True, slots=True)
class TensorView:
    """A tensor made of elements of stored tensors.

    Attributes:
        shape: its shape.
        parts: what it consists of, in no order; together they fill it, and do not overlap. Of an
            empty view, they only say what it was made of.
    """

    shape: tuple[int, ...]
    parts: tuple[Part, ...]

    @classmethod
    def whole(cls, source: StoredTensor) -> TensorView:
        """Return all of a stored tensor."""
        axes = _axes(source.shape)
        return cls(source.shape, (Part(source, (0,) * len(source.shape), 0, axes),))

    @staticmethod
    def cat(views: Sequence[TensorView], dim: int = 0) -> TensorView:
        """Concatenate views along a dimension, as `torch.cat`."""
        first = views[0]
        dim = _dim(dim, len(first.shape))
        if any(_without(view.shape, dim) != _without(first.shape, dim) for view in views):
            raise ValueError(f"cat of {', '.join(str(view.shape) for view in views)}")
        sizes = [view.shape[dim] for view in views]
        shape = _with(first.shape, dim, sum(sizes))
        if 0 in shape:
            return TensorView(shape, tuple(part for view in views for part in view.parts))
        parts: list[Part] = []
        begin = 0
        for view in views:
            if 0 not in view.shape:
                parts += view._moved(dim, begin, shape)
            begin += view.shape[dim]
        return TensorView(shape, tuple(parts))

    @staticmethod
    def stack(views: Sequence[TensorView], dim: int = 0) -> TensorView:
        """Stack views along a new dimension, as `torch.stack`."""
        return TensorView.cat([view.unsqueeze(dim) for view in views], dim)

    @property
    def sources(self) -> tuple[StoredTensor, ...]:
        """The stored tensors that it consists of, each once."""
        return tuple({part.source.key: part.source for part in self.parts}.values())

    @property
    def dtype(self) -> str:
        """The element type of its first element, by torch's name."""
        return self.sources[0].dtype

    @property
    def key(self) -> str:
        """The checkpoint key of its first element, for messages."""
        return self.sources[0].key

    @property
    def ndim(self) -> int:
        """The number of dimensions."""
        return len(self.shape)

    def size(self, dim: int) -> int:
        """Return the length along one dimension."""
        return self.shape[_dim(dim, self.ndim)]

    def reshape(self, shape: Sequence[int]) -> TensorView:
        """Return the elements in the same order in another shape; one length may be -1."""
        sizes = list(map(index, shape))
        if -1 in sizes:
            others = prod(size for size in sizes if size != -1)
            sizes[sizes.index(-1)] = prod(self.shape) // max(1, others)
        if prod(sizes) != prod(self.shape):
            raise ValueError(f"{self.shape} reshaped to {tuple(sizes)}")
        return TensorView(tuple(sizes), self.parts)

    def flatten(self, start: int = 0, end: int = -1) -> TensorView:
        """Merge the dimensions from `start` to `end`."""
        start, end = _dim(start, self.ndim), _dim(end, self.ndim)
        merged = prod(self.shape[start : end + 1])
        return self.reshape((*self.shape[:start], merged, *self.shape[end + 1 :]))

    def unflatten(self, dim: int, sizes: Sequence[int]) -> TensorView:
        """Split one dimension into several."""
        dim = _dim(dim, self.ndim)
        return self.reshape((*self.shape[:dim], *sizes, *self.shape[dim + 1 :]))

    def squeeze(self, dim: int) -> TensorView:
        """Remove a dimension if it has length 1."""
        dim = _dim(dim, self.ndim)
        return self.reshape(_without(self.shape, dim)) if self.shape[dim] == 1 else self

    def unsqueeze(self, dim: int) -> TensorView:
        """Insert a dimension of length 1."""
        dim = _dim(dim, self.ndim + 1)
        return self.reshape((*self.shape[:dim], 1, *self.shape[dim:]))

    def permute(self, *dims: int) -> TensorView:
        """Return the view with its dimensions in this order."""
        order = [_dim(dim, self.ndim) for dim in dims]
        shape = tuple(self.shape[dim] for dim in order)
        if 0 in shape:
            return TensorView(shape, self.parts)
        parts = []
        for part in self.parts:
            coordinates, loops = _unraveled(part, self.shape)
            moved = [loop._replace(view_dim=order.index(loop.view_dim)) for loop in loops]
            parts.append(_raveled(part, [coordinates[dim] for dim in order], moved, shape))
        return TensorView(shape, tuple(parts))

    def transpose(self, dim0: int, dim1: int) -> TensorView:
        """Swap two dimensions."""
        order = list(range(self.ndim))
        order[dim0], order[dim1] = order[dim1], order[dim0]
        return self.permute(*order)

    def narrow(self, dim: int, start: int, length: int) -> TensorView:
        """Return `length` elements along a dimension, from `start` on."""
        dim = _dim(dim, self.ndim)
        if not 0 <= start <= start + length <= self.shape[dim]:
            raise ValueError(f"{start} to {start + length} of {self.shape} along {dim}")
        shape = _with(self.shape, dim, length)
        if 0 in shape or shape == self.shape:
            return TensorView(shape, self.parts)
        inner = prod(self.shape[dim + 1 :])
        if prod(self.shape[:dim]) == 1:  # a run of the view
            begin, end = start * inner, (start + length) * inner
            found = [piece for part in self.parts for piece in part.between(begin, end)]
            moved = [piece._replace(offset=piece.offset - begin) for piece in found]
            return TensorView(shape, tuple(moved))
        pieces = [p for part in self.parts for p in _narrowed(part, self.shape, dim, start, shape)]
        return TensorView(shape, tuple(pieces))

    def chunk(self, chunks: int, dim: int = 0) -> list[TensorView]:
        """Cut along a dimension into so many views, as `torch.chunk`."""
        return self.split(max(1, -(-self.size(dim) // chunks)), dim)

    def split(self, sizes: int | Sequence[int], dim: int = 0) -> list[TensorView]:
        """Cut along a dimension into views of these lengths, as `torch.split`."""
        length = self.size(dim)
        if isinstance(sizes, int):
            sizes = [min(sizes, length - begin) for begin in range(0, length, max(1, sizes))]
        if sum(sizes) != length:
            raise ValueError(f"{self.shape} split into {list(sizes)} along {dim}")
        views, begin = [], 0
        for size in sizes:
            views.append(self.narrow(dim, begin, size))
            begin += size
        return views

    def unbind(self, dim: int = 0) -> list[TensorView]:
        """Return the slices along a dimension, without it: the experts of a stack."""
        return [self.select(dim, number) for number in range(self.size(dim))]

    def select(self, dim: int, number: int) -> TensorView:
        """Return one slice along a dimension, without it."""
        return self.narrow(dim, number % max(1, self.size(dim)), 1).squeeze(dim)

    def every(self, dim: int, start: int, stop: int, step: int) -> TensorView:
        """Return each `step`-th slice along a dimension, from `start` to before `stop`."""
        view = self.narrow(dim, start, max(0, stop - start))
        if step == 1 or view.size(dim) == 0:
            return view
        rounds, rest = divmod(view.size(dim), step)
        dim = _dim(dim, self.ndim)
        even = view.narrow(dim, 0, rounds * step).unflatten(dim, (rounds, step)).select(dim + 1, 0)
        if not rest:
            return even
        return TensorView.cat([even, view.narrow(dim, rounds * step, 1)], dim)

    def take(self, dim: int, numbers: Sequence[int]) -> TensorView:
        """Return these slices along a dimension, in this order."""
        length = self.size(dim)
        return TensorView.cat([self.narrow(dim, n % max(1, length), 1) for n in numbers], dim)

    def __getitem__(self, key: Any) -> TensorView:
        """Return a slice by whole numbers, slices, lists, `...` and None, as of a tensor."""
        keys = list(key) if isinstance(key, tuple) else [key]
        if ... in [k for k in keys if not isinstance(k, list)]:
            at = next(n for n, k in enumerate(keys) if k is ...)
            given = sum(k is not None and k is not ... for k in keys)
            keys[at : at + 1] = [slice(None)] * (self.ndim - given)
        view, dim = self, 0
        for one in keys:
            if one is None:
                view = view.unsqueeze(dim)
            elif isinstance(one, slice):
                view = view.every(dim, *one.indices(view.shape[dim]))
            elif isinstance(one, list):
                view = view.take(dim, one)
            else:
                view = view.select(dim, index(one))
                continue
            dim += 1
        return view

    def _moved(self, dim: int, by: int, shape: tuple[int, ...]) -> Iterator[Part]:
        """Yield the parts as they stand in `shape`, moved along a dimension."""
        strides = row_major(shape)
        if prod(self.shape[:dim]) == 1:
            for part in self.parts:
                yield part._replace(offset=part.offset + by * strides[dim])
            return
        for part in self.parts:
            coordinates, loops = _unraveled(part, self.shape)
            coordinates[dim] += by
            yield _raveled(part, coordinates, loops, shape)


class _Loop(NamedTuple):
    """An `Axis` by the dimension of the view that it walks along, and its step there."""

    size: int
    view_dim: int
    view_step: int
    dim: int
    step: int


def _unraveled(part: Part, shape: tuple[int, ...]) -> tuple[list[int], list[_Loop]]:
    """Return where a part begins in a view of this shape, and its loops, each along one dimension.

    Raises:
        NotAViewError: a loop goes from one slice to the next in the middle of a round.
    """
    strides = row_major(shape)
    coordinates = [
        part.offset // stride % size for stride, size in zip(strides, shape, strict=True)
    ]
    ends = list(coordinates)
    loops: list[_Loop] = []
    for axis in reversed(part.axes):
        size, stride, _, step = axis
        while size > 1:
            dim = next(d for d in range(len(shape)) if shape[d] > 1 and strides[d] <= stride)
            rounds, rest = divmod(strides[dim] * shape[dim], stride)
            rounds = min(size, rounds)
            if stride % strides[dim] or (size > rounds and (rest or size % rounds)):
                raise NotAViewError(f"{axis.size} elements each {axis.stride} in {shape}")
            loops.append(_Loop(rounds, dim, stride // strides[dim], axis.dim, step))
            ends[dim] += (rounds - 1) * (stride // strides[dim])
            size, stride, step = size // rounds, stride * rounds, step * rounds
    if any(end >= size for end, size in zip(ends, shape, strict=True)):
        raise NotAViewError(f"a part of {part.source.key} across the slices of {shape}")
    return coordinates, loops


def _raveled(
    part: Part, coordinates: Sequence[int], loops: Sequence[_Loop], shape: tuple[int, ...]
) -> Part:
    """Return the part that begins there in a view of this shape and has these loops."""
    strides = row_major(shape)
    axes = [
        Axis(loop.size, loop.view_step * strides[loop.view_dim], loop.dim, loop.step)
        for loop in loops
    ]
    axes.sort(key=lambda axis: -axis.stride)
    offset = sum(map(int.__mul__, coordinates, strides))
    return Part(part.source, part.origin, offset, tuple(axes))


def _narrowed(
    part: Part, shape: tuple[int, ...], dim: int, start: int, narrow_shape: tuple[int, ...]
) -> Iterator[Part]:
    """Yield what of a part of a view of this shape stands in the narrow one."""
    coordinates, loops = _unraveled(part, shape)
    along = [
        Axis(loop.size, loop.view_step, loop.dim, loop.step)
        for loop in reversed(loops)
        if loop.view_dim == dim
    ]
    others = [loop for loop in loops if loop.view_dim != dim]
    line = Part(part.source, part.origin, coordinates[dim], tuple(along))
    for piece in line.between(start, start + narrow_shape[dim]):
        kept = [_Loop(axis.size, dim, axis.stride, axis.dim, axis.step) for axis in piece.axes]
        place = [*coordinates[:dim], piece.offset - start, *coordinates[dim + 1 :]]
        yield _raveled(piece, place, [*others, *kept], narrow_shape)


@lru_cache(maxsize=4096)
def _axes(shape: tuple[int, ...]) -> tuple[Axis, ...]:
    strides = row_major(shape)
    return tuple(Axis(size, strides[dim], dim, 1) for dim, size in enumerate(shape) if size > 1)


def _dim(dim: int, ndim: int) -> int:
    if not -ndim <= dim < ndim:
        raise ValueError(f"dimension {dim} of {ndim}")
    return dim % ndim


def _with(shape: tuple[int, ...], dim: int, size: int) -> tuple[int, ...]:
    return (*shape[:dim], size, *shape[dim + 1 :])


def _without(shape: tuple[int, ...], dim: int) -> tuple[int, ...]:
    return (*shape[:dim], *shape[dim + 1 :])
