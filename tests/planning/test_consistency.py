"""What is published beside the weights agrees with them, is put right, or is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models
from transformers import (
    DeepseekV3Config,
    DeepseekV3ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    ViTConfig,
    ViTModel,
    WhisperConfig,
    WhisperForConditionalGeneration,
)

import hubmerge
from hubmerge import NamingOptions
from hubmerge.errors import CheckpointError
from hubmerge.hf_format.assets import Assets
from hubmerge.planning.plan import Plan
from tests.support.checkpoints.cases_plain import save_alone

SIZES = {
    "hidden_size": 8,
    "intermediate_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "vocab_size": 16,
}


def llama(**changes: Any) -> LlamaForCausalLM:
    """A tiny model that ties nothing."""
    return LlamaForCausalLM(LlamaConfig(**(SIZES | changes), tie_word_embeddings=False))


class Trained:
    """A run's checkpoint and assets; `plan` says what would be published."""

    def __init__(self, folder: Path, model: PreTrainedModel, state: dict[str, Any] | None = None):
        self.folder, self.checkpoint, self.assets = folder, folder / "run", folder / "assets"
        save_alone(self.checkpoint, {"model": model.state_dict() if state is None else state})
        self.assets.mkdir()
        self.config = json.loads(model.config.to_json_string())
        self.config["architectures"] = [type(model).__name__]
        self.write_tokenizer(16)

    def write_tokenizer(self, size: int) -> None:
        words = {f"w{i}": i for i in range(size)}
        Tokenizer(models.WordLevel(words, "w0")).save(str(self.assets / "tokenizer.json"))

    def plan(self, *, check: bool = True, **config: Any) -> tuple[Plan, Assets]:
        text = json.dumps(self.config | config, indent=3)
        (self.assets / "config.json").write_text(text)
        return hubmerge.plan(
            self.checkpoint,
            model_assets_dir=self.assets,
            dtype="auto",
            naming=NamingOptions(check_model=check),
        )


def published_config(assets: Assets) -> str:
    """Return the text of the config as it would be published."""
    asset = assets.get("config.json")
    assert asset is not None
    return asset.read().decode()


FP8 = {"quant_method": "fp8", "weight_block_size": [128, 128]}


@pytest.mark.parametrize(
    "section",
    [
        {"quantization_config": FP8},
        {"compression_config": {"quant_method": "compressed-tensors"}},
        {"quantization_config": {"quant_method": "gptq", "bits": 4}},
        {"quantization": {"group_size": 64, "bits": 4}},
    ],
)
def test_a_quantization_that_the_weights_lack_is_left_out(
    section: dict[str, Any], tmp_path: Path
) -> None:
    """No other byte of the config changes, and it is said; nested configs too."""
    run = Trained(tmp_path, llama())
    plain = published_config(run.plan(check=False, text_config={"vocab_size": 16})[1])
    plan, assets = run.plan(check=False, text_config={"vocab_size": 16} | section, **section)
    assert published_config(assets) == plain
    assert sum("quantized" in note for note in plan.notes) == 2


def test_a_quantization_that_the_weights_have_stays(tmp_path: Path) -> None:
    """Real fp8 with its scales is published as such; without a config for it, there is a word."""
    state = dict(llama().state_dict())
    name = "model.layers.0.mlp.up_proj.weight"
    state[name] = state[name].to(torch.float8_e4m3fn)
    state[f"{name}_scale_inv"] = torch.ones(1, 1)
    run = Trained(tmp_path, llama(), state)
    _, assets = run.plan(check=False, quantization_config=FP8)
    assert json.loads(published_config(assets))["quantization_config"] == FP8
    assert not assets.warnings
    _, assets = run.plan(check=False)
    assert "no quantization_config" in assets.warnings[0]


def test_the_class_that_fsdp_made_is_published_as_the_real_one(tmp_path: Path) -> None:
    """Only the name changes, and it is said."""
    run = Trained(tmp_path, llama())
    right = published_config(run.plan()[1])
    plan, assets = run.plan(architectures=["FSDPLlamaForCausalLM"])
    assert published_config(assets) == right
    assert any("FSDPLlamaForCausalLM" in note for note in plan.notes)


