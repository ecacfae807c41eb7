"""One tiny PEFT model for each way in which PEFT saves an adapter."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from tests.support.trainers.models import llama
from tests.support.trainers.saves import State

Model = Any

_BIASED = {"attention_bias": True, "mlp_bias": True}
_Q = {"target_modules": ["q_proj"]}
_FEED_FORWARD = {"target_modules": ["q_proj", "down_proj"], "feedforward_modules": ["down_proj"]}

KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "lora": ("LORA", {"r": 2, "target_modules": ["q_proj", "v_proj"]}),
    "rslora": ("LORA", {"r": 2, "use_rslora": True, "rank_pattern": {"v_proj": 3}, **_Q}),
    "dora": ("LORA", {"r": 2, "use_dora": True, **_Q}),
    "lora_bias": ("LORA", {"r": 2, "lora_bias": True, **_Q}),
    "bias_all": ("LORA", {"r": 2, "bias": "all", **_Q}),
    "bias_only": ("LORA", {"r": 2, "bias": "lora_only", **_Q}),
    "modules": ("LORA", {"r": 2, "modules_to_save": ["lm_head", "norm"], **_Q}),
    "embedding": ("LORA", {"r": 2, "target_modules": ["embed_tokens", "lm_head", "q_proj"]}),
    "regex": ("LORA", {"r": 2, "target_modules": r".*\.(q_proj|embed_tokens)"}),
    "tokens": ("LORA", {"r": 2, "trainable_token_indices": [1, 3], **_Q}),
    "tokens_of": ("LORA", {"r": 2, "trainable_token_indices": {"lm_head": [5]}, **_Q}),
    "adalora": ("ADALORA", {"init_r": 4, "target_r": 2, "total_step": 10, **_Q}),
    "vera": ("VERA", {"r": 2, "target_modules": ["q_proj", "o_proj"]}),
    "vera_by_key": ("VERA", {"r": 2, "save_projection": False, "bias": "vera_only", **_Q}),
    "ia3": ("IA3", {**_FEED_FORWARD, "modules_to_save": ["lm_head"]}),
    "oft": ("OFT", {"oft_block_size": 4, "bias": "oft_only", **_Q}),
    "loha": ("LOHA", {"r": 2, **_Q}),
    "lokr": ("LOKR", {"r": 1, "decompose_both": True, "decompose_factor": 4, **_Q}),
    "trainable_tokens": ("TRAINABLE_TOKENS", {"token_indices": [1, 3]}),
    "ln_tuning": ("LN_TUNING", {"target_modules": ["input_layernorm"]}),
    "glora": ("GLORA", {"r": 2, **_Q}),
    "randlora": ("RANDLORA", {"r": 2, **_Q}),
    "pvera": ("PVERA", {"r": 2, **_Q}),
}
"""By name: PEFT's type of the tuner, and how it is configured."""


def base(**changes: Any) -> Model:
    """The model that is adapted: a Llama with biases, always the same."""
    torch.manual_seed(0)
    return llama(**(_BIASED | changes)).eval()


def config_of(kind: str, **changes: Any) -> Any:
    """PEFT's config of this kind of adapter."""
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    tuner, values = KINDS[kind]
    config_class = PEFT_TYPE_TO_CONFIG_MAPPING[tuner]
    return config_class(task_type="CAUSAL_LM", base_model_name_or_path=None, **(values | changes))


def adapted(model: Model, config: Any) -> Model:
    """The model with an adapter whose every trainable value was changed."""
    from peft import get_peft_model

    torch.manual_seed(1)
    adapted = get_peft_model(model, config).eval()
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) / 8)
    return adapted


def trainable(model: Model) -> Mapping[str, Any]:
    """What a trainer saves that leaves frozen parameters out: buffers are among it."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    return get_model_state_dict(model, options=StateDictOptions(ignore_frozen_params=True))


def pairs(**changes: torch.Tensor | None) -> State:
    """An adapter's two matrices, some left out."""
    stem = "base_model.model.model.layers.0.self_attn.q_proj"
    both = {"A": torch.ones(4, 32), "B": torch.ones(32, 4)} | changes
    return {f"{stem}.lora_{n}.default.weight": t for n, t in both.items() if t is not None}
