"""Models of other libraries than transformers come out as those look for them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertModel

import hubmerge
from tests.support.checkpoints.cases_plain import save_alone

MODULES = [
    {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
    {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
    {"idx": 2, "name": "2", "path": "2_Dense", "type": "sentence_transformers.models.Dense"},
    {"idx": 3, "name": "3", "path": "3_Dense", "type": "sentence_transformers.models.Dense"},
]


@pytest.fixture(scope="module")
def bert() -> BertModel:
    """A tiny model of the kind that embeddings are made with."""
    return BertModel(
        BertConfig(
            hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1,
            vocab_size=16,
        )
    )  # fmt: skip


def sentence_assets(folder: Path, bert: BertModel) -> Path:
    """Write what a sentence-transformers model has beside its weights, and those of its modules."""
    bert.config.architectures = ["BertModel"]
    bert.config.save_pretrained(folder)
    (folder / "vocab.txt").write_text("word")
    (folder / "modules.json").write_text(json.dumps(MODULES))
    for module in MODULES[1:]:
        (folder / str(module["path"])).mkdir()
        (folder / str(module["path"]) / "config.json").write_text("{}")
    for module in ("2_Dense", "3_Dense"):
        save_file({"linear.weight": torch.zeros(2, 8)}, folder / module / "model.safetensors")
    return folder


@pytest.mark.parametrize("wrapper", ["auto_model", "model"])
def test_modules_come_out_in_their_folders(wrapper: str, bert: BertModel, tmp_path: Path) -> None:
    """What was trained is published, and not what the assets folder had; equal names may be."""
    state = {f"0.{wrapper}.{name}": value for name, value in bert.state_dict().items()}
    dense = {f"{n}.linear.weight": torch.full((2, 8), float(n)) for n in (2, 3)}
    save_alone(tmp_path / "run", {"model": state | dense})
    assets = sentence_assets(tmp_path / "assets", bert)
    out = tmp_path / "out"
    done = hubmerge.convert(tmp_path / "run", out, model_assets_dir=assets, dtype="auto")
    assert done.warnings == ()
    assert load_file(out / "model.safetensors").keys() == bert.state_dict().keys()
    for module, value in (("2_Dense", 2.0), ("3_Dense", 3.0)):
        (weight,) = load_file(out / module / "model.safetensors").values()
        assert torch.equal(weight, torch.full((2, 8), value))
    assert "library_name: sentence-transformers" in (out / "README.md").read_text()
    assert not hubmerge.verify(
        tmp_path / "run", save_dir=out, model_assets_dir=assets, dtype="auto"
    ).differences


def test_modules_that_were_not_trained_are_copied(bert: BertModel, tmp_path: Path) -> None:
    """A run of the model alone keeps the other modules of the assets folder, and it is said."""
    save_alone(tmp_path / "run", {"model": bert.state_dict()})
    assets = sentence_assets(tmp_path / "assets", bert)
    plan, found = hubmerge.plan(tmp_path / "run", model_assets_dir=assets)
    assert {"2_Dense/model.safetensors", "1_Pooling/config.json"} <= found.names
    assert sum("/model.safetensors is taken from" in note for note in plan.notes) == 2
    assert [shard.filename for shard in plan.shards] == ["model.safetensors"]


@pytest.mark.parametrize(
    ("lost", "warned"),
    [("2_Dense/model.safetensors", "no weights"), ("1_Pooling/config.json", "no files")],
)
def test_a_module_without_its_files_is_named(
    lost: str, warned: str, bert: BertModel, tmp_path: Path
) -> None:
    """SentenceTransformer would not load it; a Normalize has no files, and needs none."""
    save_alone(tmp_path / "run", {"model": bert.state_dict()})
    assets = sentence_assets(tmp_path / "assets", bert)
    last = {"name": "4", "path": "4_Normalize", "type": "sentence_transformers.models.Normalize"}
    (assets / "modules.json").write_text(json.dumps([*MODULES, last]))
    assert hubmerge.plan(tmp_path / "run", model_assets_dir=assets)[1].warnings == ()
    (assets / lost).unlink()
    (warning,) = hubmerge.plan(tmp_path / "run", model_assets_dir=assets)[1].warnings
    assert all(text in warning for text in (lost.partition("/")[0], warned, "SentenceTransformer"))


def unet(folder: Path, **changes: Any) -> Path:
    """Write the config of a model of diffusers."""
    folder.mkdir()
    config = {"_class_name": "UNet2DModel", "_diffusers_version": "0.35.0"} | changes
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_files_have_the_names_that_diffusers_looks_for(tmp_path: Path) -> None:
    """One file, several with an index, and the card; a second run replaces the first's files."""
    state = {f"down.{n}.weight": torch.randn(4, 4) for n in range(3)}
    save_alone(tmp_path / "run", {"model": state})
    assets, out = unet(tmp_path / "assets"), tmp_path / "out"
    hubmerge.convert(tmp_path / "run", out, model_assets_dir=assets, dtype="auto", shard_size=64)
    index = json.loads((out / "diffusion_pytorch_model.safetensors.index.json").read_text())
    assert index["weight_map"]["down.1.weight"] == (
        "diffusion_pytorch_model-00002-of-00003.safetensors"
    )
    assert "library_name: diffusers" in (out / "README.md").read_text()
    hubmerge.convert(tmp_path / "run", out, model_assets_dir=assets, dtype="auto", overwrite=True)
    names = {path.name for path in out.iterdir()} - {".hubmerge.json"}
    assert names == {"diffusion_pytorch_model.safetensors", "config.json", "README.md"}
    weights = load_file(out / "diffusion_pytorch_model.safetensors")
    assert all(torch.equal(weights[name], value) for name, value in state.items())


