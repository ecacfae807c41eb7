"""Each architecture comes out as `save_pretrained` would have written it, and loads whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import hubmerge
from hubmerge.names.architecture import UnknownArchitectureError, check_module_counts
from tests.support.trainers.models import ARCHITECTURES, build, logits
from tests.support.trainers.saves import save_config, save_model

KINDS = ("missing_keys", "unexpected_keys", "mismatched_keys")


def tensors_in(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of a model folder."""
    return {
        name: tensor
        for path in folder.glob("*.safetensors")
        for name, tensor in load_file(path).items()
    }


def load_whole(model: Any, folder: Path) -> Any:
    """`from_pretrained` of the model's class, which must neither miss a key nor have one left."""
    loaded, info = type(model).from_pretrained(folder, output_loading_info=True)
    assert {kind: info[kind] for kind in KINDS if info[kind]} == {}
    return loaded.eval()


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_loaded_model_is_the_trained_one(name: str, tmp_path: Path) -> None:
    """Every logit is equal, and names, shapes and bytes are those that `save_pretrained` writes."""
    model = build(name)
    assets = save_config(tmp_path / "assets", model)
    checkpoint = save_model(tmp_path / "checkpoint", model)
    hubmerge.convert(checkpoint, tmp_path / "out", model_assets_dir=assets, dtype="auto")
    assert torch.equal(logits(load_whole(model, tmp_path / "out")), logits(model))
    model.save_pretrained(tmp_path / "own")
    ours, theirs = tensors_in(tmp_path / "out"), tensors_in(tmp_path / "own")
    assert ours.keys() == theirs.keys()
    assert [n for n in ours if not torch.equal(ours[n], theirs[n])] == []


@pytest.mark.parametrize("name", ["qwen3_moe", "gemma3", "deepseek_v3"])
def test_sixteen_bits_give_the_same_logits(name: str, tmp_path: Path) -> None:
    """In bfloat16 the result equals the trained model cast by torch, up to what stays fp32."""
    model = build(name)
    assets = save_config(tmp_path / "assets", model)
    hubmerge.convert(save_model(tmp_path / "c", model), tmp_path / "out", model_assets_dir=assets)
    loaded = load_whole(model, tmp_path / "out")
    assert loaded.dtype == torch.bfloat16
    model.save_pretrained(tmp_path / "own")
    expected = load_whole_as(model, tmp_path / "own", torch.bfloat16)
    assert torch.equal(logits(loaded), logits(expected))


def load_whole_as(model: Any, folder: Path, dtype: torch.dtype) -> Any:
    """The model of a folder, cast by transformers while it loads."""
    return type(model).from_pretrained(folder, dtype=dtype).eval()


def test_another_model_gives_other_logits() -> None:
    """The comparison can fail: a second random model says something else."""
    one = logits(build("llama"))
    torch.manual_seed(1)
    other = ARCHITECTURES["llama"]().eval()
    assert not torch.allclose(one, logits(other), atol=1e-3)


@pytest.mark.parametrize("name", ["num_hidden_layers", "n_routed_experts", "text_config"])
def test_a_config_without_end_is_not_built(name: str) -> None:
    """A million layers would take all memory and all time; what is merely large is none of them."""
    value: Any = {"num_hidden_layers": 10**9} if name == "text_config" else 10**9
    with pytest.raises(UnknownArchitectureError, match="1,000,000,000"):
        check_module_counts({"shared_expert_intermediate_size": 20_480, name: value})
    check_module_counts({"shared_expert_intermediate_size": 20_480, "block_size": 131_072})
