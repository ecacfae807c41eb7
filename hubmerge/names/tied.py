"""Tied weights: one tensor under two names. Training state has both in full, the Hub only one.

transformers ties the head to the embedding only where the file has no head: one that was not
updated with the embedding would be loaded as it is. So a head is dropped when it is equal, and a
head that differs stops the run: no file can say what was trained.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from hubmerge.checkpoint.schema import StoredTensor
from hubmerge.errors import CheckpointError
from hubmerge.names.architecture import Architecture
from hubmerge.names.reference import Reference
from hubmerge.names.views import TensorView
from hubmerge.names.weights import Dropped

SameElements = Callable[[StoredTensor, StoredTensor], bool]

_HEAD = "lm_head.weight"
_EMBEDDING = "embed_tokens.weight"


def drop_tied(
    stored: dict[str, TensorView],
    config: Mapping[str, Any] | None,
    architecture: Architecture | None,
    reference: Reference | None,
    same: SameElements,
) -> list[Dropped]:
    """Take tied duplicates out of `stored`.

    Args:
        same: compares two stored tensors byte for byte.

    Raises:
        CheckpointError: the config ties two tensors that differ.
    """
    dropped = []
    for name, other in _ties(stored, config, architecture, reference).items():
        if name not in stored or other not in stored or name == other:
            continue
        tensor, twin = stored[name].sources[0], stored[other].sources[0]
        if not same(tensor, twin):
            raise CheckpointError(
                f"{tensor.key!r} and {twin.key!r} are tied in the config, but they differ",
                'They were trained apart: set "tie_word_embeddings": false in config.json to keep '
                "both, or --exclude the one that is wrong.",
            )
        del stored[name]
        dropped.append(Dropped(tensor.key, f"tied to {other} and equal to it", tensor.size_bytes))
    return dropped


def _ties(
    stored: Mapping[str, TensorView],
    config: Mapping[str, Any] | None,
    architecture: Architecture | None,
    reference: Reference | None,
) -> dict[str, str]:
    if architecture is not None:
        return architecture.ties
    if config is not None:
        tied = _says_tied(config)
    else:
        tied = reference is not None and _HEAD not in reference.files
    embeddings = [name for name in stored if name.endswith(_EMBEDDING)]
    return {_HEAD: embeddings[0]} if tied and len(embeddings) == 1 else {}


def _says_tied(config: Mapping[str, Any]) -> bool:
    """Where transformers does not know the architecture, only what the config says in words."""
    text = config.get("text_config")
    inner = text.get("tie_word_embeddings") if isinstance(text, dict) else None
    return bool(config.get("tie_word_embeddings", inner))
