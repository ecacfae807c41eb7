"""torchtitan's own model definitions: one table for each family of models.

torchtitan saves its modules flat, under names of its own that change from release to release.
`modern_names` brings each generation to one, without the shapes that newer names end in
(``w1_EFD``), so that each table is written once. Compared with torchtitan 0.3.0's own `to_hf()`.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import replace
from math import prod
from typing import Any

from hubmerge.errors import CheckpointError, UsageError
from hubmerge.names.translation import (
    Config,
    Rule,
    Table,
    joined,
    joined_transposed,
    merged,
    rotary_halves,
    rules,
    transposed,
)
from hubmerge.names.views import TensorView

_GENERATIONS = (
    (re.compile(r"^output\."), "lm_head."),  # until April 2026
    (re.compile(r"\.qkv_linear\."), "."),  # since June 2026
    (re.compile(r"\.routed_experts\.inner_experts\."), ".experts."),  # since July 2026
    (re.compile(r"(\.experts\.w\d+)\.weight$"), r"\1"),
    (re.compile(r"_[A-Z]{1,4}$"), ""),  # the names of dimensions, since May 2026
)

_LAYER = re.compile(r"layers\.\d+\.(attention|attn)\.")
_MTP = re.compile(r"^mtp_layers\.(\d+)\.")

_ENDS = {
    "model.embed_tokens.weight": "tok_embeddings.weight",
    "model.norm.weight": "norm.weight",
    "lm_head.weight": "lm_head.weight",
}
_NORMS = {
    "input_layernorm.weight": "attention_norm.weight",
    "post_attention_layernorm.weight": "ffn_norm.weight",
}
_ATTENTION = {
    "self_attn.q_proj.weight": "attention.wq.weight",
    "self_attn.k_proj.weight": "attention.wk.weight",
    "self_attn.v_proj.weight": "attention.wv.weight",
    "self_attn.o_proj.weight": "attention.wo.weight",
}
_ATTENTION_NORMS = {
    "self_attn.q_norm.weight": "attention.q_norm.weight",
    "self_attn.k_norm.weight": "attention.k_norm.weight",
}
_FEED_FORWARD = {
    "mlp.gate_proj.weight": "feed_forward.w1.weight",
    "mlp.up_proj.weight": "feed_forward.w3.weight",
    "mlp.down_proj.weight": "feed_forward.w2.weight",
}
_LATENT_ATTENTION = {
    "self_attn.q_proj.weight": "attention.wq.weight",
    "self_attn.q_a_proj.weight": "attention.wq_a.weight",
    "self_attn.q_a_layernorm.weight": "attention.q_norm.weight",
    "self_attn.q_b_proj.weight": "attention.wq_b.weight",
    "self_attn.kv_a_proj_with_mqa.weight": "attention.wkv_a.weight",
    "self_attn.kv_a_layernorm.weight": "attention.kv_norm.weight",
    "self_attn.kv_b_proj.weight": "attention.wkv_b.weight",
    "self_attn.o_proj.weight": "attention.wo.weight",
}

# The buffer of the rotary embedding, which older releases saved.
_BUFFERS = frozenset({"freqs_cis", "rope.cache", "rope_cache"})
_EXPERT_BIAS = "layers.{}.moe.expert_bias"
_COUNTERS = _BUFFERS | {"layers.{}.moe.tokens_per_expert"}


def _in_layer(names: Mapping[str, str], prefix: str = "model.") -> tuple[Rule, ...]:
    return rules(names, f"{prefix}layers.{{}}.", "layers.{}.")


def _experts(prefix: str, mlp: str = "mlp") -> tuple[Rule, ...]:
    """Return the rules of stacked experts: three stacks, or gate and up in one."""
    stem, experts = f"{prefix}layers.{{}}.{mlp}.experts", "layers.{}.moe.experts"
    return (
        Rule(f"{stem}.gate_up_proj", (f"{experts}.w1", f"{experts}.w3"), joined(1)),
        Rule(f"{stem}.gate_up_proj", (f"{experts}.w13",), merged(1)),
        Rule(f"{stem}.down_proj", (f"{experts}.w2",)),
    )


def _shared_expert(name: str, mlp: str = "mlp") -> dict[str, str]:
    return {
        f"{mlp}.{name}.gate_proj.weight": "moe.shared_experts.w1.weight",
        f"{mlp}.{name}.up_proj.weight": "moe.shared_experts.w3.weight",
        f"{mlp}.{name}.down_proj.weight": "moe.shared_experts.w2.weight",
    }


_LLAMA3 = Table(
    "torchtitan's llama3",
    (
        *rules(_ENDS),
        *_in_layer(_NORMS | _FEED_FORWARD),
        *_in_layer({k: v for k, v in _ATTENTION.items() if "v_proj" in k or "o_proj" in k}),
        Rule(
            "model.layers.{}.self_attn.q_proj.weight",
            ("layers.{}.attention.wq.weight",),
            rotary_halves("num_attention_heads"),
        ),
        Rule(
            "model.layers.{}.self_attn.k_proj.weight",
            ("layers.{}.attention.wk.weight",),
            rotary_halves("num_key_value_heads"),
        ),
    ),
    _COUNTERS,
)

_QWEN3 = Table(
    "torchtitan's qwen3",
    (
        *rules(_ENDS),
        *_in_layer(_NORMS | _ATTENTION | _ATTENTION_NORMS | _FEED_FORWARD),
        *_in_layer({"mlp.gate.weight": "moe.router.gate.weight"}),
        *_experts("model."),
    ),
    _COUNTERS,
    without_place=frozenset({_EXPERT_BIAS}),
)

_DEEPSEEK_V3 = Table(
    "torchtitan's deepseek_v3",
    (
        *rules(_ENDS),
        *_in_layer(_NORMS | _LATENT_ATTENTION | _FEED_FORWARD | _shared_expert("shared_experts")),
        *_in_layer(
            {
                "mlp.gate.weight": "moe.router.gate.weight",
                "mlp.gate.e_score_correction_bias": "moe.expert_bias",
                "enorm.weight": "enorm.weight",
                "hnorm.weight": "hnorm.weight",
                "eh_proj.weight": "eh_proj.weight",
                "shared_head.norm.weight": "mtp_norm.weight",
            }
        ),
        *_experts("model."),
    ),
    _COUNTERS,
)

_GPT_OSS = Table(
    "torchtitan's gpt_oss",
    (
        *rules(_ENDS),
        *_in_layer(_NORMS | _ATTENTION),
        *_in_layer({k[:-6] + "bias": v[:-6] + "bias" for k, v in _ATTENTION.items()}),
        *_in_layer(
            {
                "self_attn.sinks": "attention.sinks",
                "mlp.router.weight": "moe.router.gate.weight",
                "mlp.router.bias": "moe.router.gate.bias",
                "mlp.experts.gate_up_proj_bias": "moe.experts.mlp1_bias",
                "mlp.experts.down_proj_bias": "moe.experts.mlp2_bias",
            }
        ),
        *(
            Rule(f"model.layers.{{}}.mlp.experts.{new}", (f"layers.{{}}.moe.experts.{old}",), how)
            for new, old, how in (
                ("gate_up_proj", "mlp1_weight", transposed),
                ("down_proj", "mlp2_weight", transposed),
            )
        ),
    ),
    _COUNTERS,
    without_place=frozenset({_EXPERT_BIAS}),
)

_LLAMA4 = Table(
    "torchtitan's llama4",
    (
        *rules(_ENDS),
        *_in_layer(_NORMS | _ATTENTION | _shared_expert("shared_expert", "feed_forward")),
        *_in_layer({k.replace("mlp.", "feed_forward."): v for k, v in _FEED_FORWARD.items()}),
        *_in_layer({"feed_forward.router.weight": "moe.router.gate.weight"}),
        Rule(
            "model.layers.{}.feed_forward.experts.gate_up_proj",
            ("layers.{}.moe.experts.w1", "layers.{}.moe.experts.w3"),
            joined_transposed,
        ),
        Rule(
            "model.layers.{}.feed_forward.experts.down_proj",
            ("layers.{}.moe.experts.w2",),
            transposed,
        ),
    ),
    _COUNTERS,
    without_place=frozenset({_EXPERT_BIAS}),
)


def _vision_layer(names: Mapping[str, str], prefix: str, kinds: str = "wb") -> tuple[Rule, ...]:
    """Return rules of a vision tower's layers, each for the weight and the bias."""
    leaves = [leaf for leaf in ("weight", "bias") if leaf[0] in kinds]
    return rules(
        {f"{new}.{leaf}": f"{old}.{leaf}" for new, old in names.items() for leaf in leaves},
        prefix,
        "vision_encoder.layers.{}.",
    )


