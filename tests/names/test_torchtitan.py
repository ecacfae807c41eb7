"""torchtitan's own models: names, rotary rows and stacked experts, as transformers has them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel

import hubmerge
from hubmerge.errors import CheckpointError, UsageError
from hubmerge.names.options import NamingOptions
from hubmerge.names.torchtitan import TABLES
from tests.names.test_architectures import load_whole, tensors_in
from tests.support.trainers.models import build, logits
from tests.support.trainers.own_classes import GENERATIONS, neighbours, titan_state
from tests.support.trainers.saves import State, save, save_config


def saved(folder: Path, state: State) -> Path:
    """As torchtitan saves: the model flat, beside the optimizer and the rest."""
    beside = {
        "optimizer": {"state": {"tok_embeddings.weight": {"exp_avg": torch.ones(3)}}},
        "lr_scheduler": {"last": torch.ones(1)},
        "dataloader": {"rank_0": torch.ones(1)},
        "train_state": {"step": torch.tensor(5)},
    }
    return save(folder / "outputs/checkpoint/step-5", {**state, **beside})


# Each model, and the generations of names that its tests go through.
MODELS = {
    "llama": ("July 2026", "2025"),
    "qwen3": ("July 2026",),
    "qwen3_moe": tuple(GENERATIONS),
    "deepseek_v3": ("July 2026", "April 2026"),
    "gpt_oss": ("July 2026", "April 2026"),
    "llama4": ("July 2026", "2025"),
    "qwen3_5_moe": ("July 2026",),
    "qwen3_5_moe_vision": ("July 2026",),
    "kimi_k25": ("July 2026",),
}


@pytest.mark.parametrize(
    ("name", "generation"), [(name, g) for name, all_of in MODELS.items() for g in all_of]
)
def test_the_loaded_model_is_torchtitans(name: str, generation: str, tmp_path: Path) -> None:
    """Names of each generation give the folder of `save_pretrained`: every tensor and logit."""
    model = build(name)
    saved(tmp_path, titan_state(model, generation))
    assets = save_config(tmp_path / "assets", model)
    result = hubmerge.convert(
        tmp_path / "outputs", tmp_path / "out", model_assets_dir=assets, dtype="auto"
    )
    loaded = load_whole(model, tmp_path / "out")
    if not hasattr(model.config, "vision_config"):
        assert torch.equal(logits(loaded), logits(model))
    model.save_pretrained(tmp_path / "own")
    ours, theirs = tensors_in(tmp_path / "out"), tensors_in(tmp_path / "own")
    assert ours.keys() == theirs.keys()
    assert [n for n in ours if not torch.equal(ours[n], theirs[n])] == []
    reasons = {d["reason"] for d in result.dropped}
    assert {"optimizer state", "lr_scheduler state", "dataloader state"} <= reasons


def test_gate_and_up_in_one_stack(tmp_path: Path) -> None:
    """The next generation stacks both: `w13` [E, 2, F, D]."""
    model = build("qwen3_moe")
    state = titan_state(model)
    for name in [n for n in state if n.endswith("w1_EFD")]:
        stem = name.removesuffix("w1_EFD")
        gate, up = state.pop(name), state.pop(f"{stem}w3_EFD")
        state[f"{stem}w13.weight"] = torch.stack([gate, up], dim=1)
        state[f"{stem}w2.weight"] = state.pop(f"{stem}w2_EDF")
    assets = save_config(tmp_path / "assets", model)
    hubmerge.convert(
        saved(tmp_path, state), tmp_path / "out", model_assets_dir=assets, dtype="auto"
    )
    assert torch.equal(logits(load_whole(model, tmp_path / "out")), logits(model))


def test_layers_for_several_tokens_follow_the_models_own(tmp_path: Path) -> None:
    """`mtp_layers.0` of two layers is layer 2 on the Hub, its norm that of a shared head."""
    model = build("deepseek_v3", num_nextn_predict_layers=1)
    state = titan_state(model)
    for name in [n for n in state if n.startswith("layers.1.")]:
        state[f"mtp_{name.replace('layers.1', 'layers.0', 1)}"] = state[name].clone()
    for name in ("enorm", "hnorm", "eh_proj", "mtp_norm"):
        state[f"mtp_layers.0.{name}.weight"] = torch.randn(32)
    assets = save_config(tmp_path / "assets", model)
    hubmerge.convert(
        saved(tmp_path, state), tmp_path / "out", model_assets_dir=assets, dtype="auto"
    )
    ours = tensors_in(tmp_path / "out")
    layer = "model.layers.2."
    assert torch.equal(
        ours[f"{layer}shared_head.norm.weight"], state["mtp_layers.0.mtp_norm.weight"]
    )
    assert f"{layer}eh_proj.weight" in ours
    assert torch.equal(
        ours[f"{layer}mlp.experts.3.up_proj.weight"],
        ours["model.layers.1.mlp.experts.3.up_proj.weight"],
    )


@pytest.mark.parametrize("whole", [True, False], ids=["whole", "adapter"])
def test_lora_becomes_an_adapter_of_peft(whole: bool, tmp_path: Path) -> None:
    """With the rows of q and k in transformers' order, PEFT adds what torchtitan added."""
    model = build("llama")
    base = titan_state(model)
    torch.manual_seed(3)
    lora = {}
    for name in [n for n in base if n.endswith((".wq.weight", ".wk.weight", ".w1.weight"))]:
        rows, columns = base[name].shape
        lora[name.replace(".weight", ".lora_a.weight")] = torch.randn(2, columns)
        lora[name.replace(".weight", ".lora_b.weight")] = torch.randn(rows, 2)
    assets = save_config(tmp_path / "assets", model)
    settings = {
        "peft_type": "LORA", "r": 2, "lora_alpha": 4, "base_model_name_or_path": "org/base",
        "target_modules": ["q_proj", "k_proj", "gate_proj"], "task_type": "CAUSAL_LM",
    }  # fmt: skip
    (assets / "adapter_config.json").write_text(json.dumps(settings))
    hubmerge.convert(
        saved(tmp_path, (base if whole else {}) | lora),
        tmp_path / "out",
        model_assets_dir=assets,
        dtype="auto",
    )
    merged = {}
    for name, tensor in base.items():
        stem = name.removesuffix(".weight")
        if f"{stem}.lora_a.weight" in lora:
            tensor = tensor + 2 * lora[f"{stem}.lora_b.weight"] @ lora[f"{stem}.lora_a.weight"]  # noqa: PLW2901
        merged[name] = tensor
    hubmerge.convert(
        saved(tmp_path / "merged", merged), tmp_path / "sum", model_assets_dir=assets, dtype="auto"
    )
    adapted = PeftModel.from_pretrained(build("llama"), tmp_path / "out")
    assert not torch.allclose(logits(adapted), logits(build("llama")), atol=1e-3)
    expected = logits(load_whole(model, tmp_path / "sum"))
    assert torch.allclose(logits(adapted), expected, atol=1e-4)


