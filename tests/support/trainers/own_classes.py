"""State dicts of trainers with model classes of their own, made from transformers' models.

Written apart from the tables under test, in the other direction.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import torch

from tests.support.trainers.saves import State

_TEXT = re.compile(r"^(model\.language_model\.|language_model\.model\.|language_model\.|model\.)")

# transformers' name -> torchtitan's of July 2026, by pattern, one after another.
_TITAN = (
    (r"^embed_tokens", "tok_embeddings"),
    (r"input_layernorm", "attention_norm"),
    (r"post_attention_layernorm", "ffn_norm"),
    (r"self_attn\.q_a_proj", "attention.wq_a"),
    (r"self_attn\.q_b_proj", "attention.wq_b"),
    (r"self_attn\.q_a_layernorm", "attention.q_norm"),
    (r"self_attn\.kv_a_proj_with_mqa", "attention.wkv_a"),
    (r"self_attn\.kv_a_layernorm", "attention.kv_norm"),
    (r"self_attn\.kv_b_proj", "attention.wkv_b"),
    (r"self_attn\.([qkv])_proj", r"attention.qkv_linear.w\1"),
    (r"self_attn\.o_proj", "attention.wo"),
    (r"self_attn\.", "attention."),
    (r"linear_attn\.", "attention."),
    (r"(mlp|feed_forward)\.shared_expert_gate", "moe.shared_experts.gate"),
    (r"(mlp|feed_forward)\.shared_experts?\.gate_proj", "moe.shared_experts.w1"),
    (r"(mlp|feed_forward)\.shared_experts?\.up_proj", "moe.shared_experts.w3"),
    (r"(mlp|feed_forward)\.shared_experts?\.down_proj", "moe.shared_experts.w2"),
    (r"mlp\.gate\.e_score_correction_bias", "moe.expert_bias_E"),
    (r"(mlp|feed_forward)\.(gate|router)\.(?=weight|bias)", "moe.router.gate."),
    (r"(mlp|feed_forward)\.gate_proj", "feed_forward.w1"),
    (r"(mlp|feed_forward)\.up_proj", "feed_forward.w3"),
    (r"(mlp|feed_forward)\.down_proj", "feed_forward.w2"),
    (r"(mlp|feed_forward)\.experts\.", "moe.routed_experts.inner_experts."),
)
_VISION = (
    (r"^(visual|vision_tower)\.", "vision_encoder."),
    (r"^mm_projector\.in_proj", "vision_encoder.projector.linear_1"),
    (r"^mm_projector\.out_proj", "vision_encoder.projector.linear_2"),
    (r"^mm_projector\.", "vision_encoder.projector."),
    (r"\.blocks\.", ".layers."),
    (r"patch_embed\.proj", "patch_embed"),
    (r"patch_embed\.pos_emb\.position_embeddings", "pos_embed"),
    (r"pos_embed\.weight", "pos_embed"),
    (r"attn\.([qkv])_proj", r"attn.w\1"),
    (r"mlp\.fc", "mlp.linear_fc"),
    (r"final_layernorm", "final_norm"),
)

# torchtitan's newest names -> those of an older generation.
GENERATIONS: dict[str, tuple[tuple[str, str], ...]] = {
    "July 2026": (),
    "May 2026": ((r"\.routed_experts\.inner_experts\.", ".experts."),),
    "April 2026": (
        (r"\.routed_experts\.inner_experts\.", ".experts."),
        (r"_[A-Z]{1,3}$", ""),
        (r"\.qkv_linear\.", "."),
    ),
    "2025": (
        (r"\.routed_experts\.inner_experts\.", ".experts."),
        (r"_[A-Z]{1,3}$", ""),
        (r"\.qkv_linear\.", "."),
        (r"^lm_head", "output"),
    ),
}


def _renamed(name: str, patterns: tuple[tuple[str, str], ...]) -> str:
    for old, new in patterns:
        name = re.sub(old, new, name)
    return name


def neighbours(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Rotary pairs from two halves of a head to neighbouring rows (Meta's order)."""
    rows = weight.shape[0]
    halves = weight.reshape(heads, 2, rows // heads // 2, -1)
    return halves.transpose(1, 2).reshape(weight.shape).contiguous()


def titan_state(model: Any, generation: str = "July 2026") -> State:
    """What torchtitan would hold for this model."""
    layers = model.config.get_text_config().num_hidden_layers
    state: State = {}
    for full_name, tensor in model.state_dict().items():
        for name, part in _titan(_TEXT.sub("", full_name), tensor, model.config):
            new = _renamed(name, GENERATIONS[generation])
            if model.config.model_type.startswith("qwen3_5"):
                new = new.replace(".attention.", ".attn.").replace(".qkv_linear.", ".")
            match = re.match(r"layers\.(\d+)\.", new)
            if match and int(match[1]) >= layers:
                new = f"mtp_{new.replace(match[1], str(int(match[1]) - layers), 1)}"
            state[new] = part.contiguous()
    return state


def _titan(name: str, tensor: torch.Tensor, config: Any) -> Iterator[tuple[str, torch.Tensor]]:
    kind = config.model_type
    if name.startswith(("visual.", "vision_tower.", "mm_projector.")):
        yield from _titan_vision(_renamed(name, _VISION), tensor)
        return
    new = _renamed(name, _TITAN)
    stem, _, leaf = new.rpartition(".")
    if kind == "llama" and ".wq." in new:
        yield new, neighbours(tensor, config.num_attention_heads)
    elif kind == "llama" and ".wk." in new:
        yield new, neighbours(tensor, config.num_key_value_heads)
    elif kind == "gpt_oss" and ".inner_experts." in new:
        renamed = leaf.replace("gate_up_proj", "mlp1").replace("down_proj", "mlp2")
        shape = {"mlp1": "EGD", "mlp2": "EDF"}.get(renamed)
        if shape:
            yield f"{stem}.{renamed}_weight_{shape}", tensor.transpose(1, 2)
        else:
            yield f"{stem}.{renamed}_{'EG' if 'mlp1' in renamed else 'ED'}", tensor
    elif leaf == "gate_up_proj":
        w1, w3 = (tensor.transpose(1, 2) if kind == "llama4_text" else tensor).chunk(2, dim=1)
        yield f"{stem}.w1_EFD", w1
        yield f"{stem}.w3_EFD", w3
    elif leaf == "down_proj":
        yield f"{stem}.w2_EDF", tensor.transpose(1, 2) if kind == "llama4_text" else tensor
    elif "in_proj_qkv" in new or "conv1d" in new:
        text = config.get_text_config()
        keys = text.linear_num_key_heads * text.linear_key_head_dim
        for part, piece in zip(
            "qkv", tensor.split([keys, keys, len(tensor) - 2 * keys]), strict=True
        ):
            yield (
                new.replace("in_proj_qkv", f"in_proj_{part}").replace("conv1d", f"conv_{part}"),
                piece,
            )
    else:
        yield (
            (new.replace(".qkv_linear.", ".") if kind.startswith(("deep", "kimi")) else new),
            tensor,
        )


def _titan_vision(name: str, tensor: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
    if name == "vision_encoder.patch_embed.weight":
        yield name, tensor.flatten(1)
    elif ".attn.qkv." in name:
        for part, piece in zip("qkv", tensor.chunk(3), strict=True):
            yield name.replace(".qkv.", f".w{part}."), piece
    else:
        yield name, tensor


def prime_state(model: Any) -> State:
    """What prime-rl's own class would hold for this model."""
    state: State = {}
    for full_name, tensor in model.state_dict().items():
        kind = model.config.model_type
        name = full_name
        if kind == "nemotron_h":
            name = _nemotron(name, model.config)
        elif kind != "afmoe":
            name = re.sub(r"\.mlp\.gate\.weight$", ".mlp.router.gate.weight", name)
        name = re.sub(r"\.mlp\.(gate\.)?e_score_correction_bias$", ".mlp.expert_bias", name)
        name = name.replace(".mlp.shared_expert_gate.", ".shared_expert_gate.")
        stem, _, leaf = name.rpartition(".")
        shared = re.fullmatch(r"(.+)\.mlp\.shared_experts?\.(gate|down|up)_proj\.weight", name)
        if leaf == "gate_up_proj":
            w1, w3 = tensor.chunk(2, dim=1)
            state |= {f"{stem}.w1": w1.contiguous(), f"{stem}.w3": w3.contiguous()}
            state[f"{stem.removesuffix('.experts')}.tokens_per_expert"] = torch.ones(4)
        elif leaf == "down_proj":
            state[f"{stem}.w2"] = tensor
        elif shared and kind != "nemotron_h":
            number = {"gate": "w1", "down": "w2", "up": "w3"}[shared[2]]
            if kind in ("laguna", "qwen3_5_moe", "qwen3_5_moe_text"):
                state[f"{shared[1]}.shared_expert.{number}.weight"] = tensor
            else:
                state[f"{shared[1]}.mlp.shared_expert.{number}"] = tensor.unsqueeze(0)
        else:
            state[name] = tensor
    return state


def _nemotron(name: str, config: Any) -> str:
    layer = re.match(r"model\.layers\.(\d+)\.mixer\.", name)
    if layer is None:
        return name.replace("model.embeddings.", "model.embed_tokens.").replace("norm_f", "norm")
    inner, head = name[layer.end() :], name[: layer.end()].removesuffix("mixer.")
    moe = {"gate.weight": "router.gate", "gate.e_score_correction_bias":
           "router.e_score_correction_bias", "experts.up_proj": "experts.w1",
           "experts.down_proj": "experts.w2"}  # fmt: skip
    if inner.startswith(("gate.", "experts.", "shared_experts.")):
        return f"{head}mlp.{moe.get(inner, inner.replace('shared_experts.', 'shared_expert.'))}"
    return f"{head}{'self_attn' if re.match('[qkvo]_proj', inner) else 'mamba'}.{inner}"
