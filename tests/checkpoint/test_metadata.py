"""`.metadata` of any size: what is read is what torch has pickled."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)

from hubmerge.checkpoint.metadata import read_checkpoint


def described(tensors: int, chunks: int) -> Metadata:
    """A checkpoint of so many tensors, each stored in so many rows."""
    boxes = [ChunkStorageMetadata(torch.Size([i, 0]), torch.Size([1, 2])) for i in range(chunks)]
    entry = TensorStorageMetadata(TensorProperties(torch.float32), torch.Size([chunks, 2]), boxes)
    keys = [f"model.layers.{number}.weight" for number in range(tensors)]
    return Metadata(
        state_dict_metadata=dict.fromkeys(keys, entry),
        planner_data={key: ("model", key.removeprefix("model.")) for key in keys},
        storage_data={
            MetadataIndex(key, box.offsets): _StorageInfo("__0_0.distcp", 100 * number, 100)
            for key in keys
            for number, box in enumerate(boxes)
        },
    )


@pytest.mark.parametrize("protocol", [2, 4, 5])
@pytest.mark.parametrize(
    ("tensors", "chunks"), [(1, 1), *((1, n) for n in range(700, 1500, 50)), (1001, 1), (2001, 2)]
)
def test_a_dict_with_one_entry_more(
    tensors: int, chunks: int, protocol: int, tmp_path: Path
) -> None:
    """The pickler writes a dict in batches of 1,000, a last one alone in another way; in frames."""
    metadata = described(tensors, chunks)
    with (tmp_path / ".metadata").open("wb") as file:
        pickle.dump(metadata, file, protocol)
    read = read_checkpoint(tmp_path)
    assert list(read.tensors) == list(metadata.state_dict_metadata)
    for key, tensor in read.tensors.items():
        assert tensor.path == ("model", key.removeprefix("model."))
        assert [chunk.offset for chunk in tensor.chunks] == [100 * n for n in range(chunks)]
        assert [chunk.offsets for chunk in tensor.chunks] == [(n, 0) for n in range(chunks)]
