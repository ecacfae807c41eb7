"""What naming decides: which elements of which stored tensors become which tensor of the model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from hubmerge.checkpoint.schema import StoredTensor
from hubmerge.names.views import TensorView


@dataclass(frozen=True, slots=True)
class Weight:
    """One tensor of the model.

    Attributes:
        name: its name on the Hub.
        view: the stored elements that it consists of.
        dtype: what it is stored as, whatever the rest is cast to; ``auto`` as it is stored, None to
            be cast with the rest.
        folder: of its file, if it is no part of the model itself (a module that follows it).
    """

    name: str
    view: TensorView
    dtype: str | None = None
    folder: str = ""

    @classmethod
    def whole(cls, name: str, source: StoredTensor) -> Weight:
        """Return the stored tensor as it is, under the name `name`."""
        return cls(name, TensorView.whole(source))

    @property
    def sources(self) -> tuple[StoredTensor, ...]:
        """The stored tensors that it consists of."""
        return self.view.sources

    @property
    def key(self) -> str:
        """Its key in the checkpoint; that of the first stored tensor if it has several."""
        return self.view.parts[0].source.key


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
        dropped: the stored tensors that are not published.
        layout: what the checkpoint looks like, in a few words.
        warnings: what a user should know, one sentence each.
        notes: facts that ask for nothing, one sentence each.
        files: the file of each name, if that is not left to the plan.
    """

    weights: list[Weight]
    dropped: list[Dropped]
    layout: str
    warnings: list[str] = field(default_factory=list)
    files: Mapping[str, str] | None = None
    notes: list[str] = field(default_factory=list)
