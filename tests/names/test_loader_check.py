"""The loader check judges names and shapes, on every machine alike."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import core_model_loading

import hubmerge
from hubmerge.errors import CheckpointError
from tests.support.trainers.models import build, qwen2_5_omni
from tests.support.trainers.saves import State, save, save_config, save_model

QUANTIZATIONS: dict[str, dict[str, Any]] = {
    "bitsandbytes": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
    "fp8": {"weight_block_size": [128, 128], "activation_scheme": "dynamic"},
    "compressed-tensors": {"format": "float-quantized"},
    "mxfp4": {"modules_to_not_convert": ["lm_head"]},
    "awq": {"bits": 4, "group_size": 128},
    "unheard-of": {},
}


def with_config(folder: Path, model: Any, **changes: Any) -> Path:
    """The model's config with other entries in it."""
    path = save_config(folder, model) / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return folder


def loader_warnings(checkpoint: Path, assets: Path, **options: Any) -> list[str]:
    """What is said of the check."""
    plan, _ = hubmerge.plan(checkpoint, model_assets_dir=assets, **options)
    return [w for w in plan.warnings if "could not be asked" in w or "cannot be checked" in w]


def renamed(folder: Path, model: Any) -> Path:
    """A checkpoint with a name that the model does not have."""
    state = {name.replace("norm", "nrm"): t for name, t in model.state_dict().items()}
    return save(folder, {"model": state})


def test_only_the_declared_packages_are_needed(tmp_path: Path) -> None:
    """Without accelerate, and whatever else the tests alone install, the check is made."""
    model = build("qwen3_moe")
    checkpoint = save_model(tmp_path / "right", model)
    wrong = renamed(tmp_path / "wrong", model)
    assets = with_config(
        tmp_path / "assets", model, quantization_config={"quant_method": "bitsandbytes"}
    )
    code = f"""
import sys
for package in ("accelerate", "bitsandbytes", "peft", "kernels"):
    sys.modules[package] = None
import hubmerge
plan, _ = hubmerge.plan({str(checkpoint)!r}, model_assets_dir={str(assets)!r})
assert not [w for w in plan.warnings if "asked" in w or "checked" in w], plan.warnings
try:
    hubmerge.plan({str(wrong)!r}, model_assets_dir={str(assets)!r})
except hubmerge.HubmergeError as error:
    assert "missing: model.layers.0.input_layernorm.weight" in str(error), error
else:
    raise AssertionError("a wrong name is not found")
"""
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("method", QUANTIZATIONS)
@pytest.mark.parametrize("has_gpu", [False, True])
def test_a_quantization_that_the_weights_lack_plays_no_part(
    method: str, *, has_gpu: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No quantizer is installed or asked, with a GPU or without; a wrong name is still found."""
    model = build("llama")
    section = {"quant_method": method, **QUANTIZATIONS[method]}
    assets = with_config(tmp_path / "assets", model, quantization_config=section)
    right = save_model(tmp_path / "right", model)
    wrong = renamed(tmp_path / "wrong", model)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_gpu)
    assert loader_warnings(right, assets) == []
    with pytest.raises(CheckpointError, match=r"5 missing: model.layers.0.input_layernorm.weight"):
        hubmerge.plan(wrong, model_assets_dir=assets)


def test_an_attention_that_is_not_installed_plays_no_part(tmp_path: Path) -> None:
    """How the model was run in training changes no name."""
    model = build("llama")
    assets = with_config(tmp_path / "assets", model, attn_implementation="flash_attention_2")
    assert loader_warnings(save_model(tmp_path / "checkpoint", model), assets) == []


def fp8(state: State) -> State:
    """Projections as fine-grained fp8 with their scales."""
    stored = {}
    for name, tensor in state.items():
        stored[name] = tensor
        if name.endswith("_proj.weight"):
            stored[name] = tensor.to(torch.float8_e4m3fn)
            stored[name + "_scale_inv"] = torch.ones(1, 1)
    return stored


def packed(state: State) -> State:
    """Projections as AWQ has them: other names, other shapes, integers."""
    stored = {}
    for name, tensor in state.items():
        if name.endswith("_proj.weight"):
            stem = name.removesuffix("weight")
            stored[f"{stem}qweight"] = torch.ones(tensor.shape[1], 4, dtype=torch.int32)
            stored[f"{stem}qzeros"] = torch.ones(1, 4, dtype=torch.int32)
            stored[f"{stem}scales"] = torch.ones(1, tensor.shape[0])
        else:
            stored[name] = tensor
    return stored


@pytest.mark.parametrize("stored_as", [fp8, packed])
def test_real_quantized_weights_need_no_quantizer(
    stored_as: Callable[[State], State], tmp_path: Path
) -> None:
    """What only the quantizer can tell is passed over; everything else is checked."""
    model = build("llama")
    section = {"quant_method": "fp8" if stored_as is fp8 else "awq"}
    assets = with_config(tmp_path / "assets", model, quantization_config=section)
    state = stored_as(model.state_dict())
    right = save(tmp_path / "right", {"model": state})
    assert loader_warnings(right, assets, dtype="auto") == []
    del state["model.layers.1.post_attention_layernorm.weight"]
    wrong = save(tmp_path / "wrong", {"model": state})
    with pytest.raises(CheckpointError, match=r"1 missing: model.layers.1.post_attention"):
        hubmerge.plan(wrong, model_assets_dir=assets, dtype="auto")
    plain = save_config(tmp_path / "plain", model)
    with pytest.raises(CheckpointError, match=r"unexpected: model.layers.0"):
        hubmerge.plan(right, model_assets_dir=plain, dtype="auto")


def test_nothing_is_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Qwen2.5-Omni's `from_pretrained` asks for its speakers, which say nothing of the weights."""
    asked: list[object] = []

    def refuse(*args: object, **_: object) -> None:
        asked.append(args)
        raise OSError("no network")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    model = qwen2_5_omni()
    assets = save_config(tmp_path / "assets", model)
    assert loader_warnings(save_model(tmp_path / "checkpoint", model), assets) == []
    assert asked == []


@pytest.mark.parametrize("experts", ["auto", "fused"])
def test_a_loader_that_cannot_be_asked_is_one_warning(
    experts: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Names and shapes are then compared with what `save_pretrained` writes."""

    def changed(**_: object) -> None:
        raise ImportError("of another release")

    monkeypatch.setattr(core_model_loading, "convert_and_load_state_dict_in_model", changed)
    model = build("qwen3_moe", tie_word_embeddings=True)
    assets = save_config(tmp_path / "assets", model)
    naming = hubmerge.NamingOptions(experts=experts)
    right = save_model(tmp_path / "right", model)
    (warning,) = loader_warnings(right, assets, naming=naming)
    assert "ImportError: of another release" in warning
    for change in ("name", "shape"):
        state = dict(model.state_dict())
        tensor = state.pop("model.norm.weight")
        state["model.nrm.weight" if change == "name" else "model.norm.weight"] = tensor[:5].clone()
        wrong = save(tmp_path / change, {"model": state})
        with pytest.raises(CheckpointError, match=r"model.norm.weight") as refusal:
            hubmerge.plan(wrong, model_assets_dir=assets, naming=naming)
        assert "another release" not in str(refusal.value)
