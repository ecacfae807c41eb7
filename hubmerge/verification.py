"""Compare what is stored with what the checkpoint gives; nothing is written or downloaded whole.

A shard is byte-identical whenever it is made, so its sha256 can be computed from the checkpoint and
compared with the Hub's own listing. A folder is read beside it.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from io import FileIO
from pathlib import Path
from typing import Any

from hubmerge.checkpoint.boxes import BLOCK_BYTES
from hubmerge.checkpoint.data_files import DataFiles
from hubmerge.conversion.folder_record import FOLDER_RECORD
from hubmerge.conversion.output_folder import JOURNAL
from hubmerge.conversion.shard_writer import hash_shard
from hubmerge.conversion.slabs import SCRATCH_BYTES, TensorReader, open_data_files, slabs
from hubmerge.errors import CheckpointError, UsageError
from hubmerge.hf_format.asset_names import CONFIG
from hubmerge.hf_format.assets import MAX_JSON_BYTES, MODULES, Assets
from hubmerge.hf_format.filenames import ADAPTER_CONFIG, LOADER_ENTRY_POINTS, files_to_remove
from hubmerge.planning.card import CARD, same_card
from hubmerge.planning.option_record import LOCAL_BASE, recalled_content_ids, recalled_options
from hubmerge.planning.options import PlanOptions
from hubmerge.planning.plan import MAX_SHARD_BYTES, Plan, PlannedShard, PlannedTensor
from hubmerge.planning.publication import Publication
from hubmerge.progress import Progress
from hubmerge.publish.hub import Hub
from hubmerge.publish.remote import Listing, RemoteFile
from hubmerge.publish.staging_branch import newest_record
from hubmerge.system.disk import content_ids, sha256_of

# What a repository says of its own making, for the plan to be made again.
_INDEXES = LOADER_ENTRY_POINTS - {ADAPTER_CONFIG}
_DECISIVE = (CONFIG, MODULES, *sorted(_INDEXES))

_ABSENT = "no such file"

# The Hub adds the first one to each repository, and a conversion the second one to its folder.
_IGNORED_FILES = {".gitattributes", FOLDER_RECORD}

PlanWith = Callable[[PlanOptions], tuple[Plan, Assets]]


@dataclass(frozen=True, slots=True)
class Difference:
    """A file that is not what it should be; `tensor` is the first that differs, if known."""

    file: str
    expected: str
    found: str
    tensor: str | None = None


@dataclass(frozen=True, slots=True)
class VerifyResult:
    """The verdict: no differences, or each of them.

    Attributes:
        files: how many were compared.
        unchecked: other files, of which the checkpoint says nothing.
        options: how the model was made, by its own record; None if it has none.
        warnings: what was in doubt when the checkpoint was read, one sentence each.
        seconds: of the whole call, planning included.
    """

    place: str
    files: int
    differences: tuple[Difference, ...]
    unchecked: tuple[str, ...] = ()
    options: Mapping[str, Any] | None = None
    warnings: tuple[str, ...] = ()
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class _Recorded:
    """A repository or a folder with the record of how it was made.

    Attributes:
        names: all files.
        small: what is listed of the files without weights.
        compare_shards: yields the shards that are not what a plan gives.
    """

    place: str
    record: Mapping[str, Any]
    names: Collection[str]
    small: Listing
    read: Callable[[str], bytes]
    compare_shards: Callable[[Plan], Iterable[Difference]]


def verify_folder(publication: Publication, folder: Path, progress: Progress) -> VerifyResult:
    """Compare a folder with what would be written into it."""
    plan, small = publication.plan, publication.small_files()
    differences = list(_shards_in_folder(plan, folder, progress))
    for name, content in small.items():
        path = folder / name
        expected = _describe(hashlib.sha256(content).hexdigest(), len(content))
        found = _describe_file(path) if path.is_file() else _ABSENT
        is_same_card = name == CARD and found != _ABSENT and same_card(path.read_bytes(), content)
        if found != expected and not is_same_card:
            differences.append(Difference(name, expected, found))
    names = _names_in(folder)
    differences += _leftovers(names)
    planned = _planned(plan, small)
    differences += _of_another_model(planned, names, is_adapter=plan.is_adapter)
    return _result(str(folder), planned, names, differences, warnings=plan.warnings)


def verify_recorded_folder(
    folder: Path,
    record: Mapping[str, Any],
    options: PlanOptions,
    plan_with: PlanWith,
    progress: Progress,
) -> VerifyResult:
    """Compare a folder with what the checkpoint gives, made as the folder's record says.

    Args:
        record: what it says; arguments and errors are otherwise as of `verify_repository`.
    """
    names = _names_in(folder)
    small = {}
    for name in recalled_content_ids(dict(record)):
        if name in names:
            with FileIO(folder / name) as file:
                sha256 = sha256_of(file)
                small[name] = RemoteFile(file.tell(), sha256, blob_id="")
    found = _Recorded(
        place=str(folder),
        record=record,
        names=names,
        small=small,
        read=lambda name: (folder / name).read_bytes(),
        compare_shards=partial(_shards_in_folder, folder=folder, progress=progress),
    )
    result = _verify_recorded(found, options, plan_with)
    return replace(result, differences=(*result.differences, *_leftovers(names)))


def verify_repository(
    hub: Hub, revision: str, options: PlanOptions, plan_with: PlanWith, progress: Progress
) -> VerifyResult:
    """Compare the Hub's own listing with what the checkpoint gives, made as the commit records.

    Args:
        options: what is given now; it comes before what is recorded.
        plan_with: makes the checkpoint's plan with these options.

    Raises:
        UsageError: no such revision, no record of a push, or an option that cannot be compared.
        HubmergeError: the checkpoint or the Hub cannot be read.
    """
    if options.card is not None or options.license is not None:
        raise UsageError(
            "--card and --license are compared with a folder only",
            "Leave them out: the commit records which card the push made.",
        )
    commit = hub.head(revision)  # a branch may move meanwhile
    if commit is None:
        raise UsageError(f"{hub.repo_id} has no revision {revision!r}", "Check --revision.")
    record = newest_record(hub, commit)
    listing = hub.files(commit)
    found = _Recorded(
        place=f"{hub.url}/tree/{revision}",
        record=record.options,
        names=listing,
        small=listing,
        read=lambda name: hub.read_text(name, commit).encode(),
        compare_shards=partial(_shards_in_listing, listing=listing, progress=progress),
    )
    return _verify_recorded(found, options, plan_with)


def _verify_recorded(found: _Recorded, options: PlanOptions, plan_with: PlanWith) -> VerifyResult:
    ids = recalled_content_ids(dict(found.record))
    recorded = {name: value for name, value in found.record.items() if name != "files"}
    # A file that is not what was published must not say how to read the checkpoint.
    sources = {name: ids[name] for name in _DECISIVE if name in ids}
    changed = {difference.file: difference for difference in _compare(sources, found.small)}
    if CONFIG in changed and options.model_assets_dir is None:
        return _result(found.place, (), found.names, [*changed.values()], options=recorded)
    made_with = recalled_options(recorded, options)
    if not _INDEXES.intersection({*found.names, *ids}):  # all in one file, whatever decided that
        naming = replace(made_with.naming, like_base_shards=False)
        made_with = replace(made_with, shard_size=MAX_SHARD_BYTES, naming=naming)
    with tempfile.TemporaryDirectory() as temporary:
        for name in sources.keys() - changed.keys():
            if found.small[name].size > MAX_JSON_BYTES:
                raise CheckpointError(f"{name} in {found.place}: too large to be read")
            Path(temporary, name).write_bytes(found.read(name))
        if made_with.model_assets_dir is None:
            made_with = replace(made_with, model_assets_dir=temporary)
        plan, assets = plan_with(made_with)
    if options.model_assets_dir is not None:
        ids |= {asset.name: content_ids(asset.read()) for asset in assets.files}
    if plan.index is not None:
        ids[plan.index_name] = content_ids(plan.index)
    differences = [*found.compare_shards(plan), *_compare(ids, found.small)]
    planned = _planned(plan, ids)
    differences += _of_another_model(planned, found.names, is_adapter=plan.is_adapter)
    warnings = list(plan.warnings)
    if recorded.get("base") == LOCAL_BASE and made_with.naming.base_model is None:
        warnings.append(
            "names were taken from a base model in a folder: without it (--base-model), what it "
            "decided is a difference"
        )
    return _result(
        found.place, planned, found.names, differences, options=recorded, warnings=warnings
    )


def _shards_in_listing(plan: Plan, listing: Listing, progress: Progress) -> Iterator[Difference]:
    files = _open(plan, progress)
    for shard in plan.shards:
        sha256 = hash_shard(shard, files, progress.converted)
        remote = listing.get(shard.filename)
        if remote is None or not remote.matches([sha256], shard.size_bytes):
            expected = _describe(sha256, shard.size_bytes)
            found = _describe(str(remote.sha256), remote.size) if remote else _ABSENT
            yield Difference(shard.filename, expected, found)


def _shards_in_folder(plan: Plan, folder: Path, progress: Progress) -> Iterator[Difference]:
    files = _open(plan, progress)
    for shard in plan.shards:
        difference = _shard_in_folder(shard, files, folder / shard.filename, progress)
        if difference is not None:
            yield difference


def _compare(expected: Mapping[str, tuple[str, ...]], listing: Listing) -> list[Difference]:
    """Return the files that are listed with other content, or not at all.

    Args:
        expected: sha256 and git blob id of each file; a listing has one of them.
    """
    differences = []
    for name, ids in expected.items():
        remote = listing.get(name)
        if remote is None or not remote.matches(ids):
            found = remote.sha256 or remote.blob_id if remote else _ABSENT
            differences.append(Difference(name, " or ".join(ids), found))
    return differences


def _names_in(folder: Path) -> list[str]:
    return [p.relative_to(folder).as_posix() for p in sorted(folder.rglob("*")) if p.is_file()]


def _leftovers(names: Collection[str]) -> Iterator[Difference]:
    if JOURNAL in names:
        yield Difference(JOURNAL, _ABSENT, "the mark of an interrupted run")


def _planned(plan: Plan, small: Collection[str]) -> set[str]:
    """Return the names of all files that must exist."""
    return {shard.filename for shard in plan.shards} | set(small)


def _of_another_model(
    planned: Collection[str], names: Collection[str], *, is_adapter: bool
) -> Iterator[Difference]:
    """Yield files that are not planned, and that a loader could take for the model's."""
    for name in files_to_remove(names, planned, is_adapter=is_adapter):
        yield Difference(name, _ABSENT, "a file of another model")


