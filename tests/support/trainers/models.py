"""One tiny random model for each architecture that names are tested with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

Model = Any

_TEXT: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_EXPERTS: dict[str, Any] = {"moe_intermediate_size": 16, "num_experts_per_tok": 2}


def llama(**changes: Any) -> Model:
    """Dense, untied."""
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(LlamaConfig(**(_TEXT | changes)))


def qwen3(**changes: Any) -> Model:
    """Dense, with norms of queries and keys."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    return Qwen3ForCausalLM(Qwen3Config(**(_TEXT | {"head_dim": 8} | changes)))


def qwen3_moe(**changes: Any) -> Model:
    """Stacked experts in memory, one tensor each on the Hub."""
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    sizes = _TEXT | _EXPERTS | {"head_dim": 8, "num_experts": 4}
    return Qwen3MoeForCausalLM(Qwen3MoeConfig(**(sizes | changes)))


def mixtral(**changes: Any) -> Model:
    """The Hub has other names: `block_sparse_moe.experts.0.w1`."""
    from transformers import MixtralConfig, MixtralForCausalLM

    return MixtralForCausalLM(MixtralConfig(**(_TEXT | {"num_local_experts": 4} | changes)))


def deepseek_v3(**changes: Any) -> Model:
    """A dense layer and one of experts, latent attention, a router's bias that stays fp32."""
    from transformers import DeepseekV3Config, DeepseekV3ForCausalLM

    sizes = _TEXT | _EXPERTS | {
        "num_key_value_heads": 4, "n_routed_experts": 4, "n_shared_experts": 1, "n_group": 2,
        "topk_group": 1, "first_k_dense_replace": 1, "q_lora_rank": 8, "kv_lora_rank": 8,
        "qk_rope_head_dim": 4, "qk_nope_head_dim": 8, "v_head_dim": 8,
    }  # fmt: skip
    return DeepseekV3ForCausalLM(DeepseekV3Config(**(sizes | changes)))


def gemma3(**changes: Any) -> Model:
    """Tied embeddings."""
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    sizes = _TEXT | {"head_dim": 8, "sliding_window": 16}
    return Gemma3ForCausalLM(Gemma3TextConfig(**(sizes | changes)))


def gpt_oss(**changes: Any) -> Model:
    """Stacked experts on the Hub too."""
    from transformers import GptOssConfig, GptOssForCausalLM

    sizes = _TEXT | {"head_dim": 8, "num_local_experts": 4, "num_experts_per_tok": 2}
    return GptOssForCausalLM(GptOssConfig(**(sizes | changes)))


def llava(**changes: Any) -> Model:
    """Vision and language; the Hub has older names for the language model."""
    from transformers import (
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
    )

    vision = CLIPVisionConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        image_size=16, patch_size=8, projection_dim=16,
    )  # fmt: skip
    text = LlamaConfig(**(_TEXT | changes))
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_id=63)
    return LlavaForConditionalGeneration(config)


def mamba(**changes: Any) -> Model:
    """No attention; tied to `backbone.embeddings`, and A_log beside."""
    from transformers import MambaConfig, MambaForCausalLM

    sizes = {"vocab_size": 64, "hidden_size": 32, "state_size": 4, "num_hidden_layers": 2}
    return MambaForCausalLM(MambaConfig(**(sizes | changes)))


def qwen2_5_omni() -> Model:
    """Hears, sees and speaks; its class wants a file of speakers beside the weights."""
    from transformers import Qwen2_5OmniConfig, Qwen2_5OmniForConditionalGeneration

    rotary = {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 10000.0}
    text = {
        "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1,
        "num_attention_heads": 2, "num_key_value_heads": 1, "rope_parameters": rotary,
    }  # fmt: skip
    audio = {
        "d_model": 16, "encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 16,
        "num_mel_bins": 8, "output_dim": 32, "n_window": 10,
    }  # fmt: skip
    vision = {
        "depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2,
        "out_hidden_size": 32, "patch_size": 4,
    }  # fmt: skip
    speech = {
        "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "head_dim": 8,
        "ff_mult": 1, "emb_dim": 8, "num_embeds": 8, "mel_dim": 4, "enc_dim": 8, "enc_emb_dim": 8,
        "enc_channels": [8, 8, 8, 8, 24], "enc_attention_channels": 4, "enc_se_channels": 4,
        "enc_res2net_scale": 2,
    }  # fmt: skip
    vocoder = {
        "mel_dim": 4, "upsample_initial_channel": 16, "resblock_kernel_sizes": [3],
        "resblock_dilation_sizes": [[1, 3, 5]], "upsample_rates": [2],
        "upsample_kernel_sizes": [4],
    }  # fmt: skip
    config = Qwen2_5OmniConfig(
        thinker_config={"text_config": text, "audio_config": audio, "vision_config": vision},
        talker_config={**text, "embedding_size": 32, "head_dim": 16},
        token2wav_config={"dit_config": speech, "bigvgan_config": vocoder},
    )
    return Qwen2_5OmniForConditionalGeneration(config)


def _of_type(model_type: str, class_name: str, sizes: dict[str, Any]) -> Model:
    import transformers

    config = transformers.AutoConfig.for_model(model_type, **sizes)
    return getattr(transformers, class_name)(config)


def llama4(**changes: Any) -> Model:
    """Experts that are stacked and transposed, with a shared one."""
    sizes = _TEXT | {"head_dim": 8, "num_local_experts": 4, "intermediate_size_mlp": 40}
    sizes |= {"interleave_moe_layer_step": 2, "attention_chunk_size": 32}
    return _of_type("llama4_text", "Llama4ForCausalLM", sizes | changes)


