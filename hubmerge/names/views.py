"""Which part of a stored tensor a tensor of the model is, told by doing to a stand-in what is done
to the tensor.

transformers' own rules cut, stack and transpose tensors. Applied to a `TensorView` they move no
element: each step only narrows the box or reorders the dimensions that the part stands for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from hubmerge.checkpoint.schema import StoredTensor
from hubmerge.errors import CheckpointError
from hubmerge.names.weights import Box, Weight


class NotAViewError(Exception):
    """What is done to the tensor is more than cutting and reordering."""


@dataclass(frozen=True)
class TensorView:
    """A box of stored tensors that lie one after another along one dimension.

    Attributes:
        sources: the stored tensors: one, or several that are equally long along `axis`.
        axis: the stored dimension along which several sources follow one another.
        box: the part, in elements of each source.
        dims: the stored dimension that each dimension of the part is; a missing one has length 1.
    """

    sources: tuple[StoredTensor, ...]
    axis: int
    box: Box
    dims: tuple[int, ...]

    @classmethod
    def whole(cls, *sources: StoredTensor, axis: int = 0) -> TensorView:
        """All of one stored tensor, or of several along `axis`."""
        shape = sources[0].shape
        return cls(sources, axis, Box((0,) * len(shape), shape), tuple(range(len(shape))))

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self._length(dim) for dim in self.dims)

    def size(self, dim: int) -> int:
        """The length along one dimension, as of a tensor."""
        return self._length(self.dims[dim])

    def contiguous(self) -> TensorView:
        """The part itself: no element is moved here."""
        return self

    def squeeze(self, dim: int | None = None) -> TensorView:
        """Without a dimension of length 1, or without all of those, as of a tensor."""
        if dim is None:  # as transformers calls it before 5.24
            return replace(self, dims=tuple(d for d in self.dims if self._length(d) != 1))
        dim %= len(self.dims)
        if self.size(dim) != 1:
            return self
        return replace(self, dims=self.dims[:dim] + self.dims[dim + 1 :])

    def weight(self, name: str) -> Weight:
        """The tensor of the model that this part is.

        Raises:
            CheckpointError: it consists of several stored tensors.
        """
        if len(self.sources) > 1:
            keys = " and ".join(source.key for source in self.sources)
            raise CheckpointError(
                f"{name!r} would have to be put together from {keys}, which are stored apart",
                "Use --experts split, or --experts fused to leave them as they are stored.",
            )
        order = None
        if self.dims != tuple(sorted(self.dims)):
            missing = (d for d in range(len(self.box.sizes)) if d not in self.dims)
            order = (*missing, *self.dims)
        return Weight(name, self.sources[0], self.shape, (self.box,), order)

    def _length(self, dim: int) -> int:
        length = self.box.sizes[dim]
        return length * len(self.sources) if dim == self.axis else length

    @classmethod
    def __torch_function__(
        cls,
        function: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """What torch calls for its functions on a part."""
        name = getattr(function, "__name__", "")
        if name == "chunk":
            return _chunk(*args, **(kwargs or {}))
        if name == "transpose":
            return _transpose(*args, **(kwargs or {}))
        raise NotAViewError(name)


def _chunk(part: TensorView, chunks: int, dim: int = 0) -> tuple[TensorView, ...]:
    stored_dim = part.dims[dim]
    if len(part.sources) > 1 and stored_dim == part.axis:
        if chunks != len(part.sources):
            raise NotAViewError(f"{chunks} chunks of {len(part.sources)} tensors")
        return tuple(replace(part, sources=(source,)) for source in part.sources)
    length, rest = divmod(part.box.sizes[stored_dim], chunks)
    if rest:
        raise NotAViewError(f"{chunks} chunks of a length of {part.box.sizes[stored_dim]}")
    return tuple(_narrow(part, stored_dim, i * length, length) for i in range(chunks))


def _narrow(part: TensorView, stored_dim: int, start: int, length: int) -> TensorView:
    offsets, sizes = list(part.box.offsets), list(part.box.sizes)
    offsets[stored_dim] += start
    sizes[stored_dim] = length
    return replace(part, box=Box(tuple(offsets), tuple(sizes)))


def _transpose(part: TensorView, dim0: int, dim1: int) -> TensorView:
    dims = list(part.dims)
    dims[dim0], dims[dim1] = dims[dim1], dims[dim0]
    return replace(part, dims=tuple(dims))


def split_first(part: TensorView) -> list[TensorView]:
    """The part's slices along its first dimension, without it: the experts of a stack."""
    stored_dim = part.dims[0]
    return [_narrow(part, stored_dim, i, 1).squeeze(0) for i in range(part.shape[0])]


def halves(part: TensorView) -> tuple[TensorView, ...]:
    """The part cut in two along its first dimension: the gate and the up projection."""
    return _chunk(part, 2)
