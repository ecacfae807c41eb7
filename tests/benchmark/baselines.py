"""What hubmerge is measured against, each for a fresh process; prints one JSON object.

python -m tests.benchmark.baselines old LOAD_DIR SAVE_DIR
python -m tests.benchmark.baselines torch_save LOAD_DIR SAVE_DIR
python -m tests.benchmark.baselines floor LOAD_DIR SAVE_DIR OUTPUT_BYTES
python -m tests.benchmark.baselines unpickle LOAD_DIR
python -m tests.benchmark.baselines import_torch
python -m tests.benchmark.baselines import_transformers
"""

from __future__ import annotations

import gc
import json
import os
import pickle
import sys
import time
import warnings
from pathlib import Path

SHARD_BYTES = 2_000_000_000
BLOCK_BYTES = 1 << 20


def old(load_dir: Path, save_dir: Path) -> dict[str, float]:
    """(b) The old script: for each shard `dcp.load` of its keys, cast, clone, `save_file`."""
    from torch.distributed.checkpoint import FileSystemReader

    from tests.support.oracle import INDEX_NAME, assign_shards, index_bytes, shard_filenames

    warnings.simplefilter("ignore")
    started = time.perf_counter()
    entries = FileSystemReader(load_dir).read_metadata().state_dict_metadata
    sizes = {key: 2 * entry.size.numel() for key, entry in entries.items() if key[:6] == "model."}  # type: ignore[union-attr]
    shards = assign_shards(sizes, SHARD_BYTES)
    files = shard_filenames(len(shards))
    save_dir.mkdir()
    for file, keys in zip(files, shards, strict=True):
        _old_shard(load_dir, save_dir / file, keys)
        gc.collect()
    if len(shards) > 1:
        pairs = zip(files, shards, strict=True)
        weight_map = {key.removeprefix("model."): file for file, keys in pairs for key in keys}
        total = sum(sizes.values())
        (save_dir / INDEX_NAME).write_bytes(index_bytes(weight_map, total, total // 2))
    return {"seconds": time.perf_counter() - started}


def _old_shard(load_dir: Path, path: Path, keys: list[str]) -> None:
    import torch
    import torch.distributed.checkpoint as dcp
    from safetensors.torch import save_file
    from torch.distributed.checkpoint import FileSystemReader

    entries = FileSystemReader(load_dir).read_metadata().state_dict_metadata
    state = {
        key: torch.empty(entries[key].size, dtype=entries[key].properties.dtype)  # type: ignore[union-attr]
        for key in keys
    }
    dcp.load(state, storage_reader=FileSystemReader(load_dir), no_dist=True)
    tensors = {
        key.removeprefix("model."): tensor.to(torch.bfloat16).clone()
        for key, tensor in state.items()
    }
    save_file(tensors, path, metadata={"format": "pt"})


def torch_save(load_dir: Path, save_dir: Path) -> dict[str, float]:
    """(c) torch's own converter to one `torch.save` file."""
    from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

    warnings.simplefilter("ignore")
    started = time.perf_counter()
    save_dir.mkdir()
    dcp_to_torch_save(load_dir, save_dir / "model.pt")
    return {"seconds": time.perf_counter() - started}


def floor(load_dir: Path, save_dir: Path, output_bytes: int) -> dict[str, float]:
    """(d) Only the I/O: read every source byte, then write as many bytes as the output has."""
    save_dir.mkdir()
    started = time.perf_counter()
    block = bytearray(BLOCK_BYTES)
    for source in sorted(load_dir.glob("*.distcp")):
        with source.open("rb", buffering=0) as file:
            while file.readinto(block):
                pass
    read = time.perf_counter()
    _write_files(save_dir, memoryview(block), output_bytes)
    written = time.perf_counter()
    for path in save_dir.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
    synced = time.perf_counter()
    return {
        "seconds": written - started,
        "read_seconds": read - started,
        "write_seconds": written - read,
        "sync_seconds": synced - written,
    }


def _write_files(save_dir: Path, block: memoryview, output_bytes: int) -> None:
    for number, start in enumerate(range(0, output_bytes, SHARD_BYTES)):
        left = min(SHARD_BYTES, output_bytes - start)
        with (save_dir / f"{number}.bin").open("wb", buffering=0) as file:
            while left:
                left -= file.write(block[: min(left, len(block))])


def unpickle(load_dir: Path) -> dict[str, float]:
    """A bare `pickle.load` of `.metadata`, once torch is imported."""
    import torch.distributed.checkpoint  # noqa: F401  (its import is not the load's time)

    started = time.perf_counter()
    with (load_dir / ".metadata").open("rb") as file:
        metadata = pickle.load(file)
    seconds = time.perf_counter() - started
    return {"seconds": seconds, "pieces": len(metadata.storage_data)}


def import_torch() -> dict[str, float]:
    """What every conversion needs before it starts."""
    started = time.perf_counter()
    import torch  # noqa: F401

    return {"seconds": time.perf_counter() - started}


def import_transformers() -> dict[str, float]:
    """What every conversion with a config needs before it starts, to check the names."""
    started = time.perf_counter()
    from transformers import LlamaForCausalLM  # noqa: F401

    return {"seconds": time.perf_counter() - started}


def main(what: str, arguments: list[str]) -> dict[str, float]:
    """Run one baseline."""
    paths = [Path(argument) for argument in arguments[:2]]
    match what:
        case "old":
            return old(*paths)
        case "torch_save":
            return torch_save(*paths)
        case "floor":
            return floor(paths[0], paths[1], int(arguments[2]))
        case "unpickle":
            return unpickle(*paths)
        case "import_torch":
            return import_torch()
        case "import_transformers":
            return import_transformers()
    raise SystemExit(f"unknown baseline {what!r}")


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], sys.argv[2:])))
