"""What is stored, held against what the checkpoint gives; nothing is written or downloaded whole.

A shard is byte-identical whenever it is made, so its sha256 can be computed from the checkpoint and
compared with the Hub's own listing. A folder is read beside it.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from hubmerge.checkpoint.records import DataFiles
from hubmerge.plan import Plan, PlannedShard, PlannedTensor
from hubmerge.progress import Progress
from hubmerge.publish.hub import RemoteFile
from hubmerge.shard_writer import hash_shard
from hubmerge.stream import BLOCK_BYTES, TensorReader, slabs

_ABSENT = "no such file"


@dataclass(frozen=True, slots=True)
class Difference:
    """A file that is not what it should be; `tensor` is the first that differs, where known."""

    file: str
    expected: str
    found: str
    tensor: str | None = None


@dataclass(frozen=True, slots=True)
class VerifyResult:
    """The verdict: no differences, or each of them."""

    place: str
    files: int
    differences: tuple[Difference, ...]
    seconds: float

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    def to_text(self) -> str:
        if not self.differences:
            return f"✓ Verified {self.files} files in {self.seconds:.1f} s\nplace: {self.place}"
        lines = [f"✗ {len(self.differences)} of {self.files} files differ in {self.place}"]
        for difference in self.differences:
            where = f", first in {difference.tensor!r}" if difference.tensor else ""
            lines.append(
                f"  {difference.file}{where}: expected {difference.expected}, "
                f"found {difference.found}"
            )
        return "\n".join(lines)


def verify_folder(
    plan: Plan, small: dict[str, bytes], folder: Path, progress: Progress
) -> VerifyResult:
    """Compare a folder with what the plan would write.

    Args:
        small: the content that each other file must have.
    """
    began = time.monotonic()
    files = _open(plan, progress)
    differences = []
    for shard in plan.shards:
        difference = _shard_in_folder(shard, files, folder / shard.filename, progress)
        if difference is not None:
            differences.append(difference)
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    differences.extend(_unplanned(plan, names))
    for name, content in small.items():
        path = folder / name
        expected = _describe(hashlib.sha256(content).hexdigest(), len(content))
        found = _describe_file(path) if path.is_file() else _ABSENT
        if found != expected:
            differences.append(Difference(name, expected, found))
    return _result(str(folder), len(plan.shards) + len(small), differences, began)


def verify_listing(
    plan: Plan,
    content_ids: dict[str, tuple[str, ...]],
    listing: dict[str, RemoteFile],
    place: str,
    progress: Progress,
) -> VerifyResult:
    """Compare the Hub's own listing with what the plan would push.

    Args:
        content_ids: sha256 and git blob id of each other file; a listing has one of them.
    """
    began = time.monotonic()
    files = _open(plan, progress)
    differences = []
    for shard in plan.shards:
        expected = _describe(hash_shard(shard, files, progress.converted), shard.size_bytes)
        remote = listing.get(shard.filename)
        found = _describe(str(remote.sha256), remote.size) if remote else _ABSENT
        if found != expected:
            differences.append(Difference(shard.filename, expected, found))
    for name, ids in content_ids.items():
        remote = listing.get(name)
        found = remote.sha256 or remote.blob_id if remote else _ABSENT
        if found not in ids:
            differences.append(Difference(name, " or ".join(ids), found))
    differences.extend(_unplanned(plan, listing))
    return _result(place, len(plan.shards) + len(content_ids), differences, began)


def _unplanned(plan: Plan, names: Iterable[str]) -> Iterator[Difference]:
    """Weights that the plan does not have: a loader could take them for the model's."""
    planned = {shard.filename for shard in plan.shards}
    for name in names:
        if name.endswith(".safetensors") and "/" not in name and name not in planned:
            yield Difference(name, _ABSENT, "weights of something else")


def _open(plan: Plan, progress: Progress) -> DataFiles:
    files = DataFiles(plan.checkpoint.folder)
    files.check_sizes(plan.data_files, plan.key_beyond)
    progress.start(sum(shard.size_bytes for shard in plan.shards), len(plan.shards))
    return files


def _result(place: str, count: int, differences: list[Difference], began: float) -> VerifyResult:
    return VerifyResult(place, count, tuple(differences), round(time.monotonic() - began, 3))


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
    digest = hashlib.sha256()
    size_bytes = 0
    with path.open("rb", buffering=0) as file:
        while block := file.read(BLOCK_BYTES):
            digest.update(block)
            size_bytes += len(block)
    return _describe(digest.hexdigest(), size_bytes)


def _first_difference(shard: PlannedShard, files: DataFiles, path: Path) -> str | None:
    """The first tensor whose bytes are not the planned ones; None if the header differs."""
    with path.open("rb") as file:
        if file.read(len(shard.header)) != shard.header:
            return None
        for tensor in shard.tensors:
            for block in _blocks(tensor, files):
                if file.read(len(block)) != block:
                    return tensor.name
    return None


def _blocks(tensor: PlannedTensor, files: DataFiles) -> Iterator[memoryview]:
    reader = TensorReader(tensor, files, memoryview(bytearray(2 * BLOCK_BYTES)))
    buffer = memoryview(bytearray(BLOCK_BYTES))
    for slab in slabs(tensor):
        block = buffer[: slab.size_bytes]
        reader.read(slab, block)
        yield block