def _both(names: Mapping[str, str]) -> tuple[Rule, ...]:
    """Return rules of modules outside layers, each for the weight and the bias."""
    return rules(
        {f"{n}.{leaf}": f"{o}.{leaf}" for n, o in names.items() for leaf in ("weight", "bias")}
    )


def _patches(view: TensorView, config: Config) -> TensorView:
    """Build the weight of a convolution over patches from that of a linear layer."""
    vision: Any = config.get("vision_config")
    vision = vision if isinstance(vision, Mapping) else {}
    frames = (vision["temporal_patch_size"],) if "temporal_patch_size" in vision else ()
    channels = vision.get("in_channels") or vision.get("num_channels") or 3
    shape = (channels, *frames, vision.get("patch_size"), vision.get("patch_size"))
    if not all(isinstance(n, int) and n > 0 for n in shape) or view.shape[1] != prod(shape):
        raise CheckpointError(
            f"{view.key!r} has {view.shape[1]} columns, which are not the patches that "
            "vision_config in config.json describes",
            "Give the config.json of this checkpoint's model.",
        )
    return view.reshape((view.shape[0], *shape))


_DELTA_NET = "model.language_model.layers.{}.linear_attn."
_QWEN3_5 = Table(
    "torchtitan's qwen3_5",
    (
        *rules(
            {
                "model.language_model.embed_tokens.weight": "tok_embeddings.weight",
                "model.language_model.norm.weight": "norm.weight",
                "lm_head.weight": "lm_head.weight",
                "model.visual.pos_embed.weight": "vision_encoder.pos_embed",
                "model.visual.patch_embed.proj.bias": "vision_encoder.patch_embed.bias",
            }
        ),
        *_in_layer(
            {
                new: old.replace("attention.", "attn.")
                for new, old in (_ATTENTION | _ATTENTION_NORMS).items()
            }
            | _NORMS
            | _FEED_FORWARD
            | _shared_expert("shared_expert")
            | {
                "mlp.gate.weight": "moe.router.gate.weight",
                "mlp.shared_expert_gate.weight": "moe.shared_experts.gate.weight",
                **{
                    f"linear_attn.{leaf}": f"attn.{leaf}"
                    for leaf in (
                        "in_proj_z.weight",
                        "in_proj_a.weight",
                        "in_proj_b.weight",
                        "A_log",
                        "dt_bias",
                        "norm.weight",
                        "out_proj.weight",
                    )
                },
            },
            "model.language_model.",
        ),
        *_experts("model.language_model."),
        *(
            Rule(
                _DELTA_NET + new,
                tuple(f"layers.{{}}.attn.{old}_{part}.weight" for part in "qkv"),
                joined(0),
            )
            for new, old in (("in_proj_qkv.weight", "in_proj"), ("conv1d.weight", "conv"))
        ),
        Rule(
            "model.visual.patch_embed.proj.weight", ("vision_encoder.patch_embed.weight",), _patches
        ),
        *(
            Rule(
                f"model.visual.blocks.{{}}.attn.qkv.{leaf}",
                tuple(f"vision_encoder.layers.{{}}.attn.w{part}.{leaf}" for part in "qkv"),
                joined(0),
            )
            for leaf in ("weight", "bias")
        ),
        *_vision_layer(
            {
                name: name
                for name in ("norm1", "norm2", "attn.proj", "mlp.linear_fc1", "mlp.linear_fc2")
            },
            "model.visual.blocks.{}.",
        ),
        *_both(
            {
                f"model.visual.merger.{name}": f"vision_encoder.merger.{name}"
                for name in ("norm", "linear_fc1", "linear_fc2")
            }
        ),
    ),
    _COUNTERS,
    without_place=frozenset({_EXPERT_BIAS}),
    text_prefix="model.language_model.",
)

