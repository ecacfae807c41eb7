"""Fixtures of the tests of push; load with ``pytest_plugins = ["tests.support.push.plugin"]``.

The tests run the command in this process (`tests.support.push.command`), and in one of its own
(`tests.support.push.driver`) where the process is what is tested.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import HfApi

from tests.support.fake_hub import Hub
from tests.support.push import models
from tests.support.push.command import REPO, Done, run_here
from tests.support.push.models import Model

pytest_plugins = ["tests.support.fake_hub.plugin"]


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """A tiny Llama, in four shards."""
    return models.llama(tmp_path_factory.mktemp("model"), seed=7)


@pytest.fixture(scope="session")
def other_model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """Another step of a smaller one, in another number of shards."""
    return models.llama(tmp_path_factory.mktemp("other"), seed=3, layers=1)


@pytest.fixture
def naps(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long hubmerge and huggingface_hub would have slept before retries; nobody sleeps."""
    taken: list[float] = []
    clock = type("Clock", (), {"sleep": staticmethod(taken.append)})
    monkeypatch.setattr(importlib.import_module("huggingface_hub.utils._http"), "time", clock)
    monkeypatch.setattr("hubmerge.publish.hub.sleep", taken.append)
    return taken


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for temporary files of this test alone, where the command stages by default."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    return folder


@pytest.fixture
def push(
    api: HfApi,
    naps: list[float],
    places: Path,
    model: Model,
) -> Callable[..., Done]:
    """Push a model to `REPO`; afterwards nothing may be left on this machine's disk."""

    def run(*more: str, of: Model = model, repo_id: str = REPO, **options: Any) -> Done:
        done = run_here("push", "--repo-id", repo_id, *of.argv(*more, **options))
        assert list(places.iterdir()) == []
        return done

    return run


@pytest.fixture
def old_model(hub: Hub, push: Callable[..., Done], other_model: Model) -> Iterator[Model]:
    """The repo exists and holds the other model, in two shards."""
    assert push("--quiet", of=other_model).code == 0
    hub.log.clear()
    return other_model