def test_diffusers_keeps_some_modules_in_float32(tmp_path: Path) -> None:
    """As its class says, and it loads equal; without diffusers there is a warning."""
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    model = diffusers.WanTransformer3DModel(
        patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=12, in_channels=4,
        out_channels=4, text_dim=8, freq_dim=8, ffn_dim=16, num_layers=1, rope_max_seq_len=32,
    )  # fmt: skip
    model.save_pretrained(tmp_path / "base")
    save_alone(tmp_path / "run", {"model": model.state_dict()})
    assets = tmp_path / "assets"
    model.save_config(assets)
    hubmerge.convert(tmp_path / "run", tmp_path / "out", model_assets_dir=assets)
    ours, theirs = (
        diffusers.WanTransformer3DModel.from_pretrained(
            folder, torch_dtype=torch.bfloat16
        ).state_dict()
        for folder in (tmp_path / "out", tmp_path / "base")
    )
    assert {value.dtype for value in ours.values()} == {torch.bfloat16, torch.float32}
    assert all(torch.equal(ours[name], value) for name, value in theirs.items())


def test_what_cannot_be_known_of_a_class_is_said(tmp_path: Path) -> None:
    """Without diffusers, or of a class that it lacks: which tensors stay in float32 is unknown."""
    save_alone(tmp_path / "run", {"model": {"down.0.weight": torch.randn(4, 4)}})
    assets = unet(tmp_path / "assets", _class_name="NoSuchModel")
    plan, _ = hubmerge.plan(tmp_path / "run", model_assets_dir=assets)
    assert any("--keep-dtype" in warning for warning in plan.warnings)


def test_a_policy_of_lerobot(tmp_path: Path) -> None:
    """Its own config is no fault, and nobody misses a tokenizer."""
    save_alone(tmp_path / "run", {"model": {"model.head.weight": torch.randn(4, 4)}})
    assets = tmp_path / "assets"
    assets.mkdir()
    (assets / "config.json").write_text(json.dumps({"type": "act", "output_features": {}}))
    (assets / "policy_preprocessor.json").write_text("{}")
    save_file({"mean": torch.zeros(2)}, assets / "policy_preprocessor_step_1.safetensors")
    out = tmp_path / "out"
    hubmerge.convert(tmp_path / "run", out, model_assets_dir=assets, dtype="auto")
    names = {path.name for path in assets.iterdir()} | {"model.safetensors", "README.md"}
    assert {path.name for path in out.iterdir()} == names | {".hubmerge.json"}
    assert "library_name: lerobot" in (out / "README.md").read_text()
