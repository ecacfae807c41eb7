"""Carry out a plan: convert a checkpoint into a folder that `from_pretrained` loads."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hubmerge.checkpoint.data_files import DataFiles
from hubmerge.conversion.folder_record import FOLDER_RECORD, record_text
from hubmerge.conversion.output_folder import OutputFolder, check_shared, journal_shard
from hubmerge.conversion.shard_writer import WrittenShard, write_shard
from hubmerge.conversion.slabs import open_data_files
from hubmerge.errors import UsageError
from hubmerge.hf_format.other_weights import warn_of_others
from hubmerge.planning.fingerprint import fingerprint
from hubmerge.planning.plan import Plan, share_of
from hubmerge.planning.publication import Publication
from hubmerge.progress import Progress
from hubmerge.system.ranks import Ranks


@dataclass(frozen=True, slots=True)
class ConvertResult:
    """The outcome of a conversion; sizes in bytes, dropped keys with the reason."""

    save_dir: Path
    shards: tuple[WrittenShard, ...]
    total_size: int
    total_parameters: int
    dropped: tuple[dict[str, Any], ...]
    warnings: tuple[str, ...]
    seconds: float = 0.0


def convert_plan(
    publication: Publication,
    save_dir: Path,
    *,
    overwrite: bool,
    progress: Progress,
    ranks: Ranks,
) -> ConvertResult:
    """Write the shards and all small files into `save_dir`.

    Raises:
        UsageError: the folder already holds a model and `overwrite` is false, or it is the
            checkpoint's own, or not the same folder on all ranks.
        InsufficientSpaceError: the disk has too little space; raised before the first write.
        CheckpointError, UnsafeInputError: a data file is not what the plan expects.
    """
    plan = publication.plan
    _check_not_checkpoint(save_dir, plan)
    for note in plan.notes:
        progress.note(note)
    warnings = list(publication.warnings)
    files = open_data_files(plan)
    with ExitStack() as until_done:
        folder = index = None
        if ranks.rank == 0:
            small = publication.small_files()
            small[FOLDER_RECORD] = record_text(publication, small)
            index = small.pop(plan.index_name, None)
            digest = fingerprint(plan, files)
            folder = OutputFolder(save_dir, plan, digest, small, overwrite=overwrite)
            until_done.callback(folder.close)
            folder.open(progress.note)
            if others := folder.other_weights():
                warnings.append(warn_of_others(str(save_dir), others))
                progress.warn(warnings[-1])
            folder.write_small()
        finished = ranks.all_gather(dict(folder.finished) if folder else {})[0]
        if folder is None:
            check_shared(save_dir)
        written = _write_shards(
            plan, files, finished, save_dir=save_dir, progress=progress, ranks=ranks
        )
        for theirs in ranks.all_gather(written):
            finished |= theirs
        if folder is not None:
            if ranks.count > 1:
                folder.check_shards()
            if index is not None:
                folder.write(plan.index_name, index)
            folder.complete()
    return ConvertResult(
        save_dir=save_dir,
        shards=tuple(finished[shard.filename] for shard in plan.shards),
        total_size=plan.total_size,
        total_parameters=plan.total_parameters,
        dropped=tuple(dropped._asdict() for dropped in plan.dropped),
        warnings=tuple(warnings),
    )


def _check_not_checkpoint(save_dir: Path, plan: Plan) -> None:
    if save_dir.resolve() == plan.checkpoint.folder.resolve():
        raise UsageError(
            f"{save_dir}: is the checkpoint itself, which is never modified",
            "Use another --save-dir; the default is hf_ckpt inside it.",
        )


def _write_shards(
    plan: Plan,
    files: DataFiles,
    finished: dict[str, WrittenShard],
    *,
    save_dir: Path,
    progress: Progress,
    ranks: Ranks,
) -> dict[str, WrittenShard]:
    """Write this rank's share of the unfinished shards."""
    unfinished = [shard for shard in plan.shards if shard.filename not in finished]
    todo = share_of(unfinished, ranks.rank, ranks.count)
    progress.start(sum(shard.size_bytes for shard in todo), len(todo))
    for name in finished:
        progress.note(f"{name} was finished by an interrupted run")

    def on_bytes(size_bytes: int) -> None:
        ranks.check()
        progress.converted(size_bytes)

    written: dict[str, WrittenShard] = {}
    for shard in todo:
        written[shard.filename] = write_shard(shard, files, save_dir, on_bytes)
        journal_shard(save_dir, written[shard.filename])
    return written
