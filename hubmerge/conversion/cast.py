"""Round elements of one type to another, as torch's ``tensor.to(dtype)`` does, bit for bit.

Nearly every conversion casts float32 to bfloat16. numpy does that as fast as the disk writes, so
such a conversion does not wait for torch's import. torch does the rest.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

# Elements per step. Fewer would fit a smaller cache, but each step releases the GIL and has to
# acquire it again.
_PIECE = 1 << 18


def cast(
    stored: memoryview, stored_dtype: str, out: memoryview, dtype: str, work: memoryview
) -> None:
    """Round the elements of `stored` into `out`; dtypes are torch's names.

    Args:
        work: scratch space, of which 1 MB is used.
    """
    if (stored_dtype, dtype) == ("float32", "bfloat16") and _to_bfloat16(stored, out, work):
        return
    with _one_thread():
        _tensor(out, dtype).copy_(_tensor(stored, stored_dtype))


def finite_made_infinite(stored: memoryview, stored_dtype: str, out: memoryview) -> float | None:
    """Return the first finite number in `stored` that became infinite in `out`, a float16 copy."""
    infinite = _tensor(out, "float16").isinf()
    if not infinite.any():
        return None
    source = _tensor(stored, stored_dtype)
    lost = infinite & source.isfinite()
    return float(source[lost][0]) if lost.any() else None


def _to_bfloat16(stored: memoryview, out: memoryview, work: memoryview) -> bool:
    """Round each float32 to the nearest bfloat16, ties to even; return False if one is NaN.

    torch converts NaN differently on different processors, so NaN is left to torch.
    """
    import numpy as np

    values = np.frombuffer(stored, np.float32)
    result = np.frombuffer(out, np.uint16)
    rounded = np.frombuffer(work, np.uint32)[:_PIECE]
    for start in range(0, values.size, rounded.size):
        piece = values[start : start + rounded.size]
        largest = np.maximum.reduce(piece)
        if largest != largest:  # noqa: PLR0124 - true for NaN alone
            return False
        bits = piece.view(np.uint32)
        rounded = rounded[: bits.size]
        np.right_shift(bits, 16, out=rounded)
        rounded &= 1
        rounded += 0x7FFF
        rounded += bits
        rounded >>= 16
        result[start : start + bits.size] = rounded
    return True


def _tensor(buffer: memoryview, dtype: str) -> torch.Tensor:
    import torch

    return torch.frombuffer(buffer, dtype=getattr(torch, dtype))


@contextmanager
def _one_thread() -> Iterator[None]:
    """Cast in one thread: torch's pool would spin and starve the other threads."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
