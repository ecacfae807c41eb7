"""A torch tensor without data, which records what torch does to it as a `TensorView`.

torch breaks its own operations down into a few before it asks here, so that it does not matter
how code spells them (`flatten`, `view`, `unflatten`, an index). What is more than slicing and
reordering raises `NotAViewError`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

from hubmerge.hf_format.dtypes import BY_NAME
from hubmerge.names.views import NotAViewError, TensorView


def to_torch(view: TensorView) -> Any:
    """Return a torch tensor that stands for `view`."""
    import torch

    dtype = view.sources[0].dtype
    known = getattr(torch, dtype) if dtype in BY_NAME else torch.float32
    return _tensor_class()(view, known)


def from_torch(tensor: Any) -> TensorView:
    """Return what such a tensor has become.

    Raises:
        NotAViewError: it is a tensor of its own.
    """
    view = getattr(tensor, "hubmerge_view", None)
    if not isinstance(view, TensorView):
        raise NotAViewError(f"a tensor made by {type(tensor).__name__}")
    return view


@cache
def _tensor_class() -> Any:
    import torch

    class ViewTensor(torch.Tensor):
        @staticmethod
        def __new__(cls: Any, view: TensorView, dtype: Any) -> Any:
            # On the CPU, where torch then puts the numbers of an index.
            tensor: Any = torch.Tensor._make_wrapper_subclass(
                cls, view.shape, dtype=dtype, device=torch.device("cpu")
            )
            tensor.hubmerge_view = view
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
            result = operation(*(_views(arg) for arg in args), **(kwargs or {}))
            dtype = _first_tensor(args).dtype
            if isinstance(result, list):
                return [cls(view, dtype) for view in result]
            return cls(result, dtype)

    return ViewTensor


def _first_tensor(args: Any) -> Any:
    return args[0][0] if isinstance(args[0], list) else args[0]


def _views(value: Any) -> Any:
    """Return an argument with views in place of the tensors that stand for them."""
    if isinstance(value, (list, tuple)):
        return [_views(one) for one in value]
    return getattr(value, "hubmerge_view", value)


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


def _joined(
    join: Callable[[list[TensorView], int], TensorView],
) -> Callable[..., TensorView]:
    def operation(views: list[Any], dim: int = 0) -> TensorView:
        if not all(isinstance(view, TensorView) for view in views):
            raise NotAViewError("a tensor of its own among views")
        return join(views, dim)

    return operation


def _same(view: TensorView, **_: Any) -> TensorView:
    return view


# By the names of torch's own operations (ATen).
_OPERATIONS: dict[str, Callable[..., TensorView | list[TensorView]]] = {
    "alias": _same,
    "clone": _same,
    "detach": _same,
    "contiguous": _same,
    "cat": _joined(TensorView.cat),
    "stack": _joined(TensorView.stack),
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
}
