"""transformers' rules backwards: rules that compute, tensors that are missing or do not fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file

import hubmerge
from hubmerge.errors import CheckpointError
from hubmerge.names.conversion_rules import reverse_conversion, stand_ins
from tests.support.models.small import build_small
from tests.support.trainers.saves import save, save_config


@pytest.fixture(scope="module")
def nomic() -> Any:
    """A model whose attention has three projections in memory, and one on the Hub."""
    return build_small("NomicBertModel").eval()


def plan(folder: Path, model: Any, state: dict[str, Any], **options: Any) -> Any:
    """The plan for a checkpoint of this state."""
    assets = save_config(folder / "assets", model)
    checkpoint = save(folder / "checkpoint", {"model": state})
    return hubmerge.plan(checkpoint, model_assets_dir=assets, **options)[0]


def test_a_rule_that_computes_is_named() -> None:
    """Padding makes elements that no stored tensor has: the tensor stays as it is, with a word."""
    if not hasattr(transformers, "Inkling2ForCausalLM"):
        pytest.skip("transformers has no such model yet")
    model = build_small("Inkling2ForCausalLM")
    model.config.get_text_config().vocab_size += 7
    names = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    on_hub = reverse_conversion(model, stand_ins(names))
    assert len(on_hub.refused) == 1
    assert "Inkling2UnpadVocab" in on_hub.refused[0]
    assert "computes new values" in on_hub.refused[0]
    assert len(on_hub.tensors) == len(names)


def test_a_fused_tensor_is_missing_a_source(nomic: Any, tmp_path: Path) -> None:
    """What is missing is named as it is in memory; nothing is fused of two thirds."""
    state = dict(nomic.state_dict())
    name = next(name for name in state if "v_proj.weight" in name)
    del state[name]
    with pytest.raises(CheckpointError, match=name.replace(".", r"\.")):
        plan(tmp_path, nomic, state)


def test_sources_of_two_dtypes(nomic: Any, tmp_path: Path) -> None:
    """Elements of one tensor have one type: the two that differ are named."""
    state = {n: t.bfloat16() if "k_proj" in n else t for n, t in nomic.state_dict().items()}
    with pytest.raises(CheckpointError, match=r"q_proj.*k_proj.*float32 and bfloat16"):
        plan(tmp_path, nomic, state)


def test_a_fused_tensor_is_cast_like_any_other(nomic: Any, tmp_path: Path) -> None:
    """Three sources of fp32 become one tensor of bf16."""
    assets = save_config(tmp_path / "assets", nomic)
    checkpoint = save(tmp_path / "checkpoint", {"model": nomic.state_dict()})
    hubmerge.convert(checkpoint, tmp_path / "out", model_assets_dir=assets)
    nomic.save_pretrained(tmp_path / "own")
    theirs = load_file(tmp_path / "own/model.safetensors")
    ours = load_file(tmp_path / "out/model.safetensors")
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name].bfloat16()) for name in ours)


def test_sources_of_two_shapes(nomic: Any, tmp_path: Path) -> None:
    """What cannot be put together is told by the loader's check, not by an error of torch."""
    state = {n: t[:, :-1] if n.endswith("k_proj.weight") else t
             for n, t in nomic.state_dict().items()}  # fmt: skip
    with pytest.raises(CheckpointError, match=r"k_proj"):
        plan(tmp_path, nomic, state)


def test_what_save_pretrained_leaves_out_is_dropped(tmp_path: Path) -> None:
    """Marian's positions are computed from the config."""
    model = build_small("MarianMTModel")
    planned = plan(tmp_path, model, model.state_dict())
    dropped = {one.key: one.reason for one in planned.dropped}
    assert "computed from the config" in dropped["model.model.encoder.embed_positions.weight"]
