"""Random recipes: operations of torch that move elements, for real tensors and for views alike."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import product
from math import prod
from typing import Any

import torch
from hypothesis import strategies as st

from hubmerge.names.torch_views import Recorded, from_torch, to_torch
from hubmerge.names.views import TensorView

Tensors = list[torch.Tensor]
Operation = Callable[[Tensors], Tensors]

SHAPES = [(4, 6), (6, 4, 2), (12,), (2, 3, 4, 2), (8, 6), (1, 4, 6)]
MAX_TENSORS = 6


def on_views(operations: Sequence[Operation], views: Sequence[TensorView]) -> list[TensorView]:
    """What views become when torch does these operations to them."""
    tensors = [to_torch(Recorded(view, ())) for view in views]
    return [from_torch(tensor).view for tensor in apply(operations, tensors)]


def apply(operations: Sequence[Operation], tensors: Tensors) -> Tensors:
    """Do one operation after another."""
    for operation in operations:
        tensors = operation(tensors)
    return tensors


@st.composite
def recipes(draw: st.DrawFn, count: int, shape: Sequence[int]) -> list[Operation]:
    """One to six operations on `count` tensors of this shape."""
    tensors = [torch.empty(tuple(shape)) for _ in range(count)]
    operations: list[Operation] = []
    for _ in range(draw(st.integers(1, 6))):
        kind = draw(st.sampled_from(list(_KINDS)))
        operation = _KINDS[kind](draw, tensors)
        if operation is not None:
            operations.append(operation)
            tensors = operation(tensors)
    return operations


def _a_dim(draw: st.DrawFn, tensors: Tensors) -> int:
    return draw(st.integers(0, max(0, tensors[0].ndim - 1)))


def _each(change: Callable[[Any], Any]) -> Operation:
    return lambda tensors: [change(tensor) for tensor in tensors]


def _transpose(draw: st.DrawFn, tensors: Tensors) -> Operation:
    a, b = _a_dim(draw, tensors), _a_dim(draw, tensors)
    return _each(lambda t: torch.transpose(t, a, b).contiguous())


def _permute(draw: st.DrawFn, tensors: Tensors) -> Operation:
    order = draw(st.permutations(range(tensors[0].ndim)))
    return _each(lambda t: t.permute(order).clone())


def _cat(draw: st.DrawFn, tensors: Tensors) -> Operation:
    dim, order = _a_dim(draw, tensors), draw(st.permutations(range(len(tensors))))
    return lambda tensors: [torch.cat([tensors[n] for n in order], dim)]


def _stack(draw: st.DrawFn, tensors: Tensors) -> Operation:
    dim = draw(st.integers(0, tensors[0].ndim))
    return lambda tensors: [torch.stack(tensors, dim)]


def _chunk(draw: st.DrawFn, tensors: Tensors) -> Operation | None:
    dim, chunks = _a_dim(draw, tensors), draw(st.sampled_from([2, 3]))
    if tensors[0].shape[dim] % chunks or len(tensors) * chunks > MAX_TENSORS:
        return None
    return lambda tensors: [c for t in tensors for c in torch.chunk(t, chunks, dim)]


def _uneven(draw: st.DrawFn, tensors: Tensors) -> Operation | None:
    """Cut in two at any place, and put together the other way round."""
    dim = _a_dim(draw, tensors)
    length = tensors[0].shape[dim]
    if length < 2:
        return None
    at = draw(st.integers(1, length - 1))
    return _each(lambda t: torch.cat(torch.split(t, [at, length - at], dim)[::-1], dim))


def _unbind(draw: st.DrawFn, tensors: Tensors) -> Operation | None:
    dim = _a_dim(draw, tensors)
    if tensors[0].ndim < 2 or len(tensors) * tensors[0].shape[dim] > MAX_TENSORS:
        return None
    return lambda tensors: [s for t in tensors for s in torch.unbind(t, dim)]


def _flatten(draw: st.DrawFn, tensors: Tensors) -> Operation | None:
    if tensors[0].ndim < 2:
        return None
    dim = draw(st.integers(0, tensors[0].ndim - 2))
    return _each(lambda t: t.flatten(dim, dim + 1))


def _unflatten(draw: st.DrawFn, tensors: Tensors) -> Operation | None:
    dim, inner = _a_dim(draw, tensors), draw(st.sampled_from([2, 3]))
    if tensors[0].shape[dim] % inner:
        return None
    return _each(lambda t: t.unflatten(dim, (-1, inner)))


def _every(draw: st.DrawFn, tensors: Tensors) -> Operation:
    dim, start, step = _a_dim(draw, tensors), draw(st.integers(0, 1)), draw(st.integers(1, 3))
    index = (slice(None),) * dim + (slice(start, None, step),)
    return _each(lambda t: t[index])


def _take(draw: st.DrawFn, tensors: Tensors) -> Operation | None:
    dim = _a_dim(draw, tensors)
    if not tensors[0].shape[dim]:
        return None
    numbers = draw(st.permutations(range(tensors[0].shape[dim])))[:3]
    index = (*(slice(None),) * dim, list(numbers))
    return _each(lambda t: t[index])


def _rotary(draw: st.DrawFn, tensors: Tensors) -> Operation | None:
    """Rows of each head from pairs to halves."""
    rows, heads = tensors[0].shape[0], draw(st.sampled_from([1, 2]))
    if rows % (2 * heads) or not prod(tensors[0].shape):
        return None
    return _each(
        lambda t: t.reshape(heads, rows // heads // 2, 2, -1).transpose(1, 2).reshape(t.shape)
    )


_KINDS: dict[str, Callable[[st.DrawFn, Tensors], Operation | None]] = {
    kind.__name__: kind
    for kind in (_transpose, _permute, _cat, _stack, _chunk, _uneven, _unbind, _flatten,
                 _unflatten, _every, _take, _rotary)
}  # fmt: skip


def elements_of(view: TensorView, tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """The tensor that a view stands for, one element after another."""
    found = torch.full((prod(view.shape),), -1, dtype=torch.int64)
    if not prod(view.shape):
        return found.reshape(view.shape)
    for part in view.parts:
        for rounds in product(*(range(axis.size) for axis in part.axes)):
            place, origin = part.offset, list(part.origin)
            for number, axis in zip(rounds, part.axes, strict=True):
                place += number * axis.stride
                origin[axis.dim] += number * axis.step
            assert found[place] == -1, "two elements in one place"
            found[place] = tensors[part.source.key][tuple(origin)]
    return found.reshape(view.shape)
