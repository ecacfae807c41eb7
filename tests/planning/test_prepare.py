"""From a folder to a plan: what the plan says of where it came from."""

from __future__ import annotations

from pathlib import Path

import torch

import hubmerge
from tests.support.checkpoints.cases_plain import save_alone


def test_a_folders_name_is_no_trainer(tmp_path: Path) -> None:
    """Anybody may call a folder `step-10`: it is a note, and nothing that a card would say."""
    folder = tmp_path / "step-10"
    save_alone(folder, {"model": {"layers.0.weight": torch.randn(2, 2)}})
    plan, _ = hubmerge.plan(folder)
    assert "torchtitan" not in plan.layout
    assert any("torchtitan" in note for note in plan.notes)
