"""A torch tensor without data, which records what torch does to it as a `TensorView`.

torch breaks its own operations down into a few before it asks here, so that it does not matter
how code spells them (`flatten`, `view`, `unflatten`, an index). What is more than slicing and
reordering raises `NotAViewError`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

from hubmerge.hf_format.dtypes import BY_NAME
from hubmerge.names.views import NotAViewError, TensorView


class Recorded(NamedTuple):
    """What a torch tensor stands for.

    Attributes:
        view: its elements.
        names: those of the tensors that it was made of.
    """

    view: TensorView
    names: tuple[str, ...]


def to_torch(recorded: Recorded) -> Any:
    """Return a torch tensor that stands for a view."""
    import torch

    dtype = recorded.view.sources[0].dtype
    known = getattr(torch, dtype) if dtype in BY_NAME else torch.float32
    return _tensor_class()(recorded, known)


def from_torch(tensor: Any) -> Recorded:
    """Return what such a tensor has become.

    Raises:
        NotAViewError: it is a tensor of its own.
    """
    recorded = getattr(tensor, "recorded", None)
    if not isinstance(recorded, Recorded):
        raise NotAViewError("a tensor of its own")
    return recorded


@cache
def _tensor_class() -> Any:
    import torch

    class ViewTensor(torch.Tensor):
        recorded: Recorded

        @staticmethod
        def __new__(cls: Any, recorded: Recorded, dtype: Any) -> Any:
            # On the CPU, where torch then puts the numbers of an index.
            tensor: Any = torch.Tensor._make_wrapper_subclass(
                cls, recorded.view.shape, dtype=dtype, device=torch.device("cpu")
            )
            tensor.recorded = recorded
            return tensor

        # Else torch would make each result into one of this class, without what it stands for.
        __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

        @classmethod
        def __torch_dispatch__(  # type: ignore[override]
            cls, function: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            name = function.overloadpacket.__name__
            operation = _OPERATIONS.get(name)
            if operation is None:
                raise NotAViewError(name)
            first, *others = args
            recorded = list(map(from_torch, first if isinstance(first, list) else [first]))
            views = [one.view for one in recorded]
            given: Any = views if isinstance(first, list) else views[0]
            result = operation(given, *others, **(kwargs or {}))
            names = tuple(dict.fromkeys(name for one in recorded for name in one.names))
            dtype = (first[0] if isinstance(first, list) else first).dtype
            if isinstance(result, list):
                return [cls(Recorded(view, names), dtype) for view in result]
            return cls(Recorded(result, names), dtype)

    return ViewTensor


def _slice(
    view: TensorView, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1
) -> TensorView:
    return view.every(dim, *slice(start, end, step).indices(view.size(dim)))


def _squeeze(view: TensorView, dim: int | list[int] | None = None) -> TensorView:
    if dim is None:
        return view.reshape(tuple(size for size in view.shape if size != 1))
    dims = [dim] if isinstance(dim, int) else dim
    for one in sorted((one % view.ndim for one in dims), reverse=True):
        view = view.squeeze(one)
    return view


def _index(view: TensorView, keys: list[Any]) -> TensorView:
    (dim, numbers), *others = [(dim, key) for dim, key in enumerate(keys) if key is not None]
    if others or numbers.ndim != 1 or str(numbers.dtype) != "torch.int64":
        raise NotAViewError("index")
    return view.take(dim, numbers.tolist())


def _new_zeros(view: TensorView, size: list[int], **_: Any) -> TensorView:
    """Padding, which is a view only if there is none to add."""
    if 0 not in size:
        raise NotAViewError("new_zeros")
    return TensorView(tuple(size), view.parts)


def _same(view: TensorView, **_: Any) -> TensorView:
    return view


# By the names of torch's own operations (ATen).
_OPERATIONS: dict[str, Callable[..., TensorView | list[TensorView]]] = {
    "alias": _same,
    "clone": _same,
    "detach": _same,
    "contiguous": _same,
    "cat": TensorView.cat,
    "stack": TensorView.stack,
    "view": TensorView.reshape,
    "reshape": TensorView.reshape,
    "_unsafe_view": TensorView.reshape,
    "_reshape_alias": lambda view, shape, _strides: view.reshape(shape),
    "permute": lambda view, dims: view.permute(*dims),
    "transpose": TensorView.transpose,
    "t": lambda view: view.transpose(0, -1),
    "squeeze": _squeeze,
    "unsqueeze": TensorView.unsqueeze,
    "slice": _slice,
    "select": TensorView.select,
    "narrow": TensorView.narrow,
    "split": TensorView.split,
    "split_with_sizes": TensorView.split,
    "unbind": TensorView.unbind,
    "index": _index,
    "new_zeros": _new_zeros,
}
