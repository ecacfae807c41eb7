"""torchtitan's own models: names, rotary rows and stacked experts, as transformers has them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

import hubmerge
from hubmerge.errors import CheckpointError, UsageError
from hubmerge.names.options import NamingOptions
from hubmerge.names.torchtitan import FAMILIES
from tests.names.test_architectures import load_whole, tensors_in
from tests.support.trainers.models import build, logits
from tests.support.trainers.saves import State, save, save_config

# transformers' name -> torchtitan's, written down apart from the tables under test.
OLD = {
    r"model\.embed_tokens": "tok_embeddings",
    r"model\.norm": "norm",
    r"lm_head": "output",
    r"model\.(layers\.\d+)\.self_attn\.([qkv])_proj": r"\1.attention.w\2",
    r"model\.(layers\.\d+)\.self_attn\.o_proj": r"\1.attention.wo",
    r"model\.(layers\.\d+)\.self_attn\.([qk])_norm": r"\1.attention.\2_norm",
    r"model\.(layers\.\d+)\.mlp\.gate_proj": r"\1.feed_forward.w1",
    r"model\.(layers\.\d+)\.mlp\.down_proj": r"\1.feed_forward.w2",
    r"model\.(layers\.\d+)\.mlp\.up_proj": r"\1.feed_forward.w3",
    r"model\.(layers\.\d+)\.input_layernorm": r"\1.attention_norm",
    r"model\.(layers\.\d+)\.post_attention_layernorm": r"\1.ffn_norm",
    r"model\.(layers\.\d+)\.mlp\.gate": r"\1.moe.router.gate",
}
NEW = OLD | {
    r"lm_head": "lm_head",
    r"model\.(layers\.\d+)\.self_attn\.([qkv])_proj": r"\1.attention.qkv_linear.w\2",
}


def neighbours(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Rotary pairs from two halves of a head to neighbouring rows (Meta's order)."""
    rows, columns = weight.shape
    halves = weight.view(heads, 2, rows // heads // 2, columns)
    return halves.transpose(1, 2).reshape(rows, columns).contiguous()


def titan_state(model: Any, names: dict[str, str]) -> State:
    """What torchtitan would hold for this model."""
    state: State = {}
    is_llama = type(model).__name__.startswith("Llama")
    for name, tensor in model.state_dict().items():
        stem, _, leaf = name.rpartition(".")
        if is_llama and ".q_proj" in name:
            tensor = neighbours(tensor, 4)  # noqa: PLW2901
        elif is_llama and ".k_proj" in name:
            tensor = neighbours(tensor, 2)  # noqa: PLW2901
        if name.endswith("experts.gate_up_proj"):
            layer = re.findall(r"layers\.\d+", name)[0]
            w1, w3 = tensor.chunk(2, dim=1)
            state |= {f"{layer}.moe.experts.w1": w1.clone(), f"{layer}.moe.experts.w3": w3.clone()}
            state[f"{layer}.moe.expert_bias"] = torch.zeros(4)
        elif name.endswith("experts.down_proj"):
            state[f"{re.findall(r'layers.[0-9]+', name)[0]}.moe.experts.w2"] = tensor
        else:
            pattern = next(p for p in names if re.fullmatch(p, stem))
            state[re.sub(f"^{pattern}$", names[pattern], stem) + f".{leaf}"] = tensor
    return state


def saved(folder: Path, state: State) -> Path:
    """As torchtitan saves: the model flat, beside the optimizer and the rest."""
    beside = {
        "optimizer": {"state": {"tok_embeddings.weight": {"exp_avg": torch.ones(3)}}},
        "lr_scheduler": {"last": torch.ones(1)},
        "dataloader": {"rank_0": torch.ones(1)},
        "train_state": {"step": torch.tensor(5)},
    }
    return save(folder / "outputs/checkpoint/step-5", {**state, **beside})


@pytest.mark.parametrize("names", [OLD, NEW], ids=["old", "new"])
@pytest.mark.parametrize("name", ["llama", "qwen3", "qwen3_moe"])
def test_the_loaded_model_is_torchtitans(name: str, names: dict[str, str], tmp_path: Path) -> None:
    """Names of either year give the same model as transformers' own: every tensor and logit."""
    model = build(name)
    saved(tmp_path, titan_state(model, names))
    assets = save_config(tmp_path / "assets", model)
    result = hubmerge.convert(
        tmp_path / "outputs", tmp_path / "out", model_assets_dir=assets, dtype="auto"
    )
    assert torch.equal(logits(load_whole(model, tmp_path / "out")), logits(model))
    model.save_pretrained(tmp_path / "own")
    ours, theirs = tensors_in(tmp_path / "out"), tensors_in(tmp_path / "own")
    assert ours.keys() == theirs.keys()
    assert [n for n in ours if not torch.equal(ours[n], theirs[n])] == []
    reasons = {d["reason"] for d in result.dropped}
    assert {"optimizer state", "lr_scheduler state", "dataloader state"} <= reasons


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
    checkpoint = saved(tmp_path, titan_state(build("llama"), OLD))
    with pytest.raises(UsageError, match="torchtitan") as refusal:
        hubmerge.plan(checkpoint)
    assert "--model-assets-dir" in refusal.value.hint
    assert "torchtitan" in hubmerge.inspect(checkpoint).layout


def test_a_renaming_comes_before_the_table(tmp_path: Path) -> None:
    """--rename brings names that the table does not know to those that it does."""
    model = build("llama")
    state = {f"policy.{name}": tensor for name, tensor in titan_state(model, OLD).items()}
    checkpoint = saved(tmp_path, state)
    assets = save_config(tmp_path / "assets", model)
    naming = NamingOptions(rename=(r"^policy\.=>",))
    planned, _ = hubmerge.plan(checkpoint, model_assets_dir=assets, naming=naming)
    model.save_pretrained(tmp_path / "own")
    found = {t.name for shard in planned.shards for t in shard.tensors}
    assert found == tensors_in(tmp_path / "own").keys()


def test_a_family_without_a_table_is_refused(tmp_path: Path) -> None:
    """The known families are listed."""
    checkpoint = saved(tmp_path, titan_state(build("llama"), OLD))
    assets = save_config(tmp_path / "assets", build("gemma3"))
    with pytest.raises(UsageError, match="gemma3_text") as refusal:
        hubmerge.plan(checkpoint, model_assets_dir=assets)
    assert all(kind in refusal.value.hint for f in FAMILIES.values() for kind in f.model_types)


def test_names_and_heads_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    """A name that the table lacks, and head counts of another model, stop the run."""
    state = titan_state(build("llama"), OLD)
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
    state = titan_state(model, NEW)
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
