"""Checkpoints of more data files than can be open at a time."""

from __future__ import annotations

import resource
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import hubmerge
from hubmerge.checkpoint import records
from tests.checkpoints.fixtures import checkpoint_path

REPOSITORY = Path(__file__).parents[1]
RANKS = 300


def row_shards(folder: Path) -> dict[str, torch.Tensor]:
    """Two tensors of a row for each of many ranks, as torch's Hugging Face writer lays them out."""
    folder.mkdir()
    tensors = {f"{name}.weight": torch.randn(RANKS, 4) for name in "ab"}
    for rank in range(RANKS):
        rows = {name: tensor[rank : rank + 1].clone() for name, tensor in tensors.items()}
        places = ", ".join(f'"{name}": {{"saved_offsets": [{rank}, 0]}}' for name in tensors)
        save_file(rows, folder / f"shard-{rank + 1:05d}-model-00001-of-00001.safetensors",
                  {"DCP_SHARDING_INFO": f"{{{places}}}"})  # fmt: skip
    return tensors


def test_a_tensor_may_have_parts_in_more_files_than_can_be_open(tmp_path: Path) -> None:
    """With 100 descriptors for all, a tensor in 300 files is converted."""
    tensors = row_shards(tmp_path / "checkpoint")

    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    command = [sys.executable, "-m", "hubmerge", "push", "--no-push", "--dtype", "auto", "--quiet",
               "--load-dir", "checkpoint", "--save-dir", "out"]  # fmt: skip
    done = subprocess.run(
        command,
        cwd=tmp_path,
        env={"PYTHONPATH": str(REPOSITORY)},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (100, most)),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = load_file(tmp_path / "out/model.safetensors")
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensors[name]) for name in tensors)


def counted(monkeypatch: pytest.MonkeyPatch, function: str) -> Counter[str]:
    """How often `records` calls this function, by the file's name, its second argument."""
    calls: Counter[str] = Counter()
    real = getattr(records, function)

    def call(*args: Any) -> Any:
        calls[args[1]] += 1
        return real(*args)

    monkeypatch.setattr(records, function, call)
    return calls


def test_each_file_is_opened_once_where_the_system_allows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every tensor has a part in every file; none is closed between two of them."""
    row_shards(tmp_path / "checkpoint")
    if resource.getrlimit(resource.RLIMIT_NOFILE)[0] < 2 * RANKS:
        pytest.skip("so many files may not be open here")
    opened = counted(monkeypatch, "open_inside")
    hubmerge.convert(tmp_path / "checkpoint", tmp_path / "out")
    assert set(opened.values()) == {1}
    assert len(opened) == RANKS


def test_a_header_is_read_once_however_often_its_file_is_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Safetensors data files: with one file open at a time, each header is parsed once."""
    monkeypatch.setattr(records, "_most_open_files", lambda: 1)
    opened, read = counted(monkeypatch, "open_inside"), counted(monkeypatch, "read_header")
    hubmerge.convert(checkpoint_path("safetensors_records_2"), tmp_path / "out")
    assert min(opened.values()) > 2
    assert set(read.values()) == {1}
    assert read.keys() == opened.keys()
