"""The folder that a conversion writes into: one run at a time, resumable, never half a model.

A journal (`.hubmerge.journal`) names the plan and each finished shard. It is there exactly as long
as the folder is incomplete, and the run that works on it holds a lock on it. What is on disk when
a run dies:

    1. the journal is created and locked         folder: as before, and an empty journal
    2. an older model is removed (``overwrite``): what a loader looks for first, then its shards;
       only an older adapter where an adapter is written
    3. assets                                    folder: no weights: nothing can load it
    4. each shard, then its line in the journal  folder: no index: no loader takes it for a model
    5. the index                                 folder: complete, and the journal
    6. the journal is removed                    folder: complete

The next run with the same plan keeps the finished shards; one with another plan removes them.

The folder may have come with a checkpoint, from anybody, and its journal too: no link in it is
followed, and of a finished shard the journal is not believed but for what the file itself shows.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import stat
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from io import FileIO
from pathlib import Path

from hubmerge.conversion.shard_writer import PARTIAL_SUFFIX, WrittenShard, disk_errors, sync_folder
from hubmerge.conversion.slabs import BLOCK_BYTES
from hubmerge.errors import InsufficientSpaceError, UsageError
from hubmerge.hf_format.assets import CONFIG, TEMPLATES, is_asset
from hubmerge.hf_format.filenames import (
    INDEX_NAME,
    LOADER_ENTRY_POINTS,
    files_to_remove,
    is_pickled_weights,
    is_weights,
)
from hubmerge.planning.plan import Plan

JOURNAL = ".hubmerge.journal"

# More than any journal has: a line for each shard.
_MAX_JOURNAL_BYTES = 2**24
_MAX_NOTED = 20_000

# NFS shows a new file to another machine up to a minute late.
_SEEN_WITHIN_SECONDS = 60.0
_LOOK_EVERY_SECONDS = 0.2
_HASHED_AT_A_TIME = 4


class OutputFolder:
    """A locked output folder, cleared of all that is not of this plan.

    Args:
        path: created if missing.
        digest: names what is written, so that a later run knows whether finished shards are still
            right.
        small: the content of each file without weights but the index, by name.
        overwrite: replace what is already there, be it a model or a file of another origin.
        note: told of what may take a while.

    Raises:
        UsageError: the folder holds a model, or another run works in it.
        InsufficientSpaceError: the disk has less room than is needed; nothing was changed.
    """

    def __init__(
        self,
        path: Path,
        plan: Plan,
        digest: str,
        small: Mapping[str, bytes],
        *,
        overwrite: bool,
        note: Callable[[str], None],
    ) -> None:
        self.path = path
        self._digest, self._small, self._overwrite = digest, small, overwrite
        self._is_adapter = plan.is_adapter
        self._index = plan.index
        self._planned = {shard.filename: shard.size_bytes for shard in plan.shards}
        self.finished: dict[str, WrittenShard] = {}
        """Complete shards by filename."""
        if not overwrite:
            self._refuse_existing()
        needed_bytes = sum(self._planned.values()) + sum(map(len, small.values()))
        needed_bytes += len(plan.index or b"")
        # What is there is either kept or removed before the first shard is written.
        check_room(path, needed_bytes - sum(old.lstat().st_size for old in self._old_files()))
        with disk_errors(path):
            path.mkdir(parents=True, exist_ok=True)
            self._file = _open_journal(path / JOURNAL)
        try:
            self._lock()
            if not overwrite:  # again: until it was locked, another run could work here
                self._refuse_existing()
            self._resume(note)
            self._clear()
        except BaseException:
            self._file.close()
            raise

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            is_ours = os.fstat(self._file.fileno()).st_nlink > 0  # not removed by who had it
        except OSError:
            is_ours = False
        if not is_ours:
            raise UsageError(
                f"{self.path}: another run is writing into this folder",
                "Wait for it, or use another --save-dir.",
            )

    def _resume(self, note: Callable[[str], None]) -> None:
        """Take over the finished shards of a run with the same plan that was cut off."""
        header, noted = _read_journal(self.path / JOURNAL)
        if header != self._header():
            return
        planned = [s for s in noted.values() if self._planned.get(s.filename) == s.size]
        if planned:
            note(f"reading the shards that a run which was cut off has finished ({len(planned)})")
        with ThreadPoolExecutor(_HASHED_AT_A_TIME, "hash") as pool:
            for shard, is_whole in zip(planned, pool.map(self._holds, planned), strict=True):
                if is_whole:
                    self.finished[shard.filename] = shard

    def _holds(self, shard: WrittenShard) -> bool:
        """Is the shard there, a regular file of that size and content?"""
        digest = hashlib.sha256()
        try:
            with _open_regular(self.path / shard.filename) as file:
                if os.fstat(file.fileno()).st_size != shard.size:
                    return False
                while block := file.read(BLOCK_BYTES):
                    digest.update(block)
        except OSError:  # it will be written again
            return False
        return digest.hexdigest() == shard.sha256

    def _header(self) -> bytes:
        return json.dumps({"plan": self._digest}).encode()

    def _old_files(self) -> list[Path]:
        """What stands in this plan's way, in the order to remove it: all but `finished`."""
        if not self.path.is_dir():
            return []
        names = [entry.name for entry in self.path.iterdir()]
        old = set(files_to_remove(names, self.finished, is_adapter=self._is_adapter))
        for name in filter(self._is_weights, names):
            is_ours = name in self._planned or name.endswith(PARTIAL_SUFFIX)
            is_ours |= self._overwrite and not self._is_adapter and is_pickled_weights(name)
            if is_ours and name not in self.finished:
                old.add(name)
        if self._overwrite and CONFIG in self._small:  # the older model's tokenizer goes with it
            templates = self.path / TEMPLATES
            if not templates.is_symlink():
                names += [f"{TEMPLATES}/{path.name}" for path in templates.glob("*")]
            old |= {name for name in names if is_asset(name) and name not in self._small}
        return [
            self.path / name
            for name in sorted(old, key=lambda n: (n not in LOADER_ENTRY_POINTS, n))
        ]

    def _is_weights(self, name: str) -> bool:
        """Is it a shard, complete or partial?"""
        final = name.removesuffix(PARTIAL_SUFFIX)
        return final in self._planned or is_weights(final) or is_pickled_weights(final)

    def _clear(self) -> None:
        """Remove what is not of this plan."""
        for path in self._old_files():
            with disk_errors(path):
                path.unlink()
        with disk_errors(self.path):
            self._file.truncate(0)
            lines = [self._header(), *map(_journal_line, self.finished.values())]
            self._file.write(b"".join(line + b"\n" for line in lines))
            os.fsync(self._file.fileno())

    def _refuse_existing(self) -> None:
        """Raises UsageError where the folder holds what no incomplete run of ours left there.

        That is a model, or (where there is no journal) another file of a name that is to be
        written. A journal without its first line is of a run that was killed before it touched the
        folder.
        """
        header, noted = _read_journal(self.path / JOURNAL)
        planned = self._planned if header == self._header() else {}
        decisive = {INDEX_NAME} if self._is_adapter else LOADER_ENTRY_POINTS
        for path in sorted(self.path.iterdir()) if self.path.is_dir() else ():
            is_left = header and (
                path.suffix == PARTIAL_SUFFIX
                or path.name in noted
                or planned.get(path.name) == path.lstat().st_size  # not yet noted
                or (path.name == INDEX_NAME and _holds_content(path, self._index))
            )
            if (self._is_weights(path.name) or path.name in decisive) and not is_left:
                raise UsageError(
                    f"{self.path}: already holds a model ({path.name})",
                    "Use --overwrite to replace it, or another --save-dir.",
                )
        if header:  # what an older plan of ours wrote is to be replaced
            return
        for name, content in self._small.items():
            path = self.path / name
            if os.path.lexists(path) and not _holds_content(path, content):
                raise UsageError(
                    f"{path}: is there already, and is not what would be written",
                    "Use --overwrite to replace it, or another --save-dir.",
                )

    def write_small(self) -> None:
        """Write the files without weights, all but the index."""
        for name, content in self._small.items():
            self.write(name, content)

    def write(self, name: str, content: bytes) -> None:
        """Write a small file so that its name appears only when it is complete."""
        path = self.path / name
        unfinished = path.with_name(path.name + PARTIAL_SUFFIX)
        if path.parent != self.path and path.parent.is_symlink():
            raise UsageError(f"{path.parent}: is a link", "Remove it, or use another --save-dir.")
        with disk_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            unfinished.unlink(missing_ok=True)  # a link there would be followed
            try:
                with open(unfinished, "xb") as file:
                    file.write(content)
                    file.flush()
                    os.fsync(file.fileno())
                unfinished.replace(path)
            except BaseException:
                unfinished.unlink(missing_ok=True)
                raise
            sync_folder(path.parent)

    def check_shards(self) -> None:
        """Prove that the other ranks have written their shards into this very folder.

        Raises:
            UsageError: one is not there.
        """
        for name, size in self._planned.items():
            if not _appears(partial(_is_shard, self.path / name, size)):
                raise _not_shared(self.path, name)

    def complete(self) -> None:
        """Everything is in place: the journal goes."""
        with disk_errors(self.path):
            (self.path / JOURNAL).unlink()
        self._file.close()

    def close(self) -> None:
        """Let go of the folder, complete or not."""
        self._file.close()


