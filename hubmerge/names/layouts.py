"""Where each trainer puts the model among the keys that it saves, and what else it saves there.

A trainer saves ``{"model": ..., "optimizer": ...}``, and DCP flattens that to keys like
``model.model.layers.0.…``. `planner_data` keeps the nested keys, so the wrapper's name can be told
from the model's own first segment; where a checkpoint has none, the keys themselves must do.
"""

from __future__ import annotations

from collections.abc import Iterable

from hubmerge.checkpoint.schema import StoredTensor

WRAPPER = "model"

# Dicts that hold the model, by the keys that lead to it, and who writes that where it is not many.
# The first whose keys are there is taken.
MODEL_ROOTS: tuple[tuple[tuple[str, ...], str], ...] = (
    (("app", "model"), "prime-rl"),
    (("dcp", "model"), "AReaL"),
    ((WRAPPER,), ""),
    (("state_dict",), "Lightning ModelParallel"),
)

# First segments that are never part of a model, whatever else the checkpoint holds.
NOT_MODEL = frozenset(
    {
        "optimizer", "optimizers", "optim", "lr_scheduler", "lr_schedulers", "scheduler",
        "schedulers", "dataloader", "train_state", "extra_state", "rng_state", "trainer", "step",
        "epoch", "loops", "progress", "ema",
    }
)  # fmt: skip


def is_not_model(segment: str) -> bool:
    """Is this the top-level key of something else (``optimizer_0`` too)?"""
    return segment in NOT_MODEL or segment.rstrip("0123456789").rstrip("_") in NOT_MODEL


def top_key(tensor: StoredTensor) -> str:
    """The first segment of its key, or of its path where the checkpoint has one."""
    return tensor.path[0].partition(".")[0] if tensor.path else tensor.key.partition(".")[0]


def is_under(tensor: StoredTensor, root: tuple[str, ...]) -> bool:
    """Does its key begin with these segments, and go on?"""
    return tensor.key.startswith(".".join(root) + ".")


def find_root(tensors: list[StoredTensor]) -> tuple[tuple[str, ...], str]:
    """The keys that lead to the model in what was saved, and why they are taken to.

    Returns:
        ``()`` where the tensors stand in no dict of their own.
    """
    for root, writers in MODEL_ROOTS:
        under = [t for t in tensors if is_under(t, root)]
        if under and (root != (WRAPPER,) or _is_wrapped(tensors)):
            return root, f"state dict under '{'.'.join(root)}'" + f" ({writers})" * bool(writers)
    roots = {top_key(t) for t in tensors if not is_not_model(top_key(t))}
    nested = [t for t in tensors if t.path is not None and len(t.path) > 1]
    if len(roots) == 1 and len(nested) == len(tensors):
        root = (roots.pop(),)
        return root, f"state dict under '{root[0]}', the only one there is"
    return (), "bare state dict (no dict around the model's own keys)"


def _is_flat(tensor: StoredTensor) -> bool:
    """Was it saved under its own full key, in no dict inside the saved state?"""
    return tensor.path is not None and len(tensor.path) == 1


def _is_wrapped(tensors: Iterable[StoredTensor]) -> bool:
    """Do the keys stand in a dict called 'model', as far as the checkpoint tells?"""
    under = [t for t in tensors if top_key(t) == WRAPPER]
    if any(t.path is not None for t in under):
        return not all(_is_flat(t) for t in under)
    # No planner_data. `model.model.` is a wrapped model; a head beside `model.` is a bare one.
    if any(t.key.startswith(("model.model.", "model.lm_head.")) for t in under):
        return True
    # torch's HuggingFaceStorageWriter is given the Hub's own names.
    if not any(chunk.is_record for t in under for chunk in t.chunks):
        return False
    return not any(t.key.startswith("lm_head.") for t in tensors)
