"""Warnings about stored tensors that are left out although they may have been trained.

A torchtitan router's `expert_bias` is such a tensor: the target model may have no place for it, and
without it tokens are routed to other experts. All zeros change nothing, and go without a word.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from hubmerge.checkpoint.schema import StoredTensor
from hubmerge.formatting import format_list
from hubmerge.hf_format.dtypes import BY_NAME

AllZero = Callable[[StoredTensor], bool]

# More than these are not read one by one; where so many hold values, the others will too.
_MAX_READ = 32


def warnings_for(
    left_out: Iterable[tuple[StoredTensor, str]], is_all_zero: AllZero | None
) -> Iterator[str]:
    """Name the floating tensors that hold values, in one warning for each reason.

    Args:
        left_out: tensors, and why each is left out.
        is_all_zero: reads a tensor; without it every tensor counts as one that holds values.
    """
    by_reason: dict[str, list[StoredTensor]] = {}
    for tensor, reason in left_out:
        dtype = BY_NAME.get(tensor.dtype)
        if dtype is not None and dtype.kind in ("float", "scaled"):
            by_reason.setdefault(reason, []).append(tensor)
    for reason, tensors in by_reason.items():
        keys = [tensor.key for tensor in _with_values(tensors, is_all_zero)]
        if keys:
            holds = "tensor is" if len(keys) == 1 else "tensors are"
            yield f"{len(keys)} {holds} left out although not zero ({reason}): {format_list(keys)}"


def _with_values(
    tensors: list[StoredTensor], is_all_zero: AllZero | None
) -> Iterator[StoredTensor]:
    found = 0
    for tensor in tensors:
        if is_all_zero is None or found >= _MAX_READ or not is_all_zero(tensor):
            found += 1
            yield tensor
