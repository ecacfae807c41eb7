"""Tied weights: one tensor under two names. Training state has both in full, the Hub only one.

transformers ties a head to the embedding only if the file has no head: one that was not updated
with the embedding would be loaded as it is. So a head is dropped if it is equal, and a head that
differs stops the run: no file can say what was trained. A config that says
``"tie_word_embeddings": false`` is believed even of an architecture that ties by itself: T5 v1.1,
Flan-T5 and mT5 have a head of their own.
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
    """Leave one name of each tied tensor in `stored`: the one that other loaders look for.

    Args:
        same: compares two stored tensors byte for byte.

    Raises:
        CheckpointError: the config ties two tensors that differ.
    """
    dropped = []
    for name, other in _ties(stored, config, architecture, reference).items():
        if name not in stored or name == other:
            continue
        if other not in stored:
            stored[other] = stored.pop(name)
            continue
        tensor, twin = stored[name].sources[0], stored[other].sources[0]
        if not same(tensor, twin):
            raise CheckpointError(
                f"{tensor.key!r} and {twin.key!r} are tied in the config, but they differ",
                _hint(name, architecture),
            )
        del stored[name]
        dropped.append(Dropped(tensor.key, f"tied to {other} and equal to it", tensor.size_bytes))
    return dropped


def _hint(name: str, architecture: Architecture | None) -> str:
    if name == _head_of(architecture):
        return (
            'If they were trained apart, set "tie_word_embeddings": false in config.json, which '
            "keeps both; otherwise use another step, in which they are equal."
        )
    return "The architecture always ties them: use another step, in which they are equal."


def _head_of(architecture: Architecture | None) -> str:
    """Return the name of the matrix that `tie_word_embeddings` is about."""
    if architecture is not None:
        head = architecture.model.get_output_embeddings()
        for name, module in architecture.model.named_modules():
            if module is head and head is not None:
                return f"{name}.weight"
    return _HEAD


def _ties(
    stored: Mapping[str, TensorView],
    config: Mapping[str, Any] | None,
    architecture: Architecture | None,
    reference: Reference | None,
) -> dict[str, str]:
    tied = _says_tied(config) if config is not None else None
    if architecture is not None:
        head = _head_of(architecture) if tied is False else None
        return {name: other for name, other in architecture.ties.items() if name != head}
    if config is None:
        tied = reference is not None and _HEAD not in reference.files
    embeddings = [name for name in stored if name.endswith(_EMBEDDING)]
    return {_HEAD: embeddings[0]} if tied and len(embeddings) == 1 else {}


def _says_tied(config: Mapping[str, Any]) -> bool | None:
    """Return what the config says in words, or None if it says nothing."""
    text = config.get("text_config")
    inner = text.get("tie_word_embeddings") if isinstance(text, dict) else None
    outer = config.get("tie_word_embeddings", inner)
    return None if outer is None else bool(outer)
