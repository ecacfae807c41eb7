"""From checkpoint keys to Hub names, by where the keys stand in the saved state.

A trainer saves ``{"model": ..., "optimizer": ...}``, and DCP flattens that to keys like
``model.model.layers.0.…``. `planner_data` keeps the nested keys, so the wrapper's name can be told
from the model's own first segment; where a checkpoint has none, the keys themselves must do.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from hubmerge.checkpoint.model import Checkpoint, StoredTensor
from hubmerge.errors import NoModelWeightsError
from hubmerge.names.model import Dropped, Naming, Weight

WRAPPER = "model"

# First segments that are never part of a model, whatever else the checkpoint holds.
_NOT_MODEL = frozenset(
    {
        "optimizer", "optimizers", "optim", "lr_scheduler", "scheduler", "dataloader",
        "train_state", "extra_state", "rng_state", "trainer", "step", "epoch", "loops",
    }
)  # fmt: skip


def name_weights(checkpoint: Checkpoint) -> Naming:
    """Decide the name of every stored tensor, or why it is dropped.

    Raises:
        NoModelWeightsError: nothing in the checkpoint is part of a model.
    """
    candidates, dropped = _split(checkpoint)
    if not candidates:
        raise _no_weights(checkpoint)
    wrapped = _is_wrapped(candidates)
    warnings = []
    weights = []
    for tensor in candidates:
        name = tensor.key.removeprefix(f"{WRAPPER}.") if wrapped else tensor.key
        weights.append(Weight.whole(name, tensor))
    if wrapped and not any(w.name.startswith((f"{WRAPPER}.", "lm_head.")) for w in weights):
        warnings.append(
            f"stripped the prefix 'model.' from {len(weights)} keys "
            f"(for example {candidates[0].key!r}); check the names with --dry-run"
        )
    layout = "state dict under 'model'" if wrapped else "bare state dict"
    return Naming(weights, dropped, layout, warnings)


def _split(checkpoint: Checkpoint) -> tuple[list[StoredTensor], list[Dropped]]:
    """Tensors that may be the model's, and the others with the reason."""
    tensors = [t for t in checkpoint.tensors.values() if not _is_extra_state(t)]
    roots = {_root(t) for t in tensors}
    has_wrapper = WRAPPER in roots
    candidates, dropped = [], []
    for tensor in checkpoint.tensors.values():
        root = _root(tensor)
        if _is_extra_state(tensor):
            dropped.append(Dropped(tensor.key, "extra state", tensor.size_bytes))
        elif root in _NOT_MODEL:
            dropped.append(Dropped(tensor.key, f"{root} state", tensor.size_bytes))
        elif has_wrapper and root != WRAPPER and not _belongs_beside(tensor, tensors):
            dropped.append(Dropped(tensor.key, "not under 'model'", tensor.size_bytes))
        elif not has_wrapper and not _looks_like_weight(tensor):
            dropped.append(Dropped(tensor.key, "not a weight", tensor.size_bytes))
        else:
            candidates.append(tensor)
    return candidates, dropped


def _root(tensor: StoredTensor) -> str:
    return tensor.path[0].partition(".")[0] if tensor.path else tensor.key.partition(".")[0]


def _is_extra_state(tensor: StoredTensor) -> bool:
    return "_extra_state" in tensor.key.split(".")


def _is_flat(tensor: StoredTensor) -> bool:
    """Was it saved under its own full key, in no dict inside the saved state?"""
    return tensor.path is not None and len(tensor.path) == 1


def _looks_like_weight(tensor: StoredTensor) -> bool:
    return "." in tensor.key


def _belongs_beside(tensor: StoredTensor, tensors: list[StoredTensor]) -> bool:
    """Is it a part of a bare state dict, beside keys that begin with `model.`?"""
    return _looks_like_weight(tensor) and not _is_wrapped(tensors)


def _is_wrapped(tensors: Iterable[StoredTensor]) -> bool:
    """Do the keys stand in a dict called 'model', as far as the checkpoint tells?"""
    under = [t for t in tensors if _root(t) == WRAPPER]
    if not under:
        return False
    if any(t.path is not None for t in under):
        return not all(_is_flat(t) for t in under)
    # No planner_data. `model.model.` is a wrapped model; a head beside `model.` is a bare one.
    if any(t.key.startswith(("model.model.", "model.lm_head.")) for t in under):
        return True
    return not any(t.key.startswith("lm_head.") for t in tensors)


def _no_weights(checkpoint: Checkpoint) -> NoModelWeightsError:
    roots = Counter(_root(t) for t in checkpoint.tensors.values())
    found = ", ".join(f"{root} ({count})" for root, count in roots.most_common(10)) or "none"
    return NoModelWeightsError(
        f"no model weights found; the top-level keys are: {found}",
        "The model may be saved elsewhere (another folder of this step); "
        "`hubmerge inspect` shows what this one holds.",
    )
