"""In which dict of the saved state the model is, as far as the names of the dicts tell.

A trainer saves ``{"model": ..., "optimizer": ...}``, and DCP flattens that to keys like
``model.model.layers.0.…``. `planner_data` keeps the nested keys, so that a dict's name can be told
from the model's own first segment; in a checkpoint without it the keys themselves have to do.
"""

from __future__ import annotations

import re
from collections.abc import Collection

from hubmerge.checkpoint.schema import StoredTensor
from hubmerge.names.training_state import is_state_word

WRAPPER = "model"

# Dicts that hold the model, by the keys that lead to it, and who writes that if it is not many.
_WRITERS: dict[tuple[str, ...], str] = {
    ("app", "model"): "prime-rl",
    ("app", "model_raw"): "Modalities",
    ("dcp", "model"): "AReaL",
    ("state", "model"): "Composer",
    ("model_state",): "fms-fsdp",
    ("state_dict",): "Lightning ModelParallel",
}

# What a dict of the model's is called, whoever writes it.
_MODEL_WORD = re.compile(
    r"models?(?:_(?:states?|state_dict|raw|weights|params|parameters|parts?))?|module|state_dict"
    r"|net|network|weights|params|parameters"
)


def is_model_word(segment: str) -> bool:
    """Return whether a dict of this name is the model's, if one beside it has another name."""
    return _MODEL_WORD.fullmatch(segment) is not None


def describe_root(root: tuple[str, ...]) -> str:
    """Return where the model is in what was saved, in a few words."""
    if not root:
        return "bare state dict (no dict around the model's own keys)"
    writer = _WRITERS.get(root)
    return f"state dict under '{'.'.join(root)}'" + (f" ({writer})" if writer else "")


def saved_paths(tensors: Collection[StoredTensor]) -> dict[str, tuple[str, ...]]:
    """Return for each key the dicts that lead to the tensor, and its own name last."""
    under_wrapper = _is_wrapped(tensors)
    roots = (*_WRITERS, *([(WRAPPER,)] if under_wrapper else []))
    return {t.key: t.path if t.path is not None else _path_of_key(t.key, roots) for t in tensors}


def _path_of_key(key: str, roots: tuple[tuple[str, ...], ...]) -> tuple[str, ...]:
    for root in roots:
        prefix = ".".join((*root, ""))
        if key.startswith(prefix):
            return (*root, key.removeprefix(prefix))
    first, dot, rest = key.partition(".")
    return (first, rest) if dot and is_state_word(first) else (key,)


def _is_wrapped(tensors: Collection[StoredTensor]) -> bool:
    """Return whether keys without planner_data are in a dict called `model`."""
    under = [t for t in tensors if t.path is None and t.key.startswith(f"{WRAPPER}.")]
    # `model.model.` is a wrapped model; a head beside `model.` is a bare one.
    if any(t.key.startswith(("model.model.", "model.lm_head.")) for t in under):
        return True
    # torch's HuggingFaceStorageWriter is given the Hub's own names.
    if not any(chunk.is_record for t in under for chunk in t.chunks):
        return False
    return not any(t.key.startswith("lm_head.") for t in tensors)
