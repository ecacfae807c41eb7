"""Rounding, held against torch's own for every kind of number."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch

from hubmerge.conversion.cast import _PIECE, cast

WORK = memoryview(bytearray(4 * _PIECE))
SIZE = 2 * _PIECE + 5  # the last piece of a block is a smaller one
INFINITE = (0x7F800000, 0xFF800000)
NANS = (0x7FC00000, 0xFFC00000, 0x7F800001, 0xFF800001, 0x7FFFFFFF, 0xFFFFFFFF, 0x7FFF8000)


def to_bfloat16(bits: np.ndarray) -> tuple[bytes, bytes]:
    """Ours, and torch's."""
    stored, out = bytearray(bits.tobytes()), bytearray(bits.nbytes // 2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cast(memoryview(stored), "float32", memoryview(out), "bfloat16", WORK)
    values = torch.frombuffer(stored, dtype=torch.float32)
    return bytes(out), bytes(values.to(torch.bfloat16).view(torch.uint8).numpy())


@pytest.mark.parametrize("low", [0x0000, 0x0001, 0x7FFF, 0x8000, 0x8001, 0xFFFF])
def test_each_upper_half_rounds_as_torch_does(low: int) -> None:
    """All bfloat16 numbers, and what lies just beside them and half-way to the next: no NaN."""
    bits = (np.arange(1 << 16, dtype=np.uint32) << 16) | low
    bits = bits[~np.isnan(bits.view(np.float32))]
    ours, theirs = to_bfloat16(bits)
    assert ours == theirs


def test_infinity_stays_and_the_largest_become_infinite() -> None:
    """Rounding carries into the exponent."""
    ours, theirs = to_bfloat16(np.array([*INFINITE, 0x7F7FFFFF, 0xFF7FFFFF], np.uint32))
    assert ours == theirs == np.array([0x7F80, 0xFF80] * 2, np.uint16).tobytes()


@pytest.mark.parametrize("nan", NANS)
@pytest.mark.parametrize("place", [None, 0, _PIECE - 1, _PIECE, 2 * _PIECE - 1, SIZE - 1])
def test_nan_is_what_torch_makes_of_it(nan: int, place: int | None) -> None:
    """In any piece of a block, or in none: never a number."""
    bits = np.random.default_rng(0).normal(size=SIZE).astype(np.float32).view(np.uint32)
    if place is not None:
        bits[place] = nan
    ours, theirs = to_bfloat16(bits)
    assert ours == theirs
    assert place is None or torch.frombuffer(bytearray(ours), dtype=torch.bfloat16)[place].isnan()
