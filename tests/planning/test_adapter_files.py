"""Where an adapter's config is found, and the files that are published with an adapter."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

import hubmerge
from hubmerge.errors import UnsafeInputError, UsageError
from hubmerge.names.options import NamingOptions
from tests.support.trainers.adapters import pairs
from tests.support.trainers.saves import save


def test_the_adapters_config_is_not_taken_from_far_away(tmp_path: Path) -> None:
    """The assets come first, and no folder above the one that was given is looked into."""
    step = tmp_path / "run/checkpoint-2"
    checkpoint = save(step / "pytorch_model_fsdp_0", {"model": pairs()})
    (tmp_path / "assets").mkdir()
    for folder in (tmp_path, tmp_path / "run", step, tmp_path / "assets"):
        content = {"peft_type": "LORA", "from": folder.name}
        (folder / "adapter_config.json").write_text(json.dumps(content))

    def taken(load_dir: Path, **options: Any) -> str | None:
        _, assets = hubmerge.plan(load_dir, **options)
        return str(json.loads(assets.files[0].read())["from"]) if assets.files else None

    assert taken(step, model_assets_dir=tmp_path / "assets") == "assets"
    assert taken(step) == taken(checkpoint) == "checkpoint-2"
    (step / "adapter_config.json").unlink()
    assert taken(step) is None
    assert taken(checkpoint) is None
    assert taken(tmp_path / "run") == "run"


@pytest.mark.parametrize("place", ["given", "checkpoint", "step", "assets", "nowhere", "wrong"])
def test_where_the_adapters_config_comes_from(place: str, tmp_path: Path) -> None:
    """Given, beside the checkpoint, or among the assets; without one there is a warning."""
    checkpoint = save(tmp_path / "run/checkpoint-2/pytorch_model_fsdp_0", {"model": pairs()})
    folder = {
        "given": tmp_path / "else", "checkpoint": checkpoint, "step": checkpoint.parent,
        "assets": tmp_path / "assets", "nowhere": tmp_path / "unseen", "wrong": tmp_path / "else",
    }[place]  # fmt: skip
    folder.mkdir(exist_ok=True)
    content = {"peft_type": "LORA"} if place != "wrong" else {"r": 4}
    (folder / "adapter_config.json").write_text(json.dumps(content))
    given = folder / "adapter_config.json" if place in ("given", "wrong") else None
    options: dict[str, Any] = {"naming": NamingOptions(adapter_config_path=given)}
    if place == "assets":
        options["model_assets_dir"] = folder
    if place == "wrong":
        with pytest.raises(UsageError, match="no peft_type"):
            hubmerge.plan(tmp_path / "run", **options)
        return
    _, assets = hubmerge.plan(tmp_path / "run", **options)
    names = [asset.name for asset in assets.files]
    assert names == ([] if place == "nowhere" else ["adapter_config.json"])
    assert any("--adapter-config-path" in w for w in assets.warnings) == (place == "nowhere")


def rank_of(load_dir: Path) -> int | None:
    """The rank that the config has that is found for a checkpoint."""
    _, assets = hubmerge.plan(load_dir)
    return json.loads(assets.files[0].read())["r"] if assets.files else None


def test_the_config_in_another_folder_of_the_same_step(tmp_path: Path) -> None:
    """VeOmni writes it beside the checkpoints' folder; that of another step is not taken."""
    for step in (5, 10, 15):
        save(tmp_path / f"checkpoints/global_step_{step}", {"model": pairs()})
        folder = tmp_path / f"global_step_{step}"
        folder.mkdir()
        (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": step}))
    (tmp_path / "global_step_15/adapter_config.json").unlink()
    (tmp_path / "global_step_15/lora_ckpt").mkdir()
    (tmp_path / "global_step_15/lora_ckpt/adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "r": 15})
    )
    assert rank_of(tmp_path) == rank_of(tmp_path / "checkpoints/global_step_15") == 15
    assert rank_of(tmp_path / "checkpoints/global_step_5") == 5


@pytest.mark.parametrize("kind", ["link", "pipe", "large"])
def test_what_lies_beside_a_checkpoint_is_not_trusted(kind: str, tmp_path: Path) -> None:
    """A link that leads away, a pipe and what is too large to be a config are refused."""
    checkpoint = save(tmp_path / "c", {"model": pairs()})
    path = checkpoint / "adapter_config.json"
    if kind == "link":
        (tmp_path / "secret.json").write_text('{"peft_type": "LORA"}')
        path.symlink_to(tmp_path / "secret.json")
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        with path.open("wb") as file:
            file.truncate(2**30)
    with pytest.raises(UnsafeInputError):
        hubmerge.plan(checkpoint)


@pytest.mark.parametrize(
    ("kind", "words"), [("LORA", "A LoRA adapter"), ("IA3", "An IA3 adapter"), ("<b>", "A PEFT")]
)
def test_the_card_says_what_the_adapter_is(kind: str, words: str, tmp_path: Path) -> None:
    """Of the kind that its config names, if that is one of PEFT's; `lora` is a tag of LoRA."""
    names = pairs() if kind != "IA3" else {"base_model.model.a.ia3_l.default": torch.ones(4, 1)}
    checkpoint = save(tmp_path / "c", {"model": names})
    (checkpoint / "adapter_config.json").write_text(json.dumps({"peft_type": kind}))
    hubmerge.convert(checkpoint, tmp_path / "out")
    card = (tmp_path / "out/README.md").read_text()
    assert words in card
    assert ("- lora" in card) == (kind == "LORA")
