"""Checkpoints of real trainers' runs on two processes come out as the model that was trained."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import hubmerge
from hubmerge.errors import HubmergeError
from hubmerge.names.options import NamingOptions
from tests.support.trainers.models import build, logits
from tests.support.trainers.runs import assets_of
from tests.support.trainers.saves import State

ROOT = Path(__file__).parents[2]
FULL = ("accelerate_state", "hf_trainer", "compiled", "lightning_module")


def launch(module: str, folder: str | Path) -> None:
    """Run a trainer in processes of its own."""
    done = subprocess.run(
        [sys.executable, "-m", module, str(folder)],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    if done.returncode:
        pytest.fail(f"{module} failed:\n{done.stdout}{done.stderr}", pytrace=False)


@functools.cache
def _runs() -> tempfile.TemporaryDirectory[str]:
    """All runs, made once for this test session."""
    folder = tempfile.TemporaryDirectory(prefix="hubmerge-trainers-")
    launch("tests.support.trainers.runs", folder.name)
    return folder


def run_folder(name: str) -> Path:
    """What this run wrote: not the checkpoint itself, the folder a user would point at."""
    return Path(_runs().name) / name


def trained(name: str) -> State:
    """The full tensors of the model at the end of the run."""
    folder = run_folder(name)
    tensors: State = torch.load(folder.with_name(f"{folder.name}.expected.pt"), weights_only=True)
    return tensors


def load(folder: Path) -> Any:
    """The model of a folder, whole."""
    from transformers import AutoModelForCausalLM

    model, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    return model.eval()


@pytest.mark.parametrize("name", FULL)
def test_a_real_run(name: str, tmp_path: Path) -> None:
    """The run's output folder is given, and the loaded model's logits are the trained model's."""
    hubmerge.convert(
        run_folder(name),
        tmp_path / "out",
        model_assets_dir=assets_of(run_folder(name)),
        dtype="auto",
    )
    loaded = load(tmp_path / "out")
    state = trained(name)
    fresh = build({"accelerate_state": "qwen3_moe"}.get(name, "llama"))
    untrained = logits(fresh)
    fresh.load_state_dict({n: t for n, t in state.items() if "inv_freq" not in n})
    assert torch.equal(logits(loaded), logits(fresh))
    assert not torch.equal(logits(loaded), untrained)


def test_a_real_lightning_run(tmp_path: Path) -> None:
    """Lightning's own Trainer and strategy, its folder given, gives the trained model's logits."""
    pytest.importorskip("lightning")
    launch("tests.support.trainers.lightning_run", tmp_path)
    assets = tmp_path / "assets"
    hubmerge.convert(tmp_path, tmp_path / "out", model_assets_dir=assets, dtype="auto")
    assert hubmerge.inspect(tmp_path).layout.startswith("Lightning; state dict under 'state_dict'")
    model = build("llama")
    model.load_state_dict(torch.load(tmp_path / "expected.pt", weights_only=True))
    assert torch.equal(logits(load(tmp_path / "out")), logits(model))


def test_the_trainers_newest_checkpoint_is_taken(tmp_path: Path) -> None:
    """The Trainer saved twice: the second is taken, never `optimizer_0` beside it."""
    inspection = hubmerge.inspect(run_folder("hf_trainer"))
    assert inspection.load_dir.endswith("checkpoint-2/pytorch_model_fsdp_0")
    assert "HF Trainer" in inspection.layout
    assert "2 complete steps" in inspection.notes[0]
    options = {"model_assets_dir": assets_of(run_folder("hf_trainer")), "dtype": "auto"}
    planned, _ = hubmerge.plan(run_folder("hf_trainer"), **options)
    assert {d.key for d in planned.dropped} == {"model.lm_head.weight"}
    with pytest.raises(HubmergeError, match="no model weights"):
        hubmerge.convert(run_folder("hf_trainer") / "checkpoint-2/optimizer_0", tmp_path / "out")


def test_compiled_names_are_really_wrapped() -> None:
    """The run has torch's wrappers in its keys, outside and inside."""
    keys = [name["key"] for name in hubmerge.inspect(run_folder("compiled")).names]
    assert all(key.startswith("model._orig_mod.") for key in keys)
    assert any(".layers.0._orig_mod." in key for key in keys)


def adapter_logits(base: Any, folder: Path) -> torch.Tensor:
    """What the base model says with the adapter of this folder; PEFT only warns of missing keys."""
    from peft import PeftModel

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = PeftModel.from_pretrained(base, folder)
    assert not [w for w in caught if "missing adapter keys" in str(w.message)]
    return logits(model.eval())


@pytest.mark.parametrize("name", ["hf_trainer_peft", "peft_whole"])
def test_an_adapter(name: str, tmp_path: Path) -> None:
    """`PeftModel.from_pretrained` loads it, and the logits are the trained model's."""
    from peft import LoraConfig, get_peft_model

    folder = run_folder(name)
    hubmerge.convert(folder, tmp_path / "out", model_assets_dir=assets_of(folder), dtype="auto")
    files = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"adapter_model.safetensors", "adapter_config.json"} <= files
    assert not files & {"model.safetensors", "config.json"}
    config = LoraConfig.from_pretrained(tmp_path / "out")
    expected = get_peft_model(build("llama"), config)
    assert not torch.equal(
        logits(expected.eval()), adapter_logits(build("llama"), tmp_path / "out")
    )
    missing, unexpected = expected.load_state_dict(trained(name), strict=False)
    assert not unexpected
    assert all("original_module" in key or "base_layer" in key for key in missing)
    loaded = adapter_logits(build("llama"), tmp_path / "out")
    assert torch.allclose(loaded, logits(expected.eval()), atol=1e-6)


def test_an_adapters_names_are_pefts(tmp_path: Path) -> None:
    """The names are those of `save_pretrained`: without `.default`, DoRA's without `.weight`."""
    hubmerge.convert(run_folder("peft_whole"), tmp_path / "out")
    tensors = load_file(tmp_path / "out/adapter_model.safetensors")
    stem = "base_model.model.model.layers.0.self_attn.q_proj.lora_"
    inside = {n.removeprefix(stem) for n in tensors if n.startswith(stem)}
    assert inside == {"A.weight", "B.weight", "magnitude_vector"}
    assert {t.dtype for t in tensors.values()} == {torch.bfloat16}


def test_the_base_weights_on_request(tmp_path: Path) -> None:
    """--mode full gives the frozen model of a PEFT checkpoint, and warns what is left out."""
    naming = NamingOptions(mode="full")
    folder = run_folder("peft_whole")
    result = hubmerge.convert(
        folder, tmp_path / "out", model_assets_dir=assets_of(folder), dtype="auto", naming=naming
    )
    assert any("adapter is left out" in warning for warning in result.warnings)
    assert torch.equal(logits(load(tmp_path / "out")), logits(build("llama")))