_QWEN3_5 = _TEXT | {
    "head_dim": 8, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 12,
    "shared_expert_intermediate_size": 20, "linear_num_key_heads": 2, "linear_num_value_heads": 4,
    "linear_key_head_dim": 4, "linear_value_head_dim": 4, "num_hidden_layers": 4,
}  # fmt: skip


def qwen3_5_moe(**changes: Any) -> Model:
    """Gated delta nets beside attention, experts that are stacked on the Hub too."""
    return _of_type("qwen3_5_moe_text", "Qwen3_5MoeForCausalLM", _QWEN3_5 | changes)


def qwen3_5_moe_vision(**changes: Any) -> Model:
    """The same with a vision tower."""
    vision = {
        "depth": 1, "hidden_size": 16, "intermediate_size": 24, "num_heads": 2,
        "out_hidden_size": 32, "num_position_embeddings": 16, "patch_size": 4,
    }  # fmt: skip
    sizes = {"text_config": _QWEN3_5 | changes, "vision_config": vision}
    return _of_type("qwen3_5_moe", "Qwen3_5MoeForConditionalGeneration", sizes)


def kimi_k25(**changes: Any) -> Model:
    """DeepSeek-V3 with a vision tower, whose names on the Hub are others."""
    text = deepseek_v3().config.to_dict() | changes
    vision = {
        "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1,
        "num_attention_heads": 2, "patch_size": 4, "pos_emb_height": 4, "pos_emb_width": 4,
    }  # fmt: skip
    sizes = {"text_config": text, "vision_config": vision}
    return _of_type("kimi_k25", "Kimi_K25ForConditionalGeneration", sizes)


_MOE = _TEXT | {
    "head_dim": 8, "n_routed_experts": 4, "num_experts": 4, "num_local_experts": 4,
    "num_experts_per_tok": 2, "moe_intermediate_size": 12, "first_k_dense_replace": 1,
    "num_dense_layers": 1, "n_group": 1, "topk_group": 1,
}  # fmt: skip


def glm4_moe(**changes: Any) -> Model:
    """A dense layer and one of experts, with a shared expert and a routing bias."""
    return _of_type("glm4_moe", "Glm4MoeForCausalLM", _MOE | changes)


def afmoe(**changes: Any) -> Model:
    """A router with a name of its own."""
    return _of_type("afmoe", "AfmoeForCausalLM", _MOE | changes)


def laguna(**changes: Any) -> Model:
    """A routing bias that is called otherwise on the Hub."""
    return _of_type("laguna", "LagunaForCausalLM", _MOE | changes)


def minimax_m2(**changes: Any) -> Model:
    """Experts whose matrices are called w1, w2 and w3 on the Hub."""
    return _of_type("minimax_m2", "MiniMaxM2ForCausalLM", _MOE | changes)


def nemotron_h(**changes: Any) -> Model:
    """Mamba, attention, experts without a gate and a dense layer, in one stack of mixers."""
    sizes = {
        "vocab_size": 64, "hidden_size": 32, "hybrid_override_pattern": "M*E-",
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "mamba_num_heads": 4,
        "mamba_head_dim": 8, "n_groups": 1, "ssm_state_size": 4, "n_routed_experts": 4,
        "num_experts_per_tok": 2, "moe_intermediate_size": 12, "intermediate_size": 24,
        "moe_shared_expert_intermediate_size": 20, "chunk_size": 8,
    }  # fmt: skip
    return _of_type("nemotron_h", "NemotronHForCausalLM", sizes | changes)


ARCHITECTURES: dict[str, Callable[..., Model]] = {
    build.__name__: build
    for build in (
        llama,
        qwen3,
        qwen3_moe,
        mixtral,
        deepseek_v3,
        gemma3,
        gpt_oss,
        llava,
        mamba,
    )
}

# Those of trainers that have classes of their own; not all can be loaded by older transformers.
TRANSLATED: dict[str, Callable[..., Model]] = {
    build.__name__: build
    for build in (
        llama4, qwen3_5_moe, qwen3_5_moe_vision, kimi_k25, glm4_moe, afmoe, laguna, minimax_m2,
        nemotron_h,
    )
}  # fmt: skip


def build(name: str, **changes: Any) -> Model:
    """The architecture of this name with random weights, none of them as they were initialized.

    Norms are initialized to one and biases to zero: two of them that changed places would show in
    no logit.
    """
    torch.manual_seed(7)
    model = (ARCHITECTURES | TRANSLATED)[name](**changes).eval()
    with torch.no_grad():
        for tensor in {id(t): t for t in model.state_dict().values()}.values():
            if tensor.is_floating_point():
                tensor.add_(torch.randn_like(tensor) * 0.05)
    return model


def logits(model: Model) -> torch.Tensor:
    """What the model says to a few fixed inputs, an image among them where it can see."""
    tokens = torch.arange(3, 35).reshape(2, 16)
    inputs: dict[str, Any] = {"input_ids": tokens}
    if hasattr(model.config, "vision_config"):
        tokens = tokens.clone()
        tokens[:, 1:5] = 63  # four patches of an image
        pixels = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
        inputs = {"input_ids": tokens, "pixel_values": pixels.to(model.dtype)}
    with torch.no_grad():
        result: torch.Tensor = model(**inputs).logits
    return result
