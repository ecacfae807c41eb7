"""prime-rl's own MoE classes: one table for each model whose experts it stacks itself.

All other names are transformers'. Written from prime-rl's conversion to the Hub's names, whose
targets here are transformers' names in memory.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

from hubmerge.names.translation import Config, Rule, Table, joined, rules, without_leading

_OWN = re.compile(r".*\.layers\.\d+\.(mlp\.(experts\.w[123]|router\.gate(\.weight)?)|mamba\..+)")

_PROJECTIONS = {"gate_proj": "w1", "down_proj": "w2", "up_proj": "w3"}

_LAYER = "model.layers.{}."


def _experts(layer: str = _LAYER) -> tuple[Rule, ...]:
    stem = f"{layer}mlp.experts."
    return (
        Rule(f"{stem}gate_up_proj", (f"{stem}w1", f"{stem}w3"), joined(1)),
        Rule(f"{stem}down_proj", (f"{stem}w2",)),
    )


def _router(layer: str = _LAYER) -> tuple[Rule, ...]:
    return rules({"mlp.gate.weight": "mlp.router.gate.weight"}, layer, layer)


def _shared(module: str, inside: str, leaf: str = "", layer: str = _LAYER) -> tuple[Rule, ...]:
    """Return the rules of a shared expert, whose matrices may be stacks of one."""
    return tuple(
        Rule(f"{layer}{module}.{new}.weight", (f"{layer}{inside}.{old}{leaf}",), without_leading)
        for new, old in _PROJECTIONS.items()
    )


def _table(
    model_type: str, *parts: tuple[Rule, ...], bias: str | None, layer: str = _LAYER
) -> Table:
    """Return a table.

    Args:
        bias: the name in a layer of what balances the experts; None if the model has no place.
    """
    own_bias = f"{layer}mlp.expert_bias"
    parts += (rules({bias: "mlp.expert_bias"}, layer, layer),) if bias else ()
    return Table(
        f"prime-rl's {model_type}",
        tuple(rule for part in parts for rule in part),
        counters=frozenset({f"{layer}mlp.tokens_per_expert"}),
        without_place=frozenset() if bias else frozenset({own_bias}),
        is_partial=True,
        text_prefix=layer.partition("layers.")[0],
    )


def _qwen3_5_moe(layer: str) -> Table:
    return _table(
        "qwen3_5_moe",
        _experts(layer),
        _router(layer),
        _shared("mlp.shared_expert", "shared_expert", ".weight", layer),
        rules({"mlp.shared_expert_gate.weight": "shared_expert_gate.weight"}, layer, layer),
        bias=None,
        layer=layer,
    )


_GLM_MOE = (_experts(), _router(), _shared("mlp.shared_experts", "mlp.shared_expert"))

_ATTENTION = tuple(f"{part}_proj.weight" for part in "qkvo")
_MAMBA = (
    "A_log", "D", "dt_bias", "conv1d.weight", "conv1d.bias", "in_proj.weight", "in_proj.bias",
    "out_proj.weight", "out_proj.bias", "norm.weight", "up_proj.weight", "up_proj.bias",
    "down_proj.weight", "down_proj.bias",
)  # fmt: skip
_NEMOTRON_MOE = {
    "mixer.gate.weight": "mlp.router.gate",
    "mixer.gate.e_score_correction_bias": "mlp.router.e_score_correction_bias",
    "mixer.experts.up_proj": "mlp.experts.w1",
    "mixer.experts.down_proj": "mlp.experts.w2",
    "mixer.shared_experts.up_proj.weight": "mlp.shared_expert.up_proj.weight",
    "mixer.shared_experts.down_proj.weight": "mlp.shared_expert.down_proj.weight",
    "mixer.fc1_latent_proj.weight": "mlp.fc1_latent_proj.weight",
    "mixer.fc2_latent_proj.weight": "mlp.fc2_latent_proj.weight",
}
_NEMOTRON_H = Table(
    "prime-rl's nemotron_h",
    (
        *rules(
            {
                "model.embeddings.weight": "model.embed_tokens.weight",
                "model.norm_f.weight": "model.norm.weight",
            }
        ),
        *rules(_NEMOTRON_MOE, _LAYER, _LAYER),
        *rules({f"mixer.{leaf}": f"self_attn.{leaf}" for leaf in _ATTENTION}, _LAYER, _LAYER),
        *rules({f"mixer.{leaf}": f"mamba.{leaf}" for leaf in _MAMBA}, _LAYER, _LAYER),
    ),
    # Its experts have no gate: the third stack is empty, for the code that shards experts.
    counters=frozenset({f"{_LAYER}mlp.experts.w3", f"{_LAYER}mlp.tokens_per_expert"}),
    is_partial=True,
)

# By `model_type` in the config; of those with a text_config, that of the language model.
TABLES: Mapping[str, Table] = {
    "qwen3_moe": _table("qwen3_moe", _experts(), _router(), bias=None),
    "glm4_moe": _table("glm4_moe", *_GLM_MOE, bias="mlp.gate.e_score_correction_bias"),
    "glm_moe_dsa": _table("glm_moe_dsa", *_GLM_MOE, bias="mlp.gate.e_score_correction_bias"),
    "afmoe": _table(
        "afmoe",
        _experts(),
        _shared("mlp.shared_experts", "mlp.shared_expert"),
        bias="mlp.expert_bias",
    ),
    "laguna": _table(
        "laguna",
        _experts(),
        _router(),
        _shared("mlp.shared_experts", "shared_expert", ".weight"),
        bias="mlp.gate.e_score_correction_bias",
    ),
    "minimax_m2": _table("minimax_m2", _experts(), _router(), bias="mlp.e_score_correction_bias"),
    "qwen3_5_moe_text": _qwen3_5_moe(_LAYER),
    "qwen3_5_moe": _qwen3_5_moe("model.language_model.layers.{}."),
    "nemotron_h": _NEMOTRON_H,
}


def table_for(config: Config | None, names: Collection[str]) -> Table | None:
    """Return the table of prime-rl's own class, or None if these are transformers' names."""
    table = TABLES.get((config or {}).get("model_type", ""))
    return table if table is not None and any(map(_OWN.fullmatch, names)) else None