def _open_journal(path: Path) -> FileIO:
    """Open for reading and appending, and never what a link points at: it will be truncated."""
    flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    with disk_errors(path):
        file = FileIO(os.open(path, flags, 0o666), "a+b")
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise UsageError(f"{path}: is no regular file", "Remove it, or use another --save-dir.")
    return file


def _read_journal(path: Path) -> tuple[bytes, dict[str, WrittenShard]]:
    """The journal's first line, and the shards that it notes; empty where there is none."""
    try:
        with _open_regular(path) as file:
            header, *lines = file.read(_MAX_JOURNAL_BYTES).split(b"\n", _MAX_NOTED)
    except OSError:
        return b"", {}
    if not lines:  # it was cut off by a crash, as the last line may be
        return b"", {}
    noted = filter(None, map(_noted_shard, lines[:-1]))
    return header, {shard.filename: shard for shard in noted}


def _open_regular(path: Path) -> FileIO:
    """Open for reading what is no link, no pipe and no folder; raises OSError."""
    file = FileIO(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC))
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError(f"{path}: no regular file")
    return file


def _holds_content(path: Path, content: bytes | None) -> bool:
    """Is it a regular file of this content?"""
    try:
        with _open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            return content is not None and size == len(content) and file.read(size) == content
    except OSError:
        return False


