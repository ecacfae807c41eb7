"""Carry out a plan: a checkpoint becomes a folder that `from_pretrained` loads."""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hubmerge.assets import Assets
from hubmerge.checkpoint.records import DataFiles
from hubmerge.output_folder import OutputFolder
from hubmerge.plan import INDEX_NAME, Plan
from hubmerge.progress import Progress
from hubmerge.shard_writer import WrittenShard, write_shard


@dataclass(frozen=True, slots=True)
class ConvertResult:
    """What a conversion made; sizes in bytes, dropped keys with the reason."""

    save_dir: Path
    shards: tuple[WrittenShard, ...]
    total_size: int
    total_parameters: int
    dropped: tuple[dict[str, Any], ...]
    warnings: tuple[str, ...]
    seconds: float

    def to_json(self) -> str:
        return json.dumps({**asdict(self), "save_dir": str(self.save_dir)})


def convert_plan(
    plan: Plan, assets: Assets, save_dir: Path, *, overwrite: bool, progress: Progress
) -> ConvertResult:
    """Write the planned files and the assets into `save_dir`.

    Raises:
        UsageError: the folder already holds a model and `overwrite` is false.
        NoRoomError: the disk has less room than is needed; found before the first write.
        CheckpointError, UnsafeInputError: a data file is not what the plan expects.
    """
    began = time.monotonic()
    files = DataFiles(plan.checkpoint.folder)
    files.check_sizes(plan.data_files)
    small = {asset.name: asset.read() for asset in assets.files}
    shard_bytes = sum(shard.size_bytes for shard in plan.shards)
    needed_bytes = shard_bytes + sum(map(len, small.values())) + len(plan.index or b"")
    digest = fingerprint(plan, files)
    with OutputFolder(save_dir, digest, needed_bytes, overwrite=overwrite) as folder:
        for name, content in small.items():
            folder.write(name, content)
        progress.start(shard_bytes, len(plan.shards))
        for shard in plan.shards:
            if shard.filename in folder.finished:
                progress.note(f"{shard.filename} is already there, from a run that was cut off")
                progress.converted(shard.size_bytes)
            else:
                folder.add_shard(write_shard(shard, files, save_dir, progress.converted))
        if plan.index is not None:
            folder.write(INDEX_NAME, plan.index)
        folder.complete()
        shards = tuple(folder.finished[shard.filename] for shard in plan.shards)
    return ConvertResult(
        save_dir=save_dir,
        shards=shards,
        total_size=plan.total_size,
        total_parameters=plan.total_parameters,
        dropped=tuple(dropped._asdict() for dropped in plan.dropped),
        warnings=plan.warnings + assets.warnings,
        seconds=round(time.monotonic() - began, 3),
    )


def fingerprint(plan: Plan, files: DataFiles) -> str:
    """Names the output: equal for two runs only if checkpoint, names and options are equal.

    The metadata is hashed whole; of the data files their size and a sparse sample, since a
    checkpoint is never changed in place and reading it all would cost as much as converting it.
    """
    digest = hashlib.sha256(plan.digest.encode())
    for name in sorted(plan.data_files):
        digest.update(files.sample(name))
    return digest.hexdigest()
