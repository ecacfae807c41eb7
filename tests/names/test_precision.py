"""A few float32 tensors in a checkpoint of 16 bits are not cast in silence."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import hubmerge
from hubmerge.names.options import NamingOptions
from hubmerge.planning.option_record import recalled_options, record_options
from hubmerge.planning.options import PlanOptions
from hubmerge.planning.plan import Plan
from tests.support.trainers.models import build
from tests.support.trainers.saves import save, save_config

WIDE = {"model.a.A_log", "model.a.dt_bias", "model.gate.e_score_correction_bias"}


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that was trained in bfloat16, but for three small tensors."""
    state = {f"model.layers.{i}.weight": torch.ones(8, 8).bfloat16() for i in range(3)}
    state |= {name: torch.full((3,), 1.001) for name in WIDE}
    return save(tmp_path_factory.mktemp("mixed"), {"model": state})


def dtypes(plan: Plan) -> dict[str, str]:
    """The dtype that each tensor would have."""
    return {tensor.name: tensor.dtype.name for shard in plan.shards for tensor in shard.tensors}


def wide(plan: Plan) -> set[str]:
    """The names of the tensors that would be float32."""
    return {name for name, dtype in dtypes(plan).items() if dtype == "float32"}


def about(texts: tuple[str, ...]) -> list[str]:
    """The texts that name one of the three tensors."""
    return [text for text in texts if "A_log" in text]


def test_by_default_they_keep_their_precision(mixed: Path) -> None:
    """One note says so; a warning asks for nothing that is already so."""
    plan, _ = hubmerge.plan(mixed)
    assert wide(plan) == WIDE
    (note,) = about(plan.notes)
    assert note.startswith("3 tensors are kept")
    assert all(name in note for name in (*WIDE, "--dtype bfloat16"))
    assert about(plan.warnings) == []


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_dtype_that_is_given_casts_them_and_names_them(dtype: str, mixed: Path) -> None:
    """What is lost is a warning, unless --keep-dtype keeps it."""
    plan, _ = hubmerge.plan(mixed, dtype=dtype)
    assert set(dtypes(plan).values()) == {dtype}
    (warning,) = about(plan.warnings)
    assert all(name in warning for name in WIDE)
    assert about(plan.notes) == []
    plan, _ = hubmerge.plan(mixed, dtype=dtype, naming=NamingOptions(keep_dtype=("A_log",)))
    assert wide(plan) == {"model.a.A_log"}


@pytest.mark.parametrize("dtype", ["float32", "auto"])
def test_nothing_is_said_if_nothing_is_lost(dtype: str, mixed: Path) -> None:
    """As stored, or all of it in float32."""
    plan, _ = hubmerge.plan(mixed, dtype=dtype)
    assert about((*plan.notes, *plan.warnings)) == []


def test_a_checkpoint_of_float32_is_cast_as_before(tmp_path: Path) -> None:
    """Where most is float32, a few bfloat16 tensors show nothing about the rest."""
    state = {"model.a.weight": torch.ones(8, 8), "model.A_log": torch.ones(3)}
    for name, more in {"pure": {}, "mostly": {"model.b.weight": torch.ones(9).bfloat16()}}.items():
        plan, _ = hubmerge.plan(save(tmp_path / name, {"model": state | more}))
        assert set(dtypes(plan).values()) == {"bfloat16"}
        assert about((*plan.notes, *plan.warnings)) == []


def test_a_dtype_that_is_given_goes_before_the_architecture(tmp_path: Path) -> None:
    """DeepSeek's router bias stays in float32 by default, and is cast if that is asked for."""
    model = build("deepseek_v3").bfloat16()
    assets = save_config(tmp_path / "assets", model)
    bias = "model.layers.1.mlp.gate.e_score_correction_bias"
    state = dict(model.state_dict()) | {bias: torch.full((4,), 1.001)}
    checkpoint = save(tmp_path / "checkpoint", {"model": state})
    plan, _ = hubmerge.plan(checkpoint, model_assets_dir=assets)
    assert wide(plan) == {bias}
    assert any(bias in note for note in plan.notes)
    plan, _ = hubmerge.plan(checkpoint, model_assets_dir=assets, dtype="bfloat16")
    assert wide(plan) == set()
    (warning,) = (warning for warning in plan.warnings if bias in warning)
    assert warning.startswith("1 tensor is cast")
    assert "precision for it than" in warning


@pytest.mark.parametrize("dtype", [None, "bfloat16"])
def test_the_record_of_a_push_makes_the_same_plan(dtype: str | None, mixed: Path) -> None:
    """`verify` casts what the push cast, and keeps what it kept."""
    options = PlanOptions(dtype=dtype)
    plan, _ = hubmerge.plan(mixed, dtype=dtype)
    recorded = json.loads(json.dumps(record_options(options, plan)))
    recalled = recalled_options(recorded, PlanOptions())
    again, _ = hubmerge.plan(mixed, dtype=recalled.dtype, naming=recalled.naming)
    assert dtypes(again) == dtypes(plan)
