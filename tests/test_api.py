"""The functions as a script or a notebook calls them."""

from __future__ import annotations

import doctest
from pathlib import Path

import pytest
import torch
from huggingface_hub import HfApi

import hubmerge
from tests.support.checkpoints.cases_plain import save_alone
from tests.support.trainers.models import build
from tests.support.trainers.saves import save, save_config

pytest_plugins = ["tests.support.push.plugin"]


@pytest.mark.parametrize("transport", ["lfs"])
def test_the_examples_of_the_docstrings_run(
    api: HfApi, naps: list[float], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Each public function has an example, and it gives what it says."""
    model = build("llama")
    optimizer = {"step": torch.ones(1)}
    save(tmp_path / "runs/my-run", {"model": model.state_dict(), "optimizer": optimizer})
    save_config(tmp_path / "base", model)
    monkeypatch.chdir(tmp_path)
    runner = doctest.DocTestRunner()
    for name in ("inspect", "plan", "convert", "push", "verify"):
        function = getattr(hubmerge, name)
        example = (function.__doc__ or "").replace("my-org/", "alice/")
        parsed = doctest.DocTestParser().get_doctest(example, {}, name, None, None)
        assert parsed.examples, name
        assert runner.run(parsed).failed == 0, name


def test_progress_in_a_script(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """`progress=True` shows on stderr what the command shows; else nothing is printed."""
    save_alone(tmp_path / "run", {"model": {"model.a.weight": torch.ones(2, 2)}})
    hubmerge.convert(tmp_path / "run", tmp_path / "silent")
    assert capsys.readouterr() == ("", "")
    hubmerge.convert(tmp_path / "run", tmp_path / "out", progress=True)
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "converting" in shown.err
    assert "Warning: " in shown.err
