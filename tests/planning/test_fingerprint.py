"""The name of an output: another for another checkpoint, the same from any machine."""

from __future__ import annotations

import pickle
import shutil
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import FileSystemWriter
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter

from hubmerge import api
from hubmerge.checkpoint.data_files import DataFiles
from hubmerge.planning.fingerprint import fingerprint

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")


def save(folder: Path, writer: str, value: float) -> Path:
    """A checkpoint in which one small tensor has this value, among others that never change."""
    frozen = {f"model.{name}.weight": torch.ones(256, 256) for name in ("a", "b", "x", "y", "z")}
    state = frozen | {"model.norm.weight": torch.full((16,), value)}
    storage = (
        HuggingFaceStorageWriter(str(folder), save_distributed=True)
        if writer == "hub"
        else FileSystemWriter(folder)
    )
    dcp.save(dict(sorted(state.items())), storage_writer=storage, no_dist=True)
    if writer == "without id":  # as torch wrote it before 2.3
        metadata = pickle.loads((folder / ".metadata").read_bytes())
        metadata.storage_meta = None
        (folder / ".metadata").write_bytes(pickle.dumps(metadata))
    return folder


def named(folder: Path) -> str:
    """The fingerprint of what this checkpoint becomes."""
    return fingerprint(api.plan(folder)[0], DataFiles(folder))


@pytest.mark.parametrize("writer", ["with id", "without id", "hub"])
def test_a_later_step_is_another_model(writer: str, tmp_path: Path) -> None:
    """Also where all but one tensor is frozen: else the older step's shards would be published."""
    names = {named(save(tmp_path / str(step), writer, 1.0 + step)) for step in range(8)}
    assert len(names) == 8


@pytest.mark.parametrize("writer", ["with id", "without id", "hub"])
def test_a_copy_is_the_same_model(writer: str, tmp_path: Path) -> None:
    """A run goes on from another machine, where paths and times are others."""
    first = save(tmp_path / "first", writer, 2.0)
    shutil.copytree(first, tmp_path / "copy", copy_function=shutil.copyfile)
    assert named(first) == named(tmp_path / "copy")
