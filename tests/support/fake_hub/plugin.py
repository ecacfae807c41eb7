"""pytest fixtures; load with ``pytest_plugins = ["tests.support.fake_hub.plugin"]``.

A test that takes `hub` runs twice, over xet and over LFS; one that makes sense over one of them
only says ``@pytest.mark.parametrize("transport", ["lfs"])``. When a test ends, so does its Hub, and
a bug in the Hub fails the test.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from .server import Hub, Transport

if TYPE_CHECKING:
    from huggingface_hub import HfApi


@pytest.fixture(params=["xet", "lfs"])
def transport(request: pytest.FixtureRequest) -> Transport:
    """How large files travel."""
    chosen: Transport = request.param
    return chosen


@pytest.fixture
def make_hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Hub]]:
    """Start a Hub with options of the test's own: ``make_hub("lfs", part_size=1000)``."""
    hubs: list[Hub] = []

    def make(transport: Transport = "xet", **options: Any) -> Hub:
        hubs.append(Hub(tmp_path_factory.mktemp("hub"), transport, **options).start())
        return hubs[-1]

    yield make
    for hub in hubs:
        hub.stop(wait=False)
    for hub in hubs:
        hub.check()


@pytest.fixture
def hub(make_hub: Callable[..., Hub], transport: Transport) -> Hub:
    """A fresh Hub. Over LFS, files above 100 kB go in parts."""
    return make_hub(transport, part_size=100_000)


@pytest.fixture
def api(hub: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HfApi]:
    """A client in this process, logged in as `alice`, that uses the Hub's transport.

    huggingface_hub reads its environment when it is imported, so its constants are what a test can
    set. Prefer subprocesses with `hub.env()` for anything but tests of the Hub itself.
    """
    from huggingface_hub import close_session, constants

    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", hub.transport == "lfs")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "AGENT_HARNESSES_PATH", str(tmp_path / "harnesses.json"))
    for key, value in hub.env().items():
        if key.startswith("HF_"):
            monkeypatch.setenv(key, value)
    yield hub.api()
    close_session()
