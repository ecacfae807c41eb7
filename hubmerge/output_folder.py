"""The folder that a conversion writes into: one run at a time, resumable, never half a model.

A journal (`.hubmerge.journal`) names the plan and each finished shard. It is there exactly as long
as the folder is incomplete, and the run that works on it holds a lock on it. What is on disk when
a run dies:

    1. the journal is created and locked         folder: as before, and an empty journal
    2. an older model's index, then its shards are removed (``overwrite``)
    3. assets                                    folder: no weights: nothing can load it
    4. each shard, then its line in the journal  folder: no index: no loader takes it for a model
    5. the index                                 folder: complete, and the journal
    6. the journal is removed                    folder: complete

The next run with the same plan keeps the finished shards; one with another plan removes them.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
from io import FileIO
from pathlib import Path

from hubmerge.errors import NoRoomError, UsageError
from hubmerge.plan import INDEX_NAME
from hubmerge.shard_writer import PARTIAL_SUFFIX, WrittenShard, disk_errors, sync_folder

JOURNAL = ".hubmerge.journal"
_SHARD_NAME = re.compile(
    rf"(?:adapter_)?model(-\d{{5,}}-of-\d{{5,}})?\.safetensors({PARTIAL_SUFFIX})?"
)


class OutputFolder:
    """A locked output folder, cleared of all that is not of this plan.

    Args:
        path: created if missing.
        digest: names the plan, so that a later run knows whether finished shards are still right.
        needed_bytes: what the whole output takes.
        overwrite: replace a model that is already there.

    Raises:
        UsageError: the folder holds a model, or another run works in it.
        NoRoomError: the disk has less room than is needed; nothing was written or removed.
    """

    def __init__(self, path: Path, digest: str, needed_bytes: int, *, overwrite: bool) -> None:
        self.path = path
        self._digest = digest
        self.finished: dict[str, WrittenShard] = {}
        """Complete shards by filename."""
        if not overwrite:
            refuse_existing_model(path)
        # What is there is either kept or removed before the first shard is written.
        check_room(path, needed_bytes - sum(p.lstat().st_size for p in _weight_files(path)))
        with disk_errors(path):
            path.mkdir(parents=True, exist_ok=True)
            self._file = _open_journal(path / JOURNAL)
        try:
            self._lock()
            if not overwrite:  # again: until it was locked, another run could work here
                refuse_existing_model(path)
            self._resume()
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

    def _resume(self) -> None:
        """Take over the finished shards of a run with the same plan that was cut off."""
        self._file.seek(0)
        lines = self._file.read().split(b"\n")[:-1]  # the last is empty, or cut off by a crash
        if lines and lines[0] == self._header():
            for shard in filter(None, map(_noted_shard, lines[1:])):
                path = self.path / shard.filename
                if path.is_file() and path.lstat().st_size == shard.size:
                    self.finished[shard.filename] = shard

    def _header(self) -> bytes:
        return json.dumps({"plan": self._digest}).encode()

    def _clear(self) -> None:
        """Remove what is not of this plan: the index first, then shards and partial files."""
        with disk_errors(self.path):
            (self.path / INDEX_NAME).unlink(missing_ok=True)
            for path in _weight_files(self.path):
                if path.name not in self.finished:
                    path.unlink()
            self._file.truncate(0)
            lines = [self._header(), *map(_journal_line, self.finished.values())]
            self._file.write(b"".join(line + b"\n" for line in lines))
            os.fsync(self._file.fileno())

    def write(self, name: str, content: bytes) -> None:
        """Write a small file so that its name appears only when it is complete."""
        path = self.path / name
        partial = path.with_name(path.name + PARTIAL_SUFFIX)
        with disk_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            partial.unlink(missing_ok=True)  # a link there would be followed
            try:
                with open(partial, "xb") as file:
                    file.write(content)
                    file.flush()
                    os.fsync(file.fileno())
                partial.replace(path)
            except BaseException:
                partial.unlink(missing_ok=True)
                raise
            sync_folder(path.parent)

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
    return FileIO(os.open(path, flags, 0o666), "a+b")


def _noted_shard(line: bytes) -> WrittenShard | None:
    """A line of the journal; None where a crash or an editor has spoiled it."""
    try:
        shard = WrittenShard(**json.loads(line))
    except (ValueError, TypeError):
        return None
    return shard if _SHARD_NAME.fullmatch(str(shard.filename)) else None


def _journal_line(shard: WrittenShard) -> bytes:
    entry = {"filename": shard.filename, "size": shard.size, "sha256": shard.sha256}
    return json.dumps(entry).encode()


def note_shard(path: Path, shard: WrittenShard) -> None:
    """Note in the journal of the folder `path` that a shard is complete; any rank may."""
    with disk_errors(path / JOURNAL), open(path / JOURNAL, "ab", buffering=0) as file:
        file.write(_journal_line(shard) + b"\n")
        os.fsync(file.fileno())


def _weight_files(path: Path) -> list[Path]:
    """Shards in the folder, complete or partial."""
    if not path.is_dir():
        return []
    names = (entry.name for entry in path.iterdir())
    return [path / name for name in names if _SHARD_NAME.fullmatch(name)]


def refuse_existing_model(path: Path) -> None:
    """Raises UsageError where the folder holds weights that no incomplete run of ours left.

    A journal without its first line is of a run that was killed before it touched the folder.
    """
    journal = path / JOURNAL
    if journal.exists() and journal.stat().st_size:
        return
    found = _weight_files(path) + [path / INDEX_NAME] * (path / INDEX_NAME).exists()
    if found:
        raise UsageError(
            f"{path}: already holds a model ({min(found).name})",
            "Use --overwrite to replace it, or another --save-dir.",
        )


def check_room(folder: Path, needed_bytes: int) -> None:
    """Raises NoRoomError where the disk of `folder`, which need not exist, has less free."""
    while not folder.exists():
        folder = folder.parent
    free_bytes = shutil.disk_usage(folder).free
    if free_bytes < needed_bytes:
        raise NoRoomError(
            f"{folder}: not enough disk: {needed_bytes:,} bytes are needed, "
            f"{free_bytes:,} are free",
            "Free some room, or use a --save-dir on another disk.",
        )
