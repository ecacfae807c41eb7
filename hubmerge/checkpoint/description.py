"""Find the files that describe a checkpoint, and detect missing ones by name.

Each rank may have written a file of its own. A gap in their numbers shows a missing file. Without
the last one, tensors that are sharded over all ranks have a gap (`hubmerge.checkpoint.tiling`); but
safetensors shards do not record the size of the whole tensor, so there can only be a warning.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

from hubmerge.errors import CheckpointError
from hubmerge.formatting import format_list

_OTHER_MACHINE = (
    "If several machines saved it, each to its own disk, copy all their files into one folder."
)

GLOBAL_FILE = ".metadata"
_RANK_FILE = re.compile(r"__(\d+)\.metadata")
_DATA_FILE = re.compile(r"__(\d+)_\d+\.distcp")

# The rank, which torch counts from 1 here, the number of the file, and how many files there are.
_SHARD = re.compile(r"shard-(\d+)-model-(\d+)-of-(\d+)\.safetensors")


def describing_files(folder: Path) -> list[Path]:
    """Return the files in `folder` that describe a checkpoint, in the order to read them.

    Pipes and devices are included; `open_inside` refuses them.
    """
    if _is_there(folder / GLOBAL_FILE):
        return [folder / GLOBAL_FILE]
    ranked = [
        (int(match[1]), path)
        for path in folder.glob("__*.metadata")
        if (match := _RANK_FILE.fullmatch(path.name)) and _is_there(path)
    ]
    if ranked:
        return [path for _, path in sorted(ranked)]
    return sorted(folder.glob("shard-*.safetensors"))


def _is_there(path: Path) -> bool:
    return path.exists() and not path.is_dir()


def check_none_missing(folder: Path, paths: list[Path]) -> None:
    """Raise CheckpointError if the names of the `describing_files` show that one is missing."""
    ranks = {int(match[1]) for path in paths if (match := _RANK_FILE.fullmatch(path.name))}
    if ranks:
        data_ranks = {int(m[1]) for p in folder.iterdir() if (m := _DATA_FILE.fullmatch(p.name))}
        _refuse_gap(ranks, 0, max(ranks | data_ranks), "__{}.metadata")
    shards = list(_shards(paths))
    if shards:
        ranks = {rank for rank, _, _ in shards}
        parts = {part for _, part, _ in shards}
        count = max(count for _, _, count in shards)
        _refuse_gap(ranks, min(1, *ranks), max(ranks), "shard-{:05d}-model-*.safetensors")
        _refuse_gap(parts, 1, count, f"shard-*-model-{{:05d}}-of-{count:05d}.safetensors")


def _shards(paths: list[Path]) -> Iterator[tuple[int, int, int]]:
    """Yield for each shard its rank, the number of its file, and the number of files."""
    for path in paths:
        match = _SHARD.fullmatch(path.name)
        if match:
            yield int(match[1]), int(match[2]), int(match[3])


def _refuse_gap(numbers: set[int], first: int, last: int, name: str) -> None:
    here = sum(first <= number <= last for number in numbers)
    lost = last - first + 1 - here
    if lost <= 0:
        return
    number = first
    while number in numbers:
        number += 1
    more = f" (and {lost - 1:,} more: {here} of {last - first + 1:,} are here)" if lost > 1 else ""
    raise CheckpointError(
        f"{name.format(number)} is missing{more}: the model would not be complete", _OTHER_MACHINE
    )


def missing_files(folder: Path, names: Collection[str]) -> str:
    """Describe which data files are missing, and of how many ranks; "" if none is."""
    missing = [name for name in names if not _exists(folder / name)]
    if not missing:
        return ""
    more = f", and {len(missing) - 1:,} more" if len(missing) > 1 else ""
    ranks, lost = _ranks(names), _ranks(names) - _ranks(set(names) - set(missing))
    if not lost or len(ranks) == 1:
        return f"the data file is missing{more}"
    return (
        f"the data file is missing{more}: no file of {len(lost):,} of {len(ranks):,} ranks is here "
        "(written on another machine?)"
    )


def _exists(path: Path) -> bool:
    try:
        return os.path.lexists(path)
    except ValueError:  # no filesystem has such a name
        return False


def _ranks(names: Iterable[str]) -> set[int]:
    return {int(match[1]) for name in names if (match := _DATA_FILE.fullmatch(name))}


def warnings_for(paths: list[Path]) -> Iterator[str]:
    """Yield a warning for each thing that the names of the `describing_files` cannot prove."""
    for path in paths:
        if path.name == GLOBAL_FILE and path.with_name(f"{GLOBAL_FILE}.tmp").exists():
            yield (
                "a later save into this folder was interrupted (there is a .metadata.tmp): data "
                "files may be newer than the metadata"
            )
    shards = set(_shards(paths))
    if not shards:
        return
    ranks = {rank for rank, _, _ in shards}
    yield (
        f"found the shards of {len(ranks)} rank{'s' * (len(ranks) > 1)}; no file says how many "
        "there were, and only a config (--model-assets-dir) can tell that the last is missing"
    )
    # Not an error: with pipeline parallelism, a rank has no tensors for some files.
    parts = {part: count for _, part, count in shards}
    absent = [
        f"shard-{rank:05d}-model-{part:05d}-of-{count:05d}.safetensors"
        for rank in sorted(ranks)
        for part, count in sorted(parts.items())
        if (rank, part, count) not in shards
    ]
    if absent:
        yield f"missing, because they were empty or are lost: {format_list(absent, 5)}"