_KIMI_K2_5 = Table(
    "torchtitan's kimi_k2_5",
    (
        *(
            replace(rule, target=rule.target.replace("model.", "model.language_model.", 1))
            for rule in _DEEPSEEK_V3.rules
        ),
        *rules(
            {
                "model.vision_tower.patch_embed.pos_emb.position_embeddings": (
                    "vision_encoder.pos_embed"
                ),
                "model.vision_tower.patch_embed.proj.bias": "vision_encoder.patch_embed.bias",
            }
        ),
        Rule(
            "model.vision_tower.patch_embed.proj.weight",
            ("vision_encoder.patch_embed.weight",),
            _patches,
        ),
        *_vision_layer(
            {
                "norm1": "norm1",
                "norm2": "norm2",
                "attn.q_proj": "attn.wq",
                "attn.k_proj": "attn.wk",
                "attn.v_proj": "attn.wv",
                "attn.proj": "attn.proj",
                "mlp.fc1": "mlp.linear_fc1",
                "mlp.fc2": "mlp.linear_fc2",
            },
            "model.vision_tower.layers.{}.",
        ),
        *_both(
            {
                "model.vision_tower.final_layernorm": "vision_encoder.final_norm",
                "model.mm_projector.pre_norm": "vision_encoder.projector.pre_norm",
                "model.mm_projector.in_proj": "vision_encoder.projector.linear_1",
                "model.mm_projector.out_proj": "vision_encoder.projector.linear_2",
            }
        ),
    ),
    _COUNTERS,
    text_prefix="model.language_model.",
)