def _open(plan: Plan, progress: Progress) -> DataFiles:
    files = open_data_files(plan)
    progress.start(sum(shard.size_bytes for shard in plan.shards), len(plan.shards))
    return files


def _result(
    place: str,
    planned: Collection[str],
    names: Collection[str],
    differences: list[Difference],
    *,
    options: Mapping[str, Any] | None = None,
    warnings: Sequence[str] = (),
) -> VerifyResult:
    compared = set(planned) | {difference.file for difference in differences}
    return VerifyResult(
        place=place,
        files=len(compared),
        differences=tuple(differences),
        unchecked=tuple(name for name in names if name not in compared | _IGNORED_FILES),
        options=options,
        warnings=tuple(warnings),
    )


def _shard_in_folder(
    shard: PlannedShard, files: DataFiles, path: Path, progress: Progress
) -> Difference | None:
    expected = _describe(hash_shard(shard, files, progress.converted), shard.size_bytes)
    if not path.is_file():
        return Difference(shard.filename, expected, _ABSENT)
    found = _describe_file(path)
    if found == expected:
        return None
    return Difference(shard.filename, expected, found, _first_difference(shard, files, path))


def _describe(sha256: str, size_bytes: int) -> str:
    return f"sha256 {sha256} ({size_bytes:,} bytes)"


def _describe_file(path: Path) -> str:
    with FileIO(path) as file:
        return _describe(sha256_of(file), file.tell())


def _first_difference(shard: PlannedShard, files: DataFiles, path: Path) -> str | None:
    """Return the first tensor whose bytes differ; None if the header does."""
    with path.open("rb") as file:
        if file.read(len(shard.header)) != shard.header:
            return None
        for tensor in shard.tensors:
            for block in _blocks(tensor, files):
                if file.read(len(block)) != block:
                    return tensor.name
    return None


def _blocks(tensor: PlannedTensor, files: DataFiles) -> Iterator[memoryview]:
    reader = TensorReader(tensor, files, memoryview(bytearray(SCRATCH_BYTES)))
    buffer = memoryview(bytearray(BLOCK_BYTES))
    for slab in slabs(tensor):
        block = buffer[: slab.size_bytes]
        reader.read(slab, block)
        yield block
