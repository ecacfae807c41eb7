"""Evaluation results go into the same commit, in the Hub's form."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml

import hubmerge
from hubmerge.errors import UsageError
from tests.support.checkpoints.cases_plain import save_alone

RESULTS = [{"dataset": {"id": "cais/hle", "task_id": "default"}, "value": 20.9}]


def test_results_are_published_in_a_file_of_their_own(tmp_path: Path) -> None:
    """JSON is YAML; what the Hub reads is what was given."""
    save_alone(tmp_path / "run", {"model": {"layers.0.weight": torch.ones(2)}})
    (tmp_path / "hle.json").write_text(json.dumps(RESULTS))
    hubmerge.convert(tmp_path / "run", tmp_path / "out", eval_results=tmp_path / "hle.json")
    published = (tmp_path / "out" / ".eval_results" / "hle.yaml").read_text()
    assert yaml.safe_load(published) == RESULTS


@pytest.mark.parametrize("text", ["{", "[]", "1", '[{"value": 1}]', "[1]", None])
def test_what_is_no_list_of_results_is_refused(text: str | None, tmp_path: Path) -> None:
    """Before anything is written."""
    save_alone(tmp_path / "run", {"model": {"layers.0.weight": torch.ones(2)}})
    if text is not None:
        (tmp_path / "hle.yaml").write_text(text)
    with pytest.raises(UsageError, match=r"hle\.yaml"):
        hubmerge.convert(tmp_path / "run", tmp_path / "out", eval_results=tmp_path / "hle.yaml")
    assert not (tmp_path / "out").exists()
