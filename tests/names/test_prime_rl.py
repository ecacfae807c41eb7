"""prime-rl's own MoE classes: names and stacks, as transformers has them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import hubmerge
from hubmerge.errors import CheckpointError
from tests.names.test_architectures import load_whole, tensors_in
from tests.support.trainers.models import build, logits
from tests.support.trainers.own_classes import prime_state
from tests.support.trainers.saves import State, save, save_config

MODELS = (
    "qwen3_moe", "glm4_moe", "afmoe", "laguna", "minimax_m2", "qwen3_5_moe", "qwen3_5_moe_vision",
    "nemotron_h",
)  # fmt: skip


def saved(folder: Path, state: State) -> Path:
    """As prime-rl saves."""
    app = {"model": state, "optimizers": {"w": {"exp_avg": torch.ones(2)}}}
    return save(folder / "step_5/trainer", {"app": app})


@pytest.mark.parametrize("name", MODELS)
def test_the_loaded_model_is_prime_rls(name: str, tmp_path: Path) -> None:
    """Each model's own class gives the folder of `save_pretrained`."""
    model = build(name)
    state = prime_state(model)
    if name == "nemotron_h":
        state["model.layers.2.mlp.experts.w3"] = torch.empty(0)
    assets = save_config(tmp_path / "assets", model)
    checkpoint = saved(tmp_path, state)
    hubmerge.convert(checkpoint, tmp_path / "out", model_assets_dir=assets, dtype="auto")
    loaded = load_whole(model, tmp_path / "out")
    if not hasattr(model.config, "vision_config"):
        assert torch.equal(logits(loaded), logits(model))
    model.save_pretrained(tmp_path / "own")
    ours, theirs = tensors_in(tmp_path / "out"), tensors_in(tmp_path / "own")
    assert ours.keys() == theirs.keys()
    assert [n for n in ours if not torch.equal(ours[n], theirs[n])] == []


def test_half_of_the_experts_is_refused(tmp_path: Path) -> None:
    """A stack that is made of two is not published with one of them."""
    model = build("qwen3_moe")
    state = prime_state(model)
    del state["model.layers.1.mlp.experts.w3"]
    assets = save_config(tmp_path / "assets", model)
    with pytest.raises(CheckpointError, match=r"lacks model.layers.1.mlp.experts.w3"):
        hubmerge.plan(saved(tmp_path, state), model_assets_dir=assets)


def test_transformers_own_names_stay(tmp_path: Path) -> None:
    """prime-rl also trains transformers' classes."""
    model = build("qwen3_moe")
    assets = save_config(tmp_path / "assets", model)
    checkpoint = saved(tmp_path, dict(model.state_dict()))
    hubmerge.convert(checkpoint, tmp_path / "out", model_assets_dir=assets, dtype="auto")
    assert torch.equal(logits(load_whole(model, tmp_path / "out")), logits(model))