def _noted_shard(line: bytes) -> WrittenShard | None:
    """A line of the journal; None where a crash or an editor has spoiled it."""
    try:
        shard = WrittenShard(**json.loads(line))
    except (ValueError, TypeError, RecursionError):
        return None
    return shard if isinstance(shard.filename, str) else None


def _journal_line(shard: WrittenShard) -> bytes:
    entry = {"filename": shard.filename, "size": shard.size, "sha256": shard.sha256}
    return json.dumps(entry).encode()


def check_shared(path: Path) -> None:
    """Raises UsageError where `path` is not the folder that rank 0 has opened."""
    if not _appears((path / JOURNAL).exists):
        raise _not_shared(path, JOURNAL)


def journal_shard(path: Path, shard: WrittenShard) -> None:
    """Note in the journal of the folder `path` that a shard is complete; any rank may."""
    flags = os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    with disk_errors(path / JOURNAL), FileIO(os.open(path / JOURNAL, flags), "ab") as file:
        file.write(_journal_line(shard) + b"\n")
        os.fsync(file.fileno())


def _not_shared(path: Path, name: str) -> UsageError:
    return UsageError(
        f"{path}: not one folder for all ranks: {name} is not there",
        "Use a --save-dir that all machines see, on a disk that they share.",
    )


def _appears(is_there: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + _SEEN_WITHIN_SECONDS
    while not is_there():
        if time.monotonic() > deadline:
            return False
        time.sleep(_LOOK_EVERY_SECONDS)
    return True


def _is_shard(path: Path, size: int) -> bool:
    try:
        return _is_regular(path.lstat(), size)
    except OSError:
        return False


def _is_regular(status: os.stat_result, size: int) -> bool:
    return stat.S_ISREG(status.st_mode) and status.st_size == size


def check_room(folder: Path, needed_bytes: int, option: str = "--save-dir") -> None:
    """Raise InsufficientSpaceError if the disk of `folder`, which need not exist, has less.

    Args:
        option: what moves the folder to another disk.
    """
    while not folder.exists():
        folder = folder.parent
    free_bytes = shutil.disk_usage(folder).free
    if free_bytes < needed_bytes:
        raise InsufficientSpaceError(
            f"{folder}: not enough disk: {needed_bytes:,} bytes are needed, "
            f"{free_bytes:,} are free",
            f"Free some room, or use {option} on another disk.",
        )
