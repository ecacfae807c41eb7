"""A file of a checkpoint that one rank wrote is lost: never a smaller model without a word."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import hubmerge
from hubmerge.errors import CheckpointError
from tests.support.checkpoints.cases_plain import save_alone
from tests.support.checkpoints.fixtures import copy_of_checkpoint
from tests.support.trainers.models import build
from tests.support.trainers.saves import save_config

SHARD = "shard-{:05d}-model-{:05d}-of-{:05d}.safetensors"


def assert_refused(folder: Path, words: str) -> None:
    """Not converted, and nothing is written."""
    out = folder.with_name("out")
    with pytest.raises(CheckpointError, match=words):
        hubmerge.convert(folder, out)
    assert not out.exists()


@pytest.mark.parametrize("rank", [0, 1])
def test_the_metadata_of_a_rank_is_lost(rank: int, tmp_path: Path) -> None:
    """The file is named, the last one too: its data are still there."""
    folder = copy_of_checkpoint("rank_metadata_2", tmp_path)
    (folder / f"__{rank}.metadata").unlink()
    assert_refused(folder, rf"__{rank}\.metadata is missing")


def test_all_of_the_last_rank_is_lost(tmp_path: Path) -> None:
    """Metadata and data: the tensors that all ranks share have a gap."""
    folder = copy_of_checkpoint("rank_metadata_2", tmp_path)
    for path in folder.glob("__1*"):
        path.unlink()
    assert_refused(folder, "do not cover its shape")


def save_as_rank(folder: Path, rank: int) -> None:
    """Add a rank with a tensor of its own, as `use_collectives=False` does."""
    alone = folder.with_name(f"rank{rank}")
    save_alone(alone, {"model": {f"layers.{rank}.weight": torch.randn(4, 4)}})
    folder.mkdir(exist_ok=True)
    data_file = f"__{rank}_0.distcp"
    (alone / "__0_0.distcp").rename(folder / data_file)
    description = (alone / ".metadata").read_bytes()
    (folder / f"__{rank}.metadata").write_bytes(
        description.replace(b"__0_0.distcp", data_file.encode())
    )


def test_a_rank_with_tensors_of_its_own_is_lost(tmp_path: Path) -> None:
    """Of three ranks with tensors of their own, the second is lost: nothing else would tell."""
    for rank in range(3):
        save_as_rank(tmp_path / "checkpoint", rank)
    hubmerge.convert(tmp_path / "checkpoint", tmp_path / "whole")
    for path in (tmp_path / "checkpoint").glob("__1*"):
        path.unlink()
    assert_refused(tmp_path / "checkpoint", r"__1\.metadata is missing")


def test_the_first_shard_is_lost(tmp_path: Path) -> None:
    """The ranks of safetensors shards are counted from 1."""
    folder = copy_of_checkpoint("hugging_face_2", tmp_path)
    (folder / SHARD.format(1, 1, 1)).unlink()
    assert_refused(folder, "shard-00001-model-")


def test_a_part_of_the_model_is_lost(tmp_path: Path) -> None:
    """The names say how many files the model has; that one is nowhere."""
    folder = copy_of_checkpoint("hugging_face_files_2", tmp_path)
    for path in folder.glob("*-model-00002-of-00002.safetensors"):
        path.unlink()
    assert_refused(folder, r"shard-\*-model-00002-of-00002.safetensors is missing")


def test_a_part_of_one_rank_is_not_there(tmp_path: Path) -> None:
    """That may be right, or not: it is named."""
    folder = copy_of_checkpoint("hugging_face_files_2", tmp_path)
    (folder / SHARD.format(2, 2, 2)).unlink()
    notes = hubmerge.inspect(folder).notes
    assert [SHARD.format(2, 2, 2) in note for note in notes[:2]] == [False, True]


def row_shards(folder: Path, ranks: int) -> Path:
    """A small model in rows, as torch's Hugging Face writer lays them out; returns its assets."""
    folder.mkdir()
    model = build("llama")
    for rank in range(ranks):
        rows, places = {}, []
        for name, tensor in model.state_dict().items():
            size = -(-len(tensor) // ranks)
            rows[name] = tensor[rank * size : (rank + 1) * size].clone()
            offsets = [rank * size, *[0] * (tensor.dim() - 1)]
            places.append(f'"{name}": {{"saved_offsets": {offsets}}}')
        save_file(rows, folder / SHARD.format(rank + 1, 1, 1),
                  {"DCP_SHARDING_INFO": f"{{{', '.join(places)}}}"})  # fmt: skip
    return save_config(folder.with_name("assets"), model)


def test_the_last_shard_is_lost(tmp_path: Path) -> None:
    """Only a config can tell, which then does; without one, a warning says that nothing can."""
    folder = tmp_path / "checkpoint"
    assets = row_shards(folder, 2)
    whole = hubmerge.convert(folder, tmp_path / "whole", model_assets_dir=assets)
    assert any("the shards of 2 ranks" in warning for warning in whole.warnings)
    (folder / SHARD.format(2, 1, 1)).unlink()
    with pytest.raises(CheckpointError, match="file of the checkpoint is lost"):
        hubmerge.convert(folder, tmp_path / "out", model_assets_dir=assets)
    half = hubmerge.convert(folder, tmp_path / "half")
    assert half.total_parameters < whole.total_parameters
    warning = next(warning for warning in half.warnings if "the shards of 1 rank;" in warning)
    assert "only a config" in warning
    assert warning in hubmerge.inspect(folder).notes


@pytest.mark.parametrize(
    ("lost", "words"),
    [
        (["__1_0"], r"__1_0\.distcp: the data file is missing: no file of 1 of 2 ranks is here"),
        (["__0_0", "__1_0"], r"and 1 more: no file of 2 of 2 ranks is here .written on another"),
    ],
)
def test_all_lost_ranks_are_counted(lost: list[str], words: str, tmp_path: Path) -> None:
    """Half of the ranks wrote to another machine's disk: one file's name alone does not say so."""
    folder = copy_of_checkpoint("llama_fsdp_2", tmp_path)
    for name in lost:
        (folder / f"{name}.distcp").unlink()
    assert_refused(folder, words)


def test_all_lost_descriptions_are_counted(tmp_path: Path) -> None:
    """Each rank describes its own part, and some were written elsewhere."""
    for rank in range(4):
        save_as_rank(tmp_path / "saved", rank)
    for rank in (1, 3):
        (tmp_path / f"saved/__{rank}.metadata").unlink()
    assert_refused(tmp_path / "saved", r"__1\.metadata is missing \(and 1 more: 2 of 4 are here\)")
