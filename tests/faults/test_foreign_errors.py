"""No foreign error escapes from push and verify: raised below them, one of ours comes out."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from huggingface_hub import HfApi

import hubmerge
from tests.support.faults.foreign import (
    FOREIGN,
    FOREIGN_OF_THE_HUB,
    LIBRARIES,
    each_class,
    one_of,
    raising,
)
from tests.support.push.command import run_here

pytest_plugins = ["tests.support.push.plugin"]

REPO = "alice/foreign"
ALL = [*FOREIGN, *FOREIGN_OF_THE_HUB]

Call = Callable[[], object]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights for two shards."""
    folder = tmp_path_factory.mktemp("foreign") / "checkpoint"
    weights = {f"model.layers.{i}.weight": torch.ones(16, 40) * i for i in range(3)}
    dcp.save({"model": weights}, checkpoint_id=folder, no_dist=True)
    return folder


@contextmanager
def raised_at(place: str, error: BaseException) -> Iterator[list[None]]:
    """``module:name`` raises; the list has one entry for each time that it did."""
    module, _, name = place.partition(":")
    *owners, attribute = name.split(".")
    owner = functools.reduce(getattr, owners, importlib.import_module(module))
    fail, reached = raising(error), []

    def count(*args: object, **options: object) -> object:
        reached.append(None)
        return fail(*args, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, attribute, count)
        yield reached


def assert_only_ours(call: Call, place: str, errors: list[BaseException]) -> None:
    """Each error, raised at this place, ends the call as one of ours with a documented code."""
    for error in errors:
        with raised_at(place, error) as reached, pytest.raises(hubmerge.HubmergeError) as raised:
            call()
        assert reached, f"{place} is not called"
        assert str(raised.value)
        assert raised.value.exit_code in range(1, 10)


@pytest.mark.parametrize("library", LIBRARIES, ids=lambda module: module.__name__)
def test_each_class_of_a_library(library: object, checkpoint: Path, tmp_path: Path) -> None:
    """Every class of errors that torch, safetensors, zipfile, the Hub's libraries have."""
    errors = [one_of(kind) for kind in each_class(library)]
    assert errors
    calls: dict[str, list[Call]] = {
        "hubmerge.api:locate": [lambda: hubmerge.inspect(checkpoint)],
        "hubmerge.api:prepare": [
            lambda: hubmerge.convert(checkpoint, tmp_path / "never"),
            lambda: hubmerge.push(checkpoint, REPO, no_config=True),
            lambda: hubmerge.verify(checkpoint, save_dir=tmp_path),
        ],
        "hubmerge.api:Hub.head": [lambda: hubmerge.verify(checkpoint, repo_id=REPO)],
    }
    for place, of_place in calls.items():
        for call in of_place:
            assert_only_ours(call, place, errors)


PUSH_PLACES = [
    *(f"huggingface_hub:HfApi.{name}" for name in (
        "repo_info", "auth_check", "list_repo_refs", "list_repo_tree",
        "preupload_lfs_files", "create_commit",
    )),
    "hubmerge.publish.preflight:fingerprint", "hubmerge.publish.pipeline:write_shard",
    "hubmerge.conversion.slabs:cast", "hubmerge.conversion.shard_writer:_Output.write",
]  # fmt: skip


@pytest.mark.parametrize("place", PUSH_PLACES)
def test_from_a_push(place: str, api: HfApi, naps: list[float], checkpoint: Path) -> None:
    """Raised by the Hub's client, and from our own threads: the branch stays as it was."""
    api.create_repo(REPO)
    assert_only_ours(
        lambda: hubmerge.push(checkpoint, REPO, shard_size=3000, no_config=True), place, ALL
    )
    assert len(api.list_repo_commits(REPO)) == 1


VERIFY_PLACES = [
    "huggingface_hub:HfApi.list_repo_commits", "huggingface_hub:HfApi.list_repo_tree",
    "hubmerge.verification:recalled_options", "hubmerge.verification:newest_record",
    "hubmerge.verification:hash_shard", "hubmerge.conversion.slabs:DataFiles",
    "hubmerge.conversion.shard_writer:TensorReader",
]  # fmt: skip


def test_from_a_verification(
    api: HfApi, naps: list[float], checkpoint: Path, tmp_path: Path
) -> None:
    """Of a repository, and of a folder."""
    hubmerge.push(checkpoint, REPO, shard_size=3000, no_config=True)
    for place in VERIFY_PLACES:
        assert_only_ours(lambda: hubmerge.verify(checkpoint, repo_id=REPO), place, ALL)
    hubmerge.convert(checkpoint, tmp_path / "out", shard_size=3000)
    for place in ("hubmerge.api:read_record", "hubmerge.verification:hash_shard"):
        assert_only_ours(lambda: hubmerge.verify(checkpoint, save_dir=tmp_path / "out"), place, ALL)


@pytest.mark.parametrize("error", FOREIGN_OF_THE_HUB[:3] + FOREIGN[-2:], ids=repr)
def test_the_command_shows_no_traceback(
    error: BaseException, api: HfApi, naps: list[float], places: Path, checkpoint: Path
) -> None:
    """An error and a hint, and a documented exit code."""
    with raised_at("huggingface_hub:HfApi.preupload_lfs_files", error):
        argv = ("--repo-id", REPO, "--load-dir", str(checkpoint), "--no-config", "--quiet")
        done = run_here("push", *argv)
    assert done.code in range(1, 10)
    assert "Error: " in done.err
    assert "Traceback" not in done.err
