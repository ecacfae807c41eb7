"""Pushing a LoRA adapter: its own files, a card that says so, and nothing of a whole model lost."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp

from tests.support.fake_hub import Hub
from tests.support.push.checks import weights_of
from tests.support.push.command import REPO, Done, run_here
from tests.support.push.models import Model

pytest_plugins = ["tests.support.push.plugin"]


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    """A checkpoint of the trainable half of a PEFT model, with PEFT's config beside it."""
    folder = tmp_path / "adapter"
    layer = "base_model.model.model.layers.0.self_attn.q_proj"
    weights = {
        f"{layer}.lora_A.default.weight": torch.randn(4, 16),
        f"{layer}.lora_B.default.weight": torch.randn(16, 4),
    }
    dcp.save({"model": weights}, checkpoint_id=folder, no_dist=True)
    config = {"peft_type": "LORA", "r": 4, "target_modules": ["q_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def test_an_adapter_beside_a_model(
    hub: Hub, old_model: Model, naps: list[float], adapter: Path
) -> None:
    """The adapter is published and says what it is; the model that was there stays whole."""
    before = weights_of(hub.files(REPO, "main"))
    done = run_here("push", "--load-dir", str(adapter), "--repo-id", REPO, "--quiet")
    assert done.code == 0, done
    files = hub.files(REPO, "main")
    assert {"adapter_model.safetensors", "adapter_config.json"} <= files.keys()
    assert before.items() <= weights_of(hub.files(REPO, "main")).items()
    card = hub.read(REPO, "README.md", "main").decode()
    assert "PeftModel" in card
    assert "library_name: peft" in card


@pytest.mark.parametrize(
    ("base", "is_warned"), [("org/base", False), (None, True), ("/data/secret/base", True)]
)
def test_an_adapter_without_a_base_on_the_hub_is_a_warning(
    base: str | None, is_warned: bool, push: Callable[..., Done], adapter: Path
) -> None:
    """Who loads it by its name alone gets an error from PEFT; the person who pushes can mend it."""
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "base_model_name_or_path": base}))
    done = run_here("push", "--load-dir", str(adapter), "--repo-id", REPO)
    assert done.code == 0
    assert ("names no base model on the Hub" in done.err) == is_warned


def test_a_model_in_place_of_an_adapter(
    hub: Hub, push: Callable[..., Done], model: Model, adapter: Path
) -> None:
    """The adapter goes in the same commit: transformers would load it on top of the new model."""
    assert run_here("push", "--load-dir", str(adapter), "--repo-id", REPO, "--quiet").code == 0
    assert push("--quiet").code == 0
    assert not [name for name in hub.files(REPO, "main") if name.startswith("adapter_")]
