"""An adapter is held against its base model, by PEFT or without it, before anything is written."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import hubmerge
from hubmerge.errors import CheckpointError
from hubmerge.names.options import NamingOptions
from tests.support.trainers.adapters import base, pairs
from tests.support.trainers.saves import State, save, save_config

ROOT = "base_model.model."
CONFIG = {"peft_type": "LORA", "r": 4, "target_modules": ["q_proj"], "layers_to_transform": [0]}


@pytest.fixture(scope="module")
def base_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the base model's config."""
    return save_config(tmp_path_factory.mktemp("base"), base())


@pytest.fixture(params=["peft", "no_peft"])
def peft(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether PEFT is installed: it need not be."""
    if request.param == "no_peft":
        monkeypatch.setitem(sys.modules, "peft", None)
    return str(request.param) == "peft"


def told(folder: Path, state: State, base_dir: Path | None, **config: Any) -> list[str]:
    """What is said of an adapter when it is planned."""
    checkpoint = save(folder / "c", {"model": state})
    (checkpoint / "adapter_config.json").write_text(json.dumps(CONFIG | config))
    naming = NamingOptions(base_model=None if base_dir is None else str(base_dir))
    return list(hubmerge.plan(checkpoint, naming=naming)[0].warnings)


def test_an_adapter_that_fits(peft: bool, base_dir: Path, tmp_path: Path) -> None:
    """Nothing is said, but that PEFT is not there to be asked."""
    warnings = told(tmp_path, pairs(), base_dir)
    assert [w for w in warnings if "it is not installed" not in w] == []
    assert len(warnings) == (not peft)


def test_names_and_shapes_that_do_not_fit(peft: bool, base_dir: Path, tmp_path: Path) -> None:
    """PEFT would raise, or load the adapter in part with no more than a warning."""
    renamed = {name.replace("q_proj", "wq"): tensor for name, tensor in pairs().items()}
    with pytest.raises(CheckpointError, match=r"2 unexpected: .*wq\.lora_A"):
        told(tmp_path / "unexpected", pairs() | renamed, base_dir)
    with pytest.raises(
        CheckpointError, match=r"lora_A.weight is \(4, 31\), the model has \(4, 32\)"
    ):
        told(tmp_path / "shape", pairs(A=torch.ones(4, 31)), base_dir)


def test_what_is_missing(base_dir: Path, tmp_path: Path) -> None:
    """Layers that the config adapts and the checkpoint lacks would stay as the base has them."""
    with pytest.raises(CheckpointError, match=r"layers\.1\.self_attn\.q_proj\.lora_A"):
        told(tmp_path / "layer", pairs(), base_dir, layers_to_transform=None)
    with pytest.raises(CheckpointError, match=r"lm_head\.weight"):
        told(tmp_path / "module", pairs(), base_dir, modules_to_save=["lm_head"])


@pytest.mark.parametrize("rows", [64, 70])
def test_rows_that_the_base_has_not(rows: int, peft: bool, base_dir: Path, tmp_path: Path) -> None:
    """PEFT cannot load them over a smaller embedding: that is said, with what helps."""
    name = f"{ROOT}model.embed_tokens.modules_to_save.default.weight"
    state = pairs() | {name: torch.ones(rows, 32)}
    warnings = told(tmp_path, state, base_dir, modules_to_save=["embed_tokens"])
    assert any(f"resize_token_embeddings({rows})" in w for w in warnings) == (rows == 70)


def test_tokens_that_the_base_has_not(base_dir: Path, tmp_path: Path) -> None:
    """PEFT would fail with an index out of range."""
    name = f"{ROOT}model.embed_tokens.token_adapter.trainable_tokens_delta.default"
    state = pairs() | {name: torch.ones(2, 32)}
    [warning] = told(tmp_path, state, base_dir, trainable_token_indices=[3, 64])
    assert "trains token 64" in warning


def test_without_the_bases_config(tmp_path: Path) -> None:
    """One warning says that nothing was checked, and what helps; `--no-check-model` asks for it."""
    [warning] = told(tmp_path, pairs(), None)
    assert "--base-model" in warning
    naming = NamingOptions(check_model=False)
    assert hubmerge.plan(tmp_path / "c", naming=naming)[0].warnings == ()


def test_a_base_that_transformers_does_not_know(tmp_path: Path) -> None:
    """No verdict comes of that; one warning says it."""
    config = {"architectures": ["OwnForCausalLM"], "model_type": "own"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    [warning] = told(tmp_path, pairs(), tmp_path)
    assert "transformers cannot build" in warning


@pytest.mark.parametrize(
    "config",
    [
        {"megatron_config": {"a": 1}, "megatron_core": "stranger"},
        {"layer_replication": [[0, 10**9]]},
        {"r": 10**12},
        {"kasa_config": {"a": 1}},
        {"target_modules": "("},
        {"loftq_config": {"a": 1}, "init_lora_weights": "loftq", "revision": "x", "new_field": 1},
    ],
)  # fmt: skip
def test_a_config_that_is_not_to_be_trusted(
    config: dict[str, Any], base_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is imported, opened or allocated by it; if PEFT cannot be asked, shapes are."""
    (tmp_path / "stranger.py").write_text("raise SystemExit")
    monkeypatch.syspath_prepend(tmp_path)
    warnings = told(tmp_path, pairs(), base_dir, **config)
    assert "stranger" not in sys.modules
    assert len(warnings) == (not config.keys() & {"loftq_config", "megatron_core"})
