"""What naming decides: which part of which stored tensor becomes which tensor of the model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from hubmerge.checkpoint.schema import StoredTensor


class Box(NamedTuple):
    """A box of a stored tensor, in elements.

    Attributes:
        step: every so many rows only: `sizes[0]` rows, each `step` below the last.
    """

    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    step: int = 1


@dataclass(frozen=True, slots=True)
class Weight:
    """One tensor of the model.

    Attributes:
        name: its name on the Hub.
        source: the stored tensor that it comes from.
        shape: its own shape.
        boxes: the parts of `source` whose elements, in row-major order and one box after another,
            are its elements: the whole of it, an expert's slice, rows in another order.
        order: the stored dimensions in the order in which each box is read, where that is not
            their own: a transposed tensor.
        dtype: what it is stored as, whatever the rest is cast to; ``auto`` as it is stored, None to
            be cast with the rest.
    """

    name: str
    source: StoredTensor
    shape: tuple[int, ...]
    boxes: tuple[Box, ...]
    order: tuple[int, ...] | None = None
    dtype: str | None = None

    @classmethod
    def whole(cls, name: str, source: StoredTensor) -> Weight:
        """The stored tensor as it is, under the name `name`."""
        box = Box((0,) * len(source.shape), source.shape)
        return cls(name, source, source.shape, (box,))


class Dropped(NamedTuple):
    """A stored tensor that is not part of the model, and why."""

    key: str
    reason: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Naming:
    """The whole decision for one checkpoint.

    Attributes:
        weights: unsorted.
        layout: what the checkpoint looks like, in a few words.
        warnings: what a user should know, one sentence each.
        files: the file of each name, where that is not left to the plan.
    """

    weights: list[Weight]
    dropped: list[Dropped]
    layout: str
    warnings: list[str] = field(default_factory=list)
    files: Mapping[str, str] | None = None
