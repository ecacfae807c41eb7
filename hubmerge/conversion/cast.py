"""Round elements of one type to another, as torch's ``tensor.to(dtype)`` does, bit for bit.

float32 to bfloat16 is what nearly every conversion needs, and numpy does it as fast as the disk
writes: so a conversion need not wait for torch's import. Torch does all else.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

# Elements that are worked on at a time. Fewer would stay in a smaller cache; but each step lets
# other threads have the interpreter, and has to wait for it again.
_PIECE = 1 << 18


def cast(
    stored: memoryview, stored_dtype: str, out: memoryview, dtype: str, work: memoryview
) -> None:
    """Round the elements of `stored` into `out`; the types have torch's names.

    Args:
        work: space to work in, of which 1 MB is used.
    """
    if (stored_dtype, dtype) == ("float32", "bfloat16") and _to_bfloat16(stored, out, work):
        return
    with _one_thread():
        _tensor(out, dtype).copy_(_tensor(stored, stored_dtype))


def finite_made_infinite(stored: memoryview, stored_dtype: str, out: memoryview) -> float | None:
    """Return the first finite number of `stored` that is infinite in `out`, which is float16."""
    infinite = _tensor(out, "float16").isinf()
    if not infinite.any():
        return None
    source = _tensor(stored, stored_dtype)
    lost = infinite & source.isfinite()
    return float(source[lost][0]) if lost.any() else None


def _to_bfloat16(stored: memoryview, out: memoryview, work: memoryview) -> bool:
    """Keep the upper half of each float32, to the nearest, ties to even; False if one is NaN.

    What a NaN becomes differs between processors in torch itself: it is left to torch.
    """
    import numpy as np

    values = np.frombuffer(stored, np.float32)
    result = np.frombuffer(out, np.uint16)
    rounded = np.frombuffer(work, np.uint32)[:_PIECE]
    for start in range(0, values.size, rounded.size):
        piece = values[start : start + rounded.size]
        largest = np.maximum.reduce(piece)
        if largest != largest:  # noqa: PLR0124 - only NaN is not what it is
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
    """Cast in one thread: for so little, many would spin and starve the others."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
