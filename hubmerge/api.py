"""What a training script imports: the whole tool as functions that never print and never exit."""

from __future__ import annotations

from pathlib import Path

from hubmerge.assets import Assets, collect_assets
from hubmerge.checkpoint.metadata import read_checkpoint
from hubmerge.convert import ConvertResult, convert_plan
from hubmerge.inspection import Inspection, inspect_checkpoint
from hubmerge.names.rules import name_weights
from hubmerge.plan import DEFAULT_SHARD_SIZE, Plan, make_plan
from hubmerge.progress import SILENT, Progress


def inspect(load_dir: str | Path) -> Inspection:
    """What the checkpoint in `load_dir` holds, without torch and without reading its data.

    Raises:
        NotACheckpointError, CheckpointError, UnsafeInputError: it cannot be described.
    """
    return inspect_checkpoint(read_checkpoint(Path(load_dir)))


def plan(
    load_dir: str | Path,
    *,
    model_assets_dir: str | Path | None = None,
    shard_size: int = DEFAULT_SHARD_SIZE,
    dtype: str = "bfloat16",
) -> tuple[Plan, Assets]:
    """What `convert` would write; no data file is read. Arguments and errors as there."""
    checkpoint = read_checkpoint(Path(load_dir))
    planned = make_plan(checkpoint, name_weights(checkpoint), dtype=dtype, shard_size=shard_size)
    assets_dir = Path(model_assets_dir) if model_assets_dir is not None else None
    return planned, collect_assets(assets_dir, planned.main_dtype)


def convert(
    load_dir: str | Path,
    save_dir: str | Path | None = None,
    *,
    model_assets_dir: str | Path | None = None,
    shard_size: int = DEFAULT_SHARD_SIZE,
    dtype: str = "bfloat16",
    overwrite: bool = False,
    progress: Progress = SILENT,
) -> ConvertResult:
    """Convert a distributed checkpoint into a folder that `from_pretrained` loads.

    Args:
        load_dir: the folder with `.metadata` and the data files; never modified, but for
            `save_dir` if that is inside it.
        save_dir: `hf_ckpt` inside `load_dir` if None.
        model_assets_dir: where config, tokenizer and the like are copied from.
        shard_size: bytes of tensors that one file holds at most.
        dtype: ``bfloat16``, ``float16``, ``float32``, or ``auto`` for as stored. Integers and
            bools are never cast.
        overwrite: replace a model that `save_dir` already holds.
        progress: told what happens; silent by default.

    Raises:
        HubmergeError: one of the tree in `hubmerge.errors`. An incomplete file never has its final
            name, and a folder never has an index before it is complete.
    """
    planned, assets = plan(
        load_dir, model_assets_dir=model_assets_dir, shard_size=shard_size, dtype=dtype
    )
    target = Path(save_dir) if save_dir is not None else Path(load_dir) / "hf_ckpt"
    return convert_plan(planned, assets, target, overwrite=overwrite, progress=progress)
