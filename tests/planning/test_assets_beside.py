"""Config and tokenizer beside a checkpoint are used, and trusted no more than the checkpoint."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from transformers import LlamaConfig, LlamaForCausalLM

import hubmerge
from hubmerge.errors import UnsafeInputError
from tests.support.checkpoints.cases_plain import save_alone

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 8,
    "intermediate_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "vocab_size": 16,
    "tie_word_embeddings": False,
    "dtype": "float32",
}


def save(folder: Path) -> Path:
    """Save a checkpoint of the model that `CONFIG` describes."""
    save_alone(folder, {"model": LlamaForCausalLM(LlamaConfig(**CONFIG)).state_dict()})
    return folder


def write_assets(folder: Path) -> Path:
    """Write a config, a tokenizer, code and a pickle."""
    folder.mkdir(exist_ok=True, parents=True)
    config = CONFIG | {"auto_map": {"AutoModel": "code.Model"}}
    (folder / "config.json").write_text(json.dumps(config))
    for name in ("tokenizer.json", "code.py", "spk_dict.pt"):
        (folder / name).write_text("{}")
    return folder


@pytest.mark.parametrize(
    ("checkpoint", "assets"),
    [
        ("run/checkpoint-10", "run/checkpoint-10"),
        ("run/checkpoint-10/pytorch_model_fsdp_0", "run/checkpoint-10"),
        ("run/epoch_0_step_9/model", "run/epoch_0_step_9/model/.hf_metadata"),
        ("run/checkpoints/global_step_5", "run/model_assets"),
    ],
)
def test_assets_in_the_places_of_trainers_are_used(
    checkpoint: str, assets: str, tmp_path: Path
) -> None:
    """They are named, and code and pickles are left; the dtype is that of the weights."""
    place = write_assets(tmp_path / assets)
    plan, found = hubmerge.plan(save(tmp_path / checkpoint))
    assert found.names == {"config.json", "tokenizer.json"}
    assert found.config is not None
    assert found.config["dtype"] == "bfloat16"
    assert any(str(place) in note and "tokenizer.json" in note for note in plan.notes)
    assert any("auto_map" in warning for warning in found.warnings)


def test_a_given_folder_comes_first(tmp_path: Path) -> None:
    """Nothing beside the checkpoint is looked at then."""
    run = save(tmp_path / "step-1")
    (run / "config.json").symlink_to("/etc/hostname")
    given = write_assets(tmp_path / "given")
    _, found = hubmerge.plan(run, model_assets_dir=given)
    assert "code.py" in found.names


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
@pytest.mark.parametrize("kind", ["link", "pipe", "size"])
def test_what_lies_beside_is_not_trusted(kind: str, name: str, tmp_path: Path) -> None:
    """A link that leads away, a pipe and a file too large are refused, and never read."""
    run = save(tmp_path / "step-1")
    write_assets(run)
    (run / name).unlink()
    if kind == "link":
        (tmp_path / "secret").write_text("{}")
        (run / name).symlink_to(tmp_path / "secret")
    elif kind == "pipe":
        os.mkfifo(run / name)
    else:
        with (run / name).open("wb") as file:
            file.truncate(2**40)
    with pytest.raises(UnsafeInputError):
        hubmerge.plan(run)


@pytest.mark.parametrize("text", ["no JSON", "[]", '{"learning_rate": 1}'])
def test_a_config_of_something_else_is_passed_over(text: str, tmp_path: Path) -> None:
    """A trainer's own config.json is not the model's."""
    run = save(tmp_path / "step-1")
    (run / "config.json").write_text(text)
    _, found = hubmerge.plan(run)
    assert found.config is None
