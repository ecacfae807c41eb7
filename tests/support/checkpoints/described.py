"""Descriptions of checkpoints without files, for what is decided from keys and shapes alone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hubmerge.checkpoint.schema import Checkpoint, StoredTensor

Shapes = dict[str, tuple[int, ...]]

HIDDEN, VOCAB, LAYERS = 16, 32, 2
_LAYER: Shapes = {
    "self_attn.q_proj.weight": (HIDDEN, HIDDEN),
    "self_attn.o_proj.weight": (HIDDEN, HIDDEN),
    "mlp.up_proj.weight": (2 * HIDDEN, HIDDEN),
    "mlp.down_proj.weight": (HIDDEN, 2 * HIDDEN),
    "input_layernorm.weight": (HIDDEN,),
}
BASE: Shapes = {
    "embed_tokens.weight": (VOCAB, HIDDEN),
    **{f"layers.{i}.{n}": shape for i in range(LAYERS) for n, shape in _LAYER.items()},
    "norm.weight": (HIDDEN,),
}


def under(prefix: str, shapes: Shapes) -> Shapes:
    """Return these names behind a prefix."""
    return {prefix + name: shape for name, shape in shapes.items()}


LLAMA: Shapes = under("model.", BASE) | {"lm_head.weight": (VOCAB, HIDDEN)}


def moments(shapes: Shapes) -> dict[str, Shapes]:
    """Return Adam's state of these parameters."""
    return {n: {"exp_avg": s, "exp_avg_sq": s, "step": ()} for n, s in shapes.items()}


def described(
    state: Mapping[str, Any], *, dtypes: Mapping[str, str] | None = None, paths: bool = True
) -> Checkpoint:
    """Describe a checkpoint of this nested state.

    Args:
        state: nested dicts and lists, with a shape for each tensor.
        dtypes: of keys whose type is not float32.
        paths: whether the checkpoint tells the nesting, as those with planner_data do.
    """
    tensors: dict[str, StoredTensor] = {}

    def add(path: tuple[str, ...], value: Any) -> None:
        if isinstance(value, Mapping):
            for key, inner in value.items():
                add((*path, str(key)), inner)
        elif isinstance(value, list):
            add(path, dict(enumerate(value)))
        else:
            key = ".".join(path)
            dtype = (dtypes or {}).get(key, "float32")
            tensors[key] = StoredTensor(key, dtype, value, (), path if paths else None)

    add((), state)
    return Checkpoint(Path(), tensors, (), "")
