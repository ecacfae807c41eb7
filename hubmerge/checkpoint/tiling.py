"""Prove from offsets and sizes that the stored chunks of a tensor cover it without gap or overlap.

A missing chunk would leave random weights in a model that loads without an error, so nothing is
converted without this proof.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from math import prod

from hubmerge.checkpoint.schema import Chunk, StoredTensor
from hubmerge.errors import CheckpointError

# Real shardings are cut once per mesh dimension. The limit keeps a hostile one from taking
# quadratic time.
_MAX_CUTS_DEEP = 32

# Every pair of these is compared.
_MAX_INTERLOCKED = 64

_Corners = tuple[tuple[int, ...], tuple[int, ...]]


def covered(tensor: StoredTensor) -> StoredTensor:
    """Prove that the chunks of a tensor tile it exactly.

    Returns:
        The same tensor with its chunks in row-major order, empty ones removed.

    Raises:
        CheckpointError: they leave a gap, overlap, or reach beyond the tensor.
    """
    rank = len(tensor.shape)
    chunks = []
    for chunk in tensor.chunks:
        if len(chunk.offsets) != rank or len(chunk.sizes) != rank:
            raise CheckpointError(
                f"{tensor.key!r} has {rank} dimensions, but its chunk at {chunk.offsets} has "
                "another number"[:300]
            )
        if 0 not in chunk.sizes:
            chunks.append(chunk)
    is_empty = 0 in tensor.shape and not chunks
    if not is_empty and not _tiles(chunks, (0,) * rank, tensor.shape, 0):
        raise CheckpointError(
            f"the stored chunks of {tensor.key!r} do not cover its shape {tensor.shape} exactly: "
            "they leave a gap or overlap",
            "A rank's chunk is missing or was saved twice; use another step.",
        )
    chunks.sort()
    return StoredTensor(tensor.key, tensor.dtype, tensor.shape, chunks, tensor.path)


def _tiles(
    chunks: Sequence[Chunk], low: tuple[int, ...], high: tuple[int, ...], depth: int
) -> bool:
    """Return whether `chunks` tile the box from `low` to `high`, cutting it between them."""
    if len(chunks) == 1:
        offsets, sizes = chunks[0][:2]
        return offsets == low and tuple(map(int.__add__, offsets, sizes)) == high
    if depth > _MAX_CUTS_DEEP:
        return False
    for dim in range(len(low)):
        groups = _cut(chunks, dim)
        if len(groups) > 1:
            break
    else:
        return _fills(chunks, low, high)  # they interlock or overlap
    edge = low[dim]
    for start, stop, group in groups:
        if start != edge:
            return False
        group_low = (*low[:dim], start, *low[dim + 1 :])
        group_high = (*high[:dim], stop, *high[dim + 1 :])
        if not _tiles(group, group_low, group_high, depth + 1):
            return False
        edge = stop
    return edge == high[dim]


def _fills(chunks: Sequence[Chunk], low: tuple[int, ...], high: tuple[int, ...]) -> bool:
    """Return whether `chunks` lie inside the box, add up to its size, and do not overlap."""
    if len(chunks) > _MAX_INTERLOCKED:
        return False
    boxes = [(c.offsets, tuple(map(int.__add__, c.offsets, c.sizes))) for c in chunks]
    is_inside = all(
        all(map(int.__le__, low, begin)) and all(map(int.__le__, end, high)) for begin, end in boxes
    )
    is_full = sum(prod(c.sizes) for c in chunks) == prod(map(int.__sub__, high, low))
    return is_inside and is_full and not any(_overlap(a, b) for a, b in combinations(boxes, 2))


def _overlap(a: _Corners, b: _Corners) -> bool:
    return all(map(int.__lt__, a[0], b[1])) and all(map(int.__lt__, b[0], a[1]))


def _cut(chunks: Sequence[Chunk], dim: int) -> list[tuple[int, int, list[Chunk]]]:
    """Group `chunks` into slices along `dim` that no chunk crosses: (start, stop, group)."""
    groups: list[tuple[int, int, list[Chunk]]] = []
    for chunk in sorted(chunks, key=lambda chunk: chunk.offsets[dim]):
        start = chunk.offsets[dim]
        stop = start + chunk.sizes[dim]
        if groups and start < groups[-1][1]:
            first, last, group = groups[-1]
            group.append(chunk)
            groups[-1] = (first, max(last, stop), group)
        else:
            groups.append((start, stop, [chunk]))
    return groups
