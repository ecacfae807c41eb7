"""torchtitan's own model definitions: one table for each family that it can be told to be.

torchtitan saves its modules flat, under names of its own. A family is a table from those names to
the ones that transformers has in memory; where the tensors themselves differ, a function says which
parts of them, in which order. Head counts come from the config.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from hubmerge.errors import CheckpointError, UsageError
from hubmerge.names.views import TensorView

Config = Mapping[str, Any]
Reorder = Callable[[TensorView, Config], TensorView]

_LAYER = re.compile(r"layers\.(\d+)\.(.+)")

_COMMON = {
    "tok_embeddings.weight": "model.embed_tokens.weight",
    "norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",  # until April 2026
    "lm_head.weight": "lm_head.weight",
}
_COMMON_LAYER = {
    "attention.wq.weight": "self_attn.q_proj.weight",  # until June 2026
    "attention.wk.weight": "self_attn.k_proj.weight",
    "attention.wv.weight": "self_attn.v_proj.weight",
    "attention.qkv_linear.wq.weight": "self_attn.q_proj.weight",
    "attention.qkv_linear.wk.weight": "self_attn.k_proj.weight",
    "attention.qkv_linear.wv.weight": "self_attn.v_proj.weight",
    "attention.wo.weight": "self_attn.o_proj.weight",
    "feed_forward.w1.weight": "mlp.gate_proj.weight",
    "feed_forward.w3.weight": "mlp.up_proj.weight",
    "feed_forward.w2.weight": "mlp.down_proj.weight",
    "attention_norm.weight": "input_layernorm.weight",
    "ffn_norm.weight": "post_attention_layernorm.weight",
}


def _rotary_rows(heads_key: str) -> Reorder:
    """Rows of a projection whose rotary pairs are neighbours, as transformers has them: halves.

    Of each head the even rows, then the odd ones.
    """

    def reorder(view: TensorView, config: Config) -> TensorView:
        heads = config.get(heads_key) or config.get("num_attention_heads")
        rows = view.shape[0]
        if not isinstance(heads, int) or heads < 1 or rows % (2 * heads):
            raise CheckpointError(
                f"{view.sources[0].key!r} has {rows} rows, which are not {heads} heads "
                f"({heads_key} in config.json)",
                "The config is not that of this checkpoint.",
            )
        pairs = view.unflatten(0, (heads, rows // heads // 2, 2))
        return pairs.transpose(1, 2).reshape(view.shape)

    return reorder


_ROTARY_Q = _rotary_rows("num_attention_heads")
_ROTARY_K = _rotary_rows("num_key_value_heads")


@dataclass(frozen=True)
class Family:
    """One of torchtitan's models.

    Attributes:
        model_types: `model_type` in the configs of what transformers calls it.
        names, layer_names: torchtitan's names and transformers', the latter inside ``layers.N.``.
        reorders: the elements in transformers' order, by its name inside the layer, where that is
            another.
        counters: endings of names of what is counted, not trained.
        without_place: endings of names of what may be trained, and transformers' model lacks.
    """

    model_types: tuple[str, ...]
    names: Mapping[str, str]
    layer_names: Mapping[str, str]
    reorders: Mapping[str, Reorder] = field(default_factory=dict)
    counters: tuple[str, ...] = ()
    without_place: tuple[str, ...] = ()

    def name(self, titan_name: str) -> str | None:
        """transformers' name, or None where the family has no such name."""
        layer = _LAYER.fullmatch(titan_name)
        if layer is None:
            return self.names.get(titan_name)
        inner = self.layer_names.get(layer[2])
        return f"model.layers.{layer[1]}.{inner}" if inner else None

    def reordered(self, name: str, view: TensorView, config: Config) -> TensorView:
        """Return the tensor with its elements in the order that transformers' `name` has."""
        layer = _LAYER.fullmatch(name.removeprefix("model."))
        reorder = self.reorders.get(layer[2]) if layer else None
        return reorder(view, config) if reorder else view


FAMILIES: Mapping[str, Family] = {
    "llama3": Family(
        ("llama",),
        _COMMON,
        _COMMON_LAYER,
        {"self_attn.q_proj.weight": _ROTARY_Q, "self_attn.k_proj.weight": _ROTARY_K},
    ),
    "qwen3": Family(
        ("qwen3", "qwen3_moe"),
        _COMMON,
        {
            **_COMMON_LAYER,
            "attention.q_norm.weight": "self_attn.q_norm.weight",
            "attention.k_norm.weight": "self_attn.k_norm.weight",
            "moe.experts.w1": "mlp.experts.gate_proj",
            "moe.experts.w3": "mlp.experts.up_proj",
            "moe.experts.w2": "mlp.experts.down_proj",
            "moe.router.gate.weight": "mlp.gate.weight",
        },
        counters=("moe.tokens_per_expert",),
        without_place=("moe.expert_bias",),
    ),
}


def is_titan(names: Collection[str]) -> bool:
    """Are these torchtitan's own names?"""
    return "tok_embeddings.weight" in names and any(
        name.startswith("layers.") and ".attention." in name for name in names
    )


def family_of(config: Config | None) -> tuple[str, Family]:
    """The family that the config is of.

    Raises:
        UsageError: there is no config, or one of a family without a table.
    """
    if config is None:
        raise UsageError(
            "these are torchtitan's own names; without a config the head counts are unknown",
            "Give --model-assets-dir with the config.json of the model.",
        )
    model_type = config.get("model_type")
    for label, family in FAMILIES.items():
        if model_type in family.model_types:
            return label, family
    raise UsageError(
        f"these are torchtitan's own names, and there is no table for model_type {model_type!r}",
        f"Known are: {', '.join(t for f in FAMILIES.values() for t in f.model_types)}.",
    )
