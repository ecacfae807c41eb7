"""Stacked experts, split as the Hub has them, fused as they are stored, and VeOmni's own stacks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import hubmerge
from hubmerge.errors import UsageError
from hubmerge.names.options import NamingOptions
from tests.support.trainers.models import build, logits
from tests.support.trainers.saves import State, save, save_config

SPLIT, FUSED = NamingOptions(experts="split"), NamingOptions(experts="fused")


def converted(folder: Path, state: State, **options: Any) -> State:
    """The tensors of the one file that comes out."""
    checkpoint = save(folder / "checkpoint", {"model": state})
    hubmerge.convert(checkpoint, folder / "out", dtype="auto", overwrite=True, **options)
    return dict(load_file(folder / "out/model.safetensors"))


def saved_by_transformers(folder: Path, model: Any) -> State:
    """What `save_pretrained` writes."""
    model.save_pretrained(folder)
    return dict(load_file(folder / "model.safetensors"))


def assert_same(ours: State, theirs: State) -> None:
    """The same names and bytes."""
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


def veomni_stacks(state: State) -> State:
    """Older VeOmni keeps gate and up projections apart, each stacked."""
    result: State = {}
    for name, tensor in state.items():
        if name.endswith("experts.gate_up_proj"):
            gate, up = tensor.chunk(2, dim=1)
            stem = name.removesuffix("gate_up_proj")
            result |= {f"{stem}gate_proj": gate.clone(), f"{stem}up_proj": up.clone()}
        else:
            result[name] = tensor
    return result


@pytest.mark.parametrize("name", ["qwen3_moe", "mixtral", "deepseek_v3"])
@pytest.mark.parametrize("suffix", ["", ".weight"])
def test_veomnis_stacks(name: str, suffix: str, tmp_path: Path) -> None:
    """Gate and up projections stored apart end in the same files as fused ones."""
    model = build(name)
    assets = save_config(tmp_path / "assets", model)
    state = veomni_stacks(model.state_dict())
    state = {n + suffix * (".experts." in n and n.endswith("_proj")): t for n, t in state.items()}
    ours = converted(tmp_path, state, model_assets_dir=assets)
    assert_same(ours, saved_by_transformers(tmp_path / "own", model))


def test_fused_on_request_loads_as_well(tmp_path: Path) -> None:
    """--experts fused keeps the stored tensors, which transformers loads to the same logits."""
    model = build("qwen3_moe")
    assets = save_config(tmp_path / "assets", model)
    ours = converted(tmp_path, model.state_dict(), model_assets_dir=assets, naming=FUSED)
    assert_same(ours, model.state_dict())
    loaded = type(model).from_pretrained(tmp_path / "out").eval()
    assert torch.equal(logits(loaded), logits(model))


def test_the_index_alone_decides(tmp_path: Path) -> None:
    """Without a config, a base model with one tensor for each expert is followed; Mixtral's too."""
    for name in ("qwen3_moe", "mixtral"):
        model = build(name)
        base = tmp_path / name
        expected = saved_by_transformers(base, model)
        (base / "config.json").unlink()
        state = dict(model.state_dict())
        if name == "mixtral":
            state = {n.replace("mlp.gate.", "block_sparse_moe.gate."): t for n, t in state.items()}
        ours = converted(base / "run", state, model_assets_dir=base)
        assert_same(ours, expected)


def test_a_fused_base_model_stays_fused(tmp_path: Path) -> None:
    """A base model whose own files are fused is followed against the architecture's habit."""
    model = build("qwen3_moe")
    assets = save_config(tmp_path / "assets", model)
    save_file(model.state_dict(), assets / "model.safetensors", metadata={"format": "pt"})
    assert_same(
        converted(tmp_path, model.state_dict(), model_assets_dir=assets), model.state_dict()
    )


def test_without_knowledge_they_stay_and_it_is_told(tmp_path: Path) -> None:
    """Nothing says how the Hub has them: stored as they are, with a warning; split on request."""
    model = build("qwen3_moe")
    state = model.state_dict()
    checkpoint = save(tmp_path / "checkpoint", {"model": state})
    planned, _ = hubmerge.plan(checkpoint)
    assert {t.name for s in planned.shards for t in s.tensors} == state.keys()
    assert any("stacked" in warning for warning in planned.warnings)
    ours = converted(tmp_path, state, naming=SPLIT)
    assert_same(ours, saved_by_transformers(tmp_path / "own", model))
    stacks = converted(tmp_path, veomni_stacks(state), naming=SPLIT)
    assert_same(stacks, ours)


def test_what_is_fused_on_the_hub_is_not_split(tmp_path: Path) -> None:
    """GPT-OSS interleaves its experts: no slice of them means anything."""
    model = build("gpt_oss")
    checkpoint = save(tmp_path / "checkpoint", {"model": model.state_dict()})
    for assets in (save_config(tmp_path / "assets", model), None):
        with pytest.raises(UsageError, match="--experts split"):
            hubmerge.plan(checkpoint, model_assets_dir=assets, naming=SPLIT)


def test_tensors_stored_apart_are_put_together(tmp_path: Path) -> None:
    """A base model has gate and up in one tensor that is stored as two."""
    model = build("qwen3_moe")
    assets = save_config(tmp_path / "assets", model)
    save_file(model.state_dict(), assets / "model.safetensors", metadata={"format": "pt"})
    ours = converted(tmp_path, veomni_stacks(model.state_dict()), model_assets_dir=assets)
    assert_same(ours, model.state_dict())


def test_experts_stay_slices_in_the_plan(tmp_path: Path) -> None:
    """Each expert's tensor is one part of the stored stack: nothing is loaded to be cut."""
    model = build("qwen3_moe")
    checkpoint = save(tmp_path / "checkpoint", {"model": model.state_dict()})
    assets = save_config(tmp_path / "assets", model)
    planned, _ = hubmerge.plan(checkpoint, model_assets_dir=assets)
    tensors = {t.name: t for s in planned.shards for t in s.tensors}
    up = tensors["model.layers.1.mlp.experts.2.up_proj.weight"]
    assert up.key == "model.model.layers.1.mlp.experts.gate_up_proj"
    assert [(p.origin, p.offset, [a.size for a in p.axes]) for p in up.parts] == [
        ((2, 16, 0), 0, [16, 32])
    ]
    assert up.shape == (16, 32)


def test_transformers_conversion_mapping_is_what_we_read() -> None:
    """The part of transformers that is read backwards still has these names and forms."""
    from transformers import conversion_mapping, core_model_loading

    model = build("qwen3_moe")
    rules = conversion_mapping.get_model_conversion_mapping(model, add_legacy=False)
    assert [type(rule).__name__ for rule in rules] == ["WeightConverter"] * 2
    operations = [[type(op).__name__ for op in rule.operations] for rule in rules]
    assert operations == [["MergeModulelist", "Concatenate"], ["MergeModulelist"]]
    assert hasattr(core_model_loading, "PrefixChange")
    reverted = core_model_loading.revert_weight_conversion(model, model.state_dict())
    assert "model.layers.0.mlp.experts.0.gate_proj.weight" in reverted
