"""The decision about names as it grows, one step after another."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from hubmerge.checkpoint.schema import StoredTensor
from hubmerge.errors import CheckpointError
from hubmerge.names.views import TensorView
from hubmerge.names.weights import Dropped


@dataclass
class Draft:
    """Tensors by the name reached so far, and what was said of them.

    Attributes:
        why: what the checkpoint was found to be, in a few words each.
        lost: tensors that are dropped although they may have been trained, and why.
    """

    tensors: dict[str, TensorView] = field(default_factory=dict)
    dropped: list[Dropped] = field(default_factory=list)
    why: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    lost: list[tuple[StoredTensor, str]] = field(default_factory=list)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: tensor.shape for name, tensor in self.tensors.items()}

    @property
    def sources(self) -> list[StoredTensor]:
        """The stored tensors that the model's are made of."""
        return [source for tensor in self.tensors.values() for source in tensor.sources]

    def rename(self, names: Mapping[str, str | None], reason: str) -> None:
        """Give each tensor its new name; None drops it for `reason`."""
        renamed: dict[str, TensorView] = {}
        for name, tensor in self.tensors.items():
            new = names[name]
            if new is None:
                self._drop_sources(tensor, reason)
            elif new in renamed:
                raise CheckpointError(
                    f"{renamed[new].key!r} and {tensor.key!r} would both be called {new!r}",
                    "The checkpoint holds more than one model: choose one with --model-key or "
                    "--include; `hubmerge inspect` shows what there is.",
                )
            else:
                renamed[new] = tensor
        self.tensors = renamed

    def leave_out(self, name: str, reason: str, *, may_be_trained: bool = False) -> None:
        """Drop the tensor that is called `name`."""
        self._drop_sources(self.tensors.pop(name), reason, may_be_trained=may_be_trained)

    def _drop_sources(self, view: TensorView, reason: str, *, may_be_trained: bool = False) -> None:
        for source in view.sources:
            self.drop(source, reason, may_be_trained=may_be_trained)

    def drop(self, tensor: StoredTensor, reason: str, *, may_be_trained: bool = False) -> None:
        """Drop a stored tensor; one that may be trained is warned about unless it is all zero."""
        self.dropped.append(Dropped(tensor.key, reason, tensor.size_bytes))
        if may_be_trained:
            self.lost.append((tensor, reason))