# By `model_type` in the config of what transformers calls the model.
TABLES: Mapping[str, Table] = {
    "llama": _LLAMA3,
    "qwen3": _QWEN3,
    "qwen3_moe": _QWEN3,
    "deepseek_v3": _DEEPSEEK_V3,
    "kimi_k2": _DEEPSEEK_V3,
    "gpt_oss": _GPT_OSS,
    "llama4": _LLAMA4,
    "llama4_text": _LLAMA4,
    "qwen3_5": _QWEN3_5,
    "qwen3_5_moe": _QWEN3_5,
    "qwen3_5_text": _QWEN3_5,
    "qwen3_5_moe_text": _QWEN3_5,
    "kimi_k25": _KIMI_K2_5,
}


def is_torchtitan(names: Collection[str]) -> bool:
    """Return whether these are torchtitan's own names, of a whole model or of LoRA alone."""
    has_end = "tok_embeddings.weight" in names or any(".lora_a.weight" in name for name in names)
    return has_end and any(_LAYER.match(name) for name in names)


def modern_names(names: Collection[str], config: Config | None) -> dict[str, str]:
    """Return the newest generation's name for each of these, without the names of dimensions.

    The layers for predicting several tokens come after the model's own, as on the Hub.
    """
    result = {}
    text = (config or {}).get("text_config")
    layers = (text if isinstance(text, Mapping) else config or {}).get("num_hidden_layers")
    for name in names:
        new = name
        for old, replacement in _GENERATIONS:
            new = old.sub(replacement, new)
        mtp = _MTP.match(new)
        if mtp is not None and isinstance(layers, int):
            new = f"layers.{layers + int(mtp[1])}.{new[mtp.end() :]}"
        result[name] = new
    return result


def table_for(config: Config | None, names: Collection[str]) -> Table:
    """Return the table of the family that the config is of.

    Raises:
        UsageError: there is no config, or one of a family without a table.
    """
    what = "an adapter (LoRA) with " if any(".lora_a." in name for name in names) else ""
    if config is None:
        raise UsageError(
            f"these are {what}torchtitan's own names; without a config the model's family and its "
            "head counts are unknown",
            "Give --model-assets-dir with the config.json of the model.",
        )
    model_type: Any = config.get("model_type")
    if model_type not in TABLES:
        raise UsageError(
            f"these are {what}torchtitan's own names, and there is no table for model_type "
            f"{model_type!r}",
            f"Known are: {', '.join(TABLES)}.",
        )
    return TABLES[model_type]