@pytest.mark.parametrize("model_type", ["llama", "unknown"])
def test_a_resized_vocabulary_names_the_field_to_change(model_type: str, tmp_path: Path) -> None:
    """Whether transformers knows the model or not; a warning if the user wants no check."""
    run = Trained(tmp_path, llama(vocab_size=20))
    with pytest.raises(
        CheckpointError, match=r"embed_tokens.* 20 rows.* 16 \(vocab_size\)"
    ) as error:
        run.plan(vocab_size=16, model_type=model_type)
    assert '"vocab_size": 20' in error.value.hint
    _, assets = run.plan(vocab_size=16, model_type=model_type, check=False)
    assert any('"vocab_size": 20' in warning for warning in assets.warnings)


@pytest.mark.parametrize(("outer", "warned"), [(32, True), (40, False), (None, False)])
def test_two_sizes_of_the_vocabulary_that_differ_are_named(
    outer: int | None, warned: bool, tmp_path: Path
) -> None:
    """The one of the text model is the embedding's; the other is wrong."""
    run = Trained(tmp_path, llama(vocab_size=40))
    config = {"model_type": "unknown", "vocab_size": outer, "text_config": {"vocab_size": 40}}
    warnings = run.plan(**config)[1].warnings
    assert [True for text in warnings if '"vocab_size": 40' in text] == [True] * warned


def test_tokens_beyond_the_embedding_are_named(tmp_path: Path) -> None:
    """Those of the tokenizer, and those that the configs name; a longer embedding is fine."""
    run = Trained(tmp_path, llama())
    assert run.plan()[1].warnings == ()
    run.write_tokenizer(12)
    assert run.plan()[1].warnings == ()
    run.write_tokenizer(17)
    (run.assets / "generation_config.json").write_text('{"eos_token_id": [2, 18]}')
    warnings = run.plan()[1].warnings
    assert len(warnings) == 2
    assert all(text in warnings[0] for text in ("tokenizer", "'w16'", "16 rows"))
    assert "generation_config.json: eos_token_id" in warnings[1]


def deepseek() -> DeepseekV3ForCausalLM:
    """Return a tiny model of the kind that has layers for multi-token prediction."""
    return DeepseekV3ForCausalLM(
        DeepseekV3Config(
            **SIZES | {"num_hidden_layers": 2}, num_key_value_heads=1, first_k_dense_replace=2,
            q_lora_rank=4, kv_lora_rank=4, qk_rope_head_dim=4, qk_nope_head_dim=4, v_head_dim=4,
        )
    )  # fmt: skip


@pytest.mark.parametrize("name", ["layers.2.eh_proj", "mtp.fc", None])
def test_layers_for_multi_token_prediction_are_kept_or_missed(
    name: str | None, tmp_path: Path
) -> None:
    """At the depth that the config gives, not only at the base model's 61."""
    state = dict(deepseek().state_dict())
    if name:
        state[f"model.{name}.weight"] = torch.ones(8, 16)
    plan, assets = Trained(tmp_path, deepseek(), state).plan(num_nextn_predict_layers=1)
    names = {tensor.name for shard in plan.shards for tensor in shard.tensors}
    assert name is None or f"model.{name}.weight" in names
    assert sum("MTP" in warning for warning in assets.warnings) == (name is None)


@pytest.mark.parametrize(
    ("present", "missing"),
    [("layers.2.eh_proj", "layers.3"), ("mtp.layers.1.fc", "mtp.layers.0"), ("mtp.fc", None)],
)
def test_one_of_two_promised_layers_is_missed_by_name(
    present: str, missing: str | None, tmp_path: Path
) -> None:
    """Where layers are numbered; one without a number may serve for all."""
    state = dict(deepseek().state_dict()) | {f"model.{present}.weight": torch.ones(8, 16)}
    _, assets = Trained(tmp_path, deepseek(), state).plan(num_nextn_predict_layers=2)
    warnings = [warning for warning in assets.warnings if "MTP" in warning]
    assert len(warnings) == (missing is not None)
    assert all(f"lacks: {missing};" in warning for warning in warnings)