def test_lora_without_a_config_is_called_that(tmp_path: Path) -> None:
    """The error says that it is an adapter."""
    lora = {f"layers.0.attention.wq.lora_{m}.weight": torch.randn(2, 2) for m in "ab"}
    with pytest.raises(UsageError, match="LoRA"):
        hubmerge.plan(saved(tmp_path, lora))


def test_the_buffer_of_the_rotary_embedding_is_no_weight(tmp_path: Path) -> None:
    """Older releases saved `freqs_cis`, whose complex numbers no safetensors file holds."""
    model = build("llama")
    state = titan_state(model, "2025") | {"freqs_cis": torch.randn(8, 4, dtype=torch.complex64)}
    plan, _ = hubmerge.plan(
        saved(tmp_path, state), model_assets_dir=save_config(tmp_path / "assets", model)
    )
    assert "freqs_cis" in {dropped.key for dropped in plan.dropped}
    assert not any("freqs_cis" in warning for warning in plan.warnings)


def test_the_rotary_order_matters() -> None:
    """Without the permutation the model would load whole and say something else."""
    model = build("llama")
    expected = logits(model)
    state = model.state_dict()
    for name, tensor in state.items():
        if ".q_proj" in name:
            tensor.copy_(neighbours(tensor, 4))
    assert not torch.allclose(logits(model), expected, atol=1e-4)


