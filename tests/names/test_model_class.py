"""A class that transformers does not have is looked for; what stays unknown is said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import hubmerge
from hubmerge.errors import CheckpointError
from hubmerge.names.model_class import related_classes
from hubmerge.planning.plan import Plan
from tests.support.trainers.models import _TEXT, build
from tests.support.trainers.saves import State, save, save_config, save_model


def assets_of(folder: Path, model: Any, **changes: Any) -> Path:
    """The model's config, with other entries; None takes one out."""
    path = save_config(folder, model) / "config.json"
    config = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: v for k, v in config.items() if v is not None}))
    return folder


def planned(checkpoint: Path, assets: Path, **options: Any) -> Plan:
    """The plan alone."""
    return hubmerge.plan(checkpoint, model_assets_dir=assets, **options)[0]


def names_in(plan: Plan) -> set[str]:
    """The names that would be published."""
    return {tensor.name for shard in plan.shards for tensor in shard.tensors}


def about_class(plan: Plan) -> list[str]:
    """Warnings that concern the model's class."""
    return [w for w in plan.warnings if "does not have" in w or "code" in w]


@pytest.mark.parametrize(
    ("name", "real"),
    [
        ("Qwen3ForCausalLM", "Qwen3ForCausalLM"),
        ("FSDPQwen3ForCausalLM", "Qwen3ForCausalLM"),
        ("FSDPGPT2LMHeadModel", "GPT2LMHeadModel"),
        ("TrainableQwen3MoeForCausalLM", "Qwen3MoeForCausalLM"),
        ("Qwen3ForCausalLMWithValueHead", "Qwen3ForCausalLM"),
        ("NewForCausalLM", None),
        ("AutoTokenizer", None),
        ("", None),
    ],
)
def test_the_real_name_of_a_class(name: str, real: str | None) -> None:
    """What a trainer puts before or behind it goes; what is left must be a model's class."""
    assert next((found.__name__ for found in related_classes(name, {})), None) == real


@pytest.mark.parametrize(
    ("changes", "warns"),
    [
        ({"architectures": ["FSDPQwen3MoeForCausalLM"]}, False),
        ({"architectures": ["TrainableQwen3MoeForCausalLM"]}, True),
        ({"architectures": ["ActorForCausalLM"]}, True),
        ({"architectures": ["Policy"]}, True),
        ({"architectures": None}, False),
        ({"architectures": ["FSDPQwen3MoeForCausalLM"], "model_type": "mine"}, True),
        ({"architectures": ["MyQwen3MoeForCausalLM"], "model_type": None}, True),
    ],
)
def test_a_class_of_another_name_is_checked_as_the_real_one(
    changes: dict[str, Any], *, warns: bool, tmp_path: Path
) -> None:
    """Ties, experts and the loader's verdict are those of the class that is meant."""
    model = build("qwen3_moe", tie_word_embeddings=True)
    right = save_model(tmp_path / "right", model)
    expected = names_in(planned(right, save_config(tmp_path / "plain", model)))
    assert "lm_head.weight" not in expected
    assets = assets_of(tmp_path / "assets", model, **changes)
    plan = planned(right, assets)
    assert names_in(plan) == expected
    assert len(about_class(plan)) == warns
    state = {n: t for n, t in model.state_dict().items() if "down_proj" not in n}
    with pytest.raises(CheckpointError, match="down_proj"):
        planned(save(tmp_path / "wrong", {"model": state}), assets)


@pytest.mark.parametrize("class_name", ["LlamaForSequenceClassification", "LlamaModel"])
def test_the_names_show_the_head(class_name: str, tmp_path: Path) -> None:
    """A class that says nothing of its head is told by the tensors that the checkpoint holds."""
    import transformers

    model = getattr(transformers, class_name)(transformers.LlamaConfig(**_TEXT))
    checkpoint = save_model(tmp_path / "checkpoint", model)
    (warning,) = about_class(
        planned(checkpoint, assets_of(tmp_path / "assets", model, architectures=["Mine"]))
    )
    assert warning.endswith(f"those of {class_name}")


CODE = """
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM
import pathlib
pathlib.Path({mark!r}).touch()

class MyConfig(Qwen3MoeConfig):
    model_type = "mine"

class Base(Qwen3MoeForCausalLM):
    config_class = MyConfig

class Mine(Base):
    pass
"""


def test_code_that_is_not_run_shows_the_base_class(tmp_path: Path) -> None:
    """Its layout on the Hub is its own; what does not fit the base class is only a warning."""
    mark = tmp_path / "was-run"
    model = build("qwen3_moe")
    assets = assets_of(
        tmp_path / "assets",
        model,
        architectures=["Mine"],
        model_type="mine",
        auto_map={"AutoConfig": "mine.MyConfig", "AutoModelForCausalLM": "mine.Mine"},
    )
    (assets / "mine.py").write_text(CODE.format(mark=str(mark)))
    state: State = dict(model.state_dict())
    plan = planned(save(tmp_path / "right", {"model": state}), assets)
    assert names_in(plan) == set(state)
    (warning,) = about_class(plan)
    assert "Mine" in warning
    assert "Qwen3MoeForCausalLM" in warning
    assert "--trust-remote-code" in warning
    plan = planned(save(tmp_path / "more", {"model": state | {"gate": torch.ones(2)}}), assets)
    assert any("1 unexpected: gate" in warning for warning in plan.warnings)
    assert not mark.exists()


def test_what_stays_unknown_is_said(tmp_path: Path) -> None:
    """Neither names nor ties nor experts nor precision can be told, and the way out is named."""
    model = build("llama")
    assets = assets_of(
        tmp_path / "assets",
        model,
        architectures=["Mine"],
        model_type="mine",
        auto_map={"AutoModel": "mine.Mine"},
    )
    (warning,) = about_class(planned(save_model(tmp_path / "checkpoint", model), assets))
    assert all(word in warning for word in ("names", "tied", "experts", "float32", "--trust"))