def whisper() -> WhisperForConditionalGeneration:
    """Return a tiny model of sound."""
    return WhisperForConditionalGeneration(
        WhisperConfig(
            vocab_size=16, d_model=8, encoder_layers=1, decoder_layers=1, encoder_ffn_dim=8,
            decoder_ffn_dim=8, encoder_attention_heads=1, decoder_attention_heads=1,
            num_mel_bins=8, max_source_positions=8, max_target_positions=8, pad_token_id=1,
            bos_token_id=0, eos_token_id=2, decoder_start_token_id=2,
        )
    )  # fmt: skip


def test_a_missing_processor_is_named(tmp_path: Path) -> None:
    """Where transformers has one for such a model; any file that can hold it will do."""
    run = Trained(tmp_path, whisper())
    (warning,) = run.plan()[1].warnings
    assert "preprocessor_config.json" in warning
    (run.assets / "processor_config.json").write_text("{}")
    assert run.plan()[1].warnings == ()


def test_a_model_of_images_needs_no_tokenizer(tmp_path: Path) -> None:
    """Nobody is asked for one; of a model of text it is said, and what its settings lack."""
    vit = ViTConfig(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1)
    run = Trained(tmp_path, ViTModel(vit))
    (run.assets / "tokenizer.json").unlink()
    (run.assets / "preprocessor_config.json").write_text("{}")
    assert run.plan()[1].warnings == ()


@pytest.mark.parametrize(
    ("files", "warned"),
    [
        (["tokenizer.json"], []),
        (["spm.model", "tokenizer_config.json"], []),
        (["qwen.tiktoken"], []),
        (["tokenizer_config.json", "special_tokens_map.json"], ["no vocabulary"]),
        (["special_tokens_map.json"], ["no tokenizer"]),
    ],
)
def test_a_tokenizer_that_cannot_be_loaded_is_a_warning(
    files: list[str], warned: list[str], tmp_path: Path
) -> None:
    """Settings alone are no tokenizer, unless its class needs no vocabulary."""
    run = Trained(tmp_path, llama())
    (run.assets / "tokenizer.json").unlink()
    for name in files:
        (run.assets / name).write_text("{}")
    warnings = run.plan(check=False)[1].warnings
    assert len(warnings) == len(warned)
    assert all(text.startswith(start) for text, start in zip(warnings, warned, strict=True))


OMNI = {
    "model_type": "omni-of-tomorrow",
    "architectures": ["Unknown"],
    "thinker_config": {},
    "talker_config": {},
}


def test_a_lone_thinker_is_called_that(tmp_path: Path) -> None:
    """An Omni model that was trained without its voice does not load as one that speaks."""
    state = {f"thinker.{name}": value for name, value in llama().state_dict().items()}
    run = Trained(tmp_path, llama(), state)
    with pytest.raises(CheckpointError, match="thinker alone, without talker and token2wav") as e:
        run.plan(**OMNI)
    assert '"enable_audio_output": false' in e.value.hint
    run.plan(**OMNI, enable_audio_output=False)
    save_alone(tmp_path / "whole", {"model": state | {"talker.x.weight": torch.ones(2)}})
    run.checkpoint = tmp_path / "whole"
    run.plan(**OMNI)


def test_a_draft_model_is_not_held_against_the_class_it_is_derived_from(tmp_path: Path) -> None:
    """EAGLE-3 has hardly a name of Llama, and a head for a vocabulary of its own."""
    state = {
        "fc.weight": torch.randn(8, 24),
        "midlayer.self_attn.q_proj.weight": torch.randn(8, 16),
        "norm.weight": torch.randn(8),
        "lm_head.weight": torch.randn(5, 8),
        "d2t": torch.arange(5),
    }
    run = Trained(tmp_path, llama(), state)
    plan, _ = run.plan(architectures=["LlamaForCausalLMEagle3"], draft_vocab_size=5)
    assert {tensor.name for shard in plan.shards for tensor in shard.tensors} == state.keys()
    assert any("LlamaForCausalLMEagle3" in warning for warning in plan.warnings)