def test_without_a_config_it_is_refused(tmp_path: Path) -> None:
    """Head counts and the family are in the config only: usage error with the way out."""
    checkpoint = saved(tmp_path, titan_state(build("llama"), "2025"))
    with pytest.raises(UsageError, match="torchtitan") as refusal:
        hubmerge.plan(checkpoint)
    assert "--model-assets-dir" in refusal.value.hint
    assert "torchtitan" in hubmerge.inspect(checkpoint).layout


def test_a_renaming_comes_before_the_table(tmp_path: Path) -> None:
    """--rename brings names that the table does not know to those that it does."""
    model = build("llama")
    state = {f"policy.{name}": tensor for name, tensor in titan_state(model, "2025").items()}
    checkpoint = saved(tmp_path, state)
    assets = save_config(tmp_path / "assets", model)
    naming = NamingOptions(rename=(r"^policy\.=>",))
    planned, _ = hubmerge.plan(checkpoint, model_assets_dir=assets, naming=naming)
    model.save_pretrained(tmp_path / "own")
    found = {t.name for shard in planned.shards for t in shard.tensors}
    assert found == tensors_in(tmp_path / "own").keys()


def test_a_family_without_a_table_is_refused(tmp_path: Path) -> None:
    """The known families are listed."""
    checkpoint = saved(tmp_path, titan_state(build("llama"), "2025"))
    assets = save_config(tmp_path / "assets", build("gemma3"))
    with pytest.raises(UsageError, match="gemma3_text") as refusal:
        hubmerge.plan(checkpoint, model_assets_dir=assets)
    assert all(kind in refusal.value.hint for kind in TABLES)


def test_names_and_heads_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    """A name that the table lacks, and head counts of another model, stop the run."""
    state = titan_state(build("llama"), "2025")
    assets = save_config(tmp_path / "assets", build("llama"))
    state["layers.0.attention.wqkv.weight"] = torch.ones(2, 2)
    checkpoint = saved(tmp_path, state)
    with pytest.raises(CheckpointError, match="wqkv"):
        hubmerge.plan(checkpoint, model_assets_dir=assets)
    naming = NamingOptions(exclude=("wqkv",))
    hubmerge.plan(checkpoint, model_assets_dir=assets, naming=naming)
    wrong = save_config(tmp_path / "wrong", build("llama", num_attention_heads=32))
    with pytest.raises(CheckpointError, match="not 32 heads"):
        hubmerge.plan(checkpoint, model_assets_dir=wrong, naming=naming)


@pytest.mark.parametrize("prefix", ["model.", ""])
def test_flame_keeps_transformers_names(prefix: str, tmp_path: Path) -> None:
    """flame trains transformers' models in torchtitan's folders: nothing is permuted."""
    model = build("llama")
    state = {"model": model.state_dict()} if prefix else dict(model.state_dict())
    save(tmp_path / "exp/checkpoint/step-5", state)
    assets = save_config(tmp_path / "assets", model)
    hubmerge.convert(tmp_path / "exp", tmp_path / "out", model_assets_dir=assets, dtype="auto")
    assert torch.equal(logits(load_whole(model, tmp_path / "out")), logits(model))


def test_a_routing_bias_without_a_place_is_a_warning_unless_it_is_zero(tmp_path: Path) -> None:
    """The published model routes as the trained one, or the run says that it does not."""
    model = build("qwen3_moe")
    save_config(tmp_path / "assets", model)
    state = titan_state(model)
    key = "layers.1.moe.expert_bias"

    def warnings_of(name: str, bias: torch.Tensor) -> list[str]:
        counts = {"layers.1.moe.tokens_per_expert": torch.tensor([3.0, 1, 0, 0])}
        checkpoint = saved(tmp_path / name, state | counts | {key: bias})
        plan, _ = hubmerge.plan(checkpoint, model_assets_dir=tmp_path / "assets")
        return [warning for warning in plan.warnings if "moe" in warning]

    assert warnings_of("zero", torch.tensor([0.0, -0.0, 0.0, 0.0])) == []
    (warning,) = warnings_of("moved", torch.tensor([0.0, 0.0, 0.0, 1e-4]))
    assert key in warning
    assert "tokens_per_expert" not in warning
