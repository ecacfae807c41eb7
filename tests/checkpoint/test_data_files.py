"""Data files: more than can be open, some that may not be opened, and what is read how often."""

from __future__ import annotations

import errno
import os
import resource
import subprocess
import sys
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import load_file, save_file
from torch.distributed.checkpoint import FileSystemWriter
from torch.distributed.checkpoint._extension import ZStandard
from torch.distributed.checkpoint.filesystem import SerializationFormat

import hubmerge
from hubmerge.checkpoint import compressed_record, data_files, safetensors_data
from hubmerge.errors import DamagedFileError, NotACheckpointError
from tests.support.checkpoints.cases_plain import save_alone
from tests.support.checkpoints.cases_sharded import Tiled
from tests.support.checkpoints.fixtures import checkpoint_path

REPOSITORY = Path(__file__).parents[2]
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


def counted(monkeypatch: pytest.MonkeyPatch, module: Any, function: str) -> Counter[str]:
    """How often a module calls this function, by the file's name, its second argument."""
    calls: Counter[str] = Counter()
    real = getattr(module, function)

    def call(*args: Any) -> Any:
        calls[args[1]] += 1
        return real(*args)

    monkeypatch.setattr(module, function, call)
    return calls


def test_each_file_is_opened_once_where_the_system_allows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every tensor has a part in every file; none is closed between two of them."""
    row_shards(tmp_path / "checkpoint")
    if resource.getrlimit(resource.RLIMIT_NOFILE)[0] < 2 * RANKS:
        pytest.skip("so many files may not be open here")
    opened = counted(monkeypatch, data_files, "open_inside")
    hubmerge.convert(tmp_path / "checkpoint", tmp_path / "out")
    assert set(opened.values()) == {1}
    assert len(opened) == RANKS


def test_a_header_is_read_once_however_often_its_file_is_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Safetensors data files: with one file open at a time, each header is parsed once."""
    monkeypatch.setattr(data_files, "_max_open_files", lambda: 1)
    opened = counted(monkeypatch, data_files, "open_inside")
    read = counted(monkeypatch, safetensors_data, "read_header")
    hubmerge.convert(checkpoint_path("safetensors_records_2"), tmp_path / "out")
    assert min(opened.values()) > 2
    assert set(read.values()) == {1}
    assert read.keys() == opened.keys()


@pytest.mark.parametrize("number", [errno.EACCES, errno.EMFILE])
def test_what_this_user_may_not_open_is_no_damage(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The checkpoint is sound: to copy it again would change nothing."""
    save_alone(tmp_path / "c", {"model": {"model.a.weight": torch.ones(2)}})
    real = os.open

    def refuse(path: Any, *args: Any, **options: Any) -> int:
        if str(path).endswith(".distcp"):
            raise OSError(number, os.strerror(number))
        return real(path, *args, **options)

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(hubmerge.HubmergeError, match=os.strerror(number)) as refusal:
        hubmerge.convert(tmp_path / "c", tmp_path / "out")
    assert type(refusal.value) is hubmerge.HubmergeError
    assert "__0_0.distcp" in str(refusal.value)
    assert "Copy" not in refusal.value.hint


def test_a_compressed_transposed_tensor_is_decompressed_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each slab of it needs all of the record: not all of the record again for each slab."""
    tensor = torch.randn(3000, 2000).t()
    writer = FileSystemWriter(tmp_path / "c", _extensions=[ZStandard()])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.save({"model": {"model.a.weight": tensor}}, storage_writer=writer, no_dist=True)
    opened = []
    real = compressed_record._CODECS["stream.zstd/1"]
    monkeypatch.setitem(
        compressed_record._CODECS, "stream.zstd/1", lambda s: opened.append(s) or real(s)
    )
    hubmerge.convert(tmp_path / "c", tmp_path / "out", dtype="auto")
    (found,) = load_file(tmp_path / "out" / "model.safetensors").values()
    assert torch.equal(found, tensor)
    assert len(opened) <= 3


def test_parts_that_torch_has_lost_are_refused(tmp_path: Path) -> None:
    """Its safetensors files hold one part of each tensor, and the metadata of all of them."""
    whole = torch.arange(32.0).view(8, 4)
    tiled = Tiled.of(whole, [((row, 0), (2, 4)) for row in (0, 2, 4, 6)])
    save_alone(
        tmp_path / "c",
        {"model": {"model.a.weight": tiled}},
        serialization_format=SerializationFormat.SAFETENSORS,
    )
    with pytest.raises(DamagedFileError, match=r"\(6, 0\) instead of .*\(0, 0\).*model\.a\.weight"):
        hubmerge.convert(tmp_path / "c", tmp_path / "out")


def test_a_file_of_zeros_is_named_with_its_tensor(tmp_path: Path) -> None:
    """What a crash of a node leaves: the length is right."""
    save_alone(tmp_path / "c", {"model": {"model.a.weight": torch.ones(99)}})
    data = tmp_path / "c" / "__0_0.distcp"
    data.write_bytes(bytes(data.stat().st_size))
    with pytest.raises(DamagedFileError, match=r"__0_0\.distcp.*neither.*model\.a\.weight"):
        hubmerge.convert(tmp_path / "c", tmp_path / "out")


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    """Somebody points at `.metadata` itself."""
    (tmp_path / "x").write_bytes(b"")
    with pytest.raises(NotACheckpointError, match="not a folder"):
        hubmerge.inspect(tmp_path / "x")
