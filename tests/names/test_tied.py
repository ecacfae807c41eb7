"""Tied weights: one name of the two is published, the one that loaders look for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import hubmerge
from hubmerge.errors import CheckpointError
from hubmerge.names.options import NamingOptions
from tests.support.trainers.models import build
from tests.support.trainers.saves import State, save, save_config

HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"


def written(folder: Path) -> State:
    """Return all tensors of a model folder."""
    return {n: t for path in folder.glob("*.safetensors") for n, t in load_file(path).items()}


def tied_state() -> State:
    """A tied model's state dict with both names, each in memory of its own."""
    return {name: tensor.clone() for name, tensor in build("gemma3").state_dict().items()}


@pytest.mark.parametrize("change", ["equal", "differs", "last element", "other dtype"])
def test_a_tied_head(change: str, tmp_path: Path) -> None:
    """Dropped where its bytes are the embedding's; one that differs stops the run."""
    state = tied_state()
    if change == "differs":
        state[HEAD] = torch.randn_like(state[HEAD])
    elif change == "last element":
        state[HEAD][-1, -1] += 1
    elif change == "other dtype":
        state[HEAD] = state[HEAD].double()
    checkpoint = save(tmp_path / "checkpoint", {"model": state})
    assets = save_config(tmp_path / "assets", build("gemma3"))
    if change != "equal":
        with pytest.raises(CheckpointError, match="tied in the config, but they differ"):
            hubmerge.convert(checkpoint, tmp_path / "out", model_assets_dir=assets)
        return
    result = hubmerge.convert(checkpoint, tmp_path / "out", model_assets_dir=assets)
    assert HEAD not in written(tmp_path / "out")
    assert {d["key"]: d["reason"] for d in result.dropped} == {
        f"model.{HEAD}": f"tied to {EMBEDDING} and equal to it"
    }


def test_an_untied_head_is_kept(tmp_path: Path) -> None:
    """Equal bytes alone are no reason: the config does not tie."""
    model = build("llama")
    state = {n: t.clone() for n, t in model.state_dict().items()}
    state[HEAD] = state[EMBEDDING].clone()
    checkpoint = save(tmp_path / "checkpoint", {"model": state})
    assets = save_config(tmp_path / "assets", model)
    hubmerge.convert(checkpoint, tmp_path / "out", model_assets_dir=assets)
    assert written(tmp_path / "out").keys() == state.keys()


def test_a_tied_head_follows_the_base_model(tmp_path: Path) -> None:
    """Without a config, a base model that has no head says that an equal one is not wanted."""
    state = tied_state()
    base = tmp_path / "base"
    base.mkdir()
    save_file({n: t for n, t in state.items() if n != HEAD}, base / "model.safetensors")
    checkpoint = save(tmp_path / "checkpoint", {"model": state})
    naming = NamingOptions(base_model=str(base))
    hubmerge.convert(checkpoint, tmp_path / "out", naming=naming)
    assert written(tmp_path / "out").keys() == state.keys() - {HEAD}


def test_the_hint_is_not_to_lose_one(tmp_path: Path) -> None:
    """Two matrices that were trained apart can both be kept; none is to be left out."""
    state = tied_state()
    state[HEAD] += 1
    checkpoint = save(tmp_path / "checkpoint", {"model": state})
    assets = save_config(tmp_path / "assets", build("gemma3"))
    with pytest.raises(CheckpointError) as refusal:
        hubmerge.plan(checkpoint, model_assets_dir=assets)
    assert '"tie_word_embeddings": false' in refusal.value.hint
    assert "exclude" not in refusal.value.hint


def test_only_the_head_is_stored(tmp_path: Path) -> None:
    """A tied model's matrix gets the embedding's name: loaders look for no other."""
    state = {name: tensor for name, tensor in tied_state().items() if name != EMBEDDING}
    checkpoint = save(tmp_path / "checkpoint", {"model": state})
    assets = save_config(tmp_path / "assets", build("gemma3"))
    hubmerge.convert(checkpoint, tmp_path / "out", model_assets_dir=assets, dtype="auto")
    found = written(tmp_path / "out")
    assert HEAD not in found
    assert torch.equal(found[EMBEDDING], state[HEAD])


def test_an_empty_head_is_none(tmp_path: Path) -> None:
    """FSDP leaves a tied head with shape (0,): it differs from nothing."""
    checkpoint = save(tmp_path / "c", {"model": tied_state() | {HEAD: torch.empty(0)}})
    assets = save_config(tmp_path / "assets", build("gemma3"))
    planned, _ = hubmerge.plan(checkpoint, model_assets_dir=assets)
    assert HEAD not in {tensor.name for shard in planned.shards for tensor in shard.tensors}


def flan_t5() -> Any:
    """Return a T5 whose head is a matrix of its own."""
    from transformers import T5Config, T5ForConditionalGeneration

    sizes = {"vocab_size": 40, "d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 1}
    config = T5Config(**sizes, num_heads=2, num_decoder_layers=1, tie_word_embeddings=False)
    return T5ForConditionalGeneration(config)


@pytest.mark.parametrize("is_equal", [False, True])
def test_a_config_that_does_not_tie_is_believed(is_equal: bool, tmp_path: Path) -> None:
    """transformers lists a T5's head as tied all the same; its shared embeddings always are."""
    model = flan_t5()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state[HEAD] = state["shared.weight"].clone() if is_equal else torch.randn(40, 16)
    checkpoint = save(tmp_path / "checkpoint", {"model": state})
    assets = save_config(tmp_path / "assets", model)
    config = json.loads((assets / "config.json").read_text()) | {"tie_word_embeddings": False}
    (assets / "config.json").write_text(json.dumps(config))
    hubmerge.convert(checkpoint, tmp_path / "out", model_assets_dir=assets, dtype="auto")
    found = written(tmp_path / "out")
    assert torch.equal(found[HEAD], state[HEAD])
    assert "encoder.embed_tokens.weight" not in found
    state["encoder.embed_tokens.weight"] += 1
    checkpoint = save(tmp_path / "apart", {"model": state})
    with pytest.raises(CheckpointError, match="they differ") as refusal:
        hubmerge.plan(checkpoint, model_assets_dir=assets)
    assert "tie_word_embeddings" not in refusal.value.hint
