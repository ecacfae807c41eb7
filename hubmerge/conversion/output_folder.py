"""The folder that a conversion writes: locked, resumable, never loadable before it is complete.

A journal (`.hubmerge.journal`) names the plan and each finished shard. It exists exactly as long
as the folder is incomplete, and the run that writes the folder locks it. What is on disk when a run
dies:

    1. the journal is created and locked         folder: as before, and an empty journal
    2. an older model is removed (``overwrite``): what a loader looks for first, then its shards;
       only an older adapter if an adapter is written
    3. assets                                    folder: no weights: nothing can load it
    4. each shard, then its line in the journal  folder: no index: no loader takes it for a model
    5. the index                                 folder: complete, and the journal
    6. the journal is removed                    folder: complete

The next run with the same plan keeps the finished shards; one with another plan removes them.

The folder and its journal may have come with an untrusted checkpoint: no link in the folder is
followed, and a shard in the journal counts only if its file has the recorded size and hash.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from io import FileIO
from pathlib import Path

from hubmerge.conversion.shard_writer import WrittenShard
from hubmerge.errors import UsageError
from hubmerge.hf_format.asset_names import CONFIG, TEMPLATES, is_asset
from hubmerge.hf_format.filenames import (
    ADAPTER_CONFIG,
    LOADER_ENTRY_POINTS,
    files_to_remove,
    is_pickled_weights,
    is_weights,
)
from hubmerge.hf_format.other_weights import consolidated, other_weights
from hubmerge.planning.plan import Plan
from hubmerge.system.disk import (
    PARTIAL_SUFFIX,
    FolderLock,
    atomic_file,
    check_space,
    disk_errors,
    is_file_of_size,
    open_regular,
    sha256_of,
    write_all,
)

JOURNAL = ".hubmerge.journal"

# Larger than any journal, which has a line for each shard.
_MAX_JOURNAL_BYTES = 2**24
_MAX_JOURNAL_LINES = 20_000

# On NFS, a new file may take up to a minute to appear on another machine.
_VISIBLE_WITHIN_SECONDS = 60.0
_POLL_SECONDS = 0.2
_HASH_THREADS = 4


class OutputFolder:
    """An output folder; `open` locks it and removes the files of other plans.

    Attributes:
        finished: complete shards by filename.

    Args:
        path: created if missing.
        digest: identifies the output, so that a later run knows whether finished shards are still
            valid.
        small: the content of each small file but the index, by name.
        overwrite: replace an existing model, or a file that hubmerge did not write.
    """

    def __init__(
        self,
        path: Path,
        plan: Plan,
        digest: str,
        small: Mapping[str, bytes],
        *,
        overwrite: bool,
    ) -> None:
        self.path = path
        self.finished: dict[str, WrittenShard] = {}
        self._digest, self._small, self._overwrite = digest, small, overwrite
        self._is_adapter = plan.is_adapter
        self._index = plan.index
        self._planned = {shard.filename: shard.size_bytes for shard in plan.shards}
        self._lock: FolderLock | None = None

    def open(self, note: Callable[[str], None]) -> None:
        """Lock the folder, keep its finished shards, and remove the files of other plans.

        Args:
            note: called with a message before a step that may take a while.

        Raises:
            UsageError: the folder holds a model, or another run uses it.
            InsufficientSpaceError: the disk has too little space; nothing was changed.
        """
        self._check_replaceable()
        self._check_space()
        with disk_errors(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
        self._lock = FolderLock(self.path / JOURNAL, "--save-dir")
        try:
            self._check_replaceable()  # again: another run may have used it before the lock
            self._take_over(note)
            self._remove_old_files()
            self._start_journal(self._lock.file)
        except BaseException:
            self.close()
            raise

    def _check_replaceable(self) -> None:
        """Raise UsageError if the folder holds files that no interrupted run left there.

        That is a model, or (if there is no journal) another file whose name will be written. A
        journal without its first line belongs to a run that was killed before it changed anything.
        """
        if self._overwrite:
            return
        header, journaled = _read_journal(self.path / JOURNAL)
        planned = self._planned if header == self._header() else {}
        decisive = LOADER_ENTRY_POINTS - ({ADAPTER_CONFIG} if self._is_adapter else set())
        for path in sorted(self.path.iterdir()) if self.path.is_dir() else ():
            is_left = header and (
                path.suffix == PARTIAL_SUFFIX
                or path.name in journaled
                or planned.get(path.name) == path.lstat().st_size  # not yet journaled
                or (path.name in LOADER_ENTRY_POINTS and _holds_content(path, self._index))
            )
            if (self._is_weights(path.name) or path.name in decisive) and not is_left:
                raise UsageError(
                    f"{self.path}: already holds a model ({path.name})",
                    "Use --overwrite to replace it, or another --save-dir.",
                )
        if header:  # the small files are those of an interrupted run, and are replaced
            return
        for name, content in self._small.items():
            path = self.path / name
            if os.path.lexists(path) and not _holds_content(path, content):
                raise UsageError(
                    f"{path}: already exists with different content",
                    "Use --overwrite to replace it, or another --save-dir.",
                )

    def _check_space(self) -> None:
        needed_bytes = sum(self._planned.values()) + sum(map(len, self._small.values()))
        needed_bytes += len(self._index or b"")
        # Existing files are kept or removed before the first shard is written.
        old_bytes = sum(old.lstat().st_size for old in self._old_files())
        check_space(self.path, needed_bytes - old_bytes, "--save-dir")

    def _take_over(self, note: Callable[[str], None]) -> None:
        """Keep the finished shards of an interrupted run with the same plan."""
        header, journaled = _read_journal(self.path / JOURNAL)
        if header != self._header():
            return
        planned = [s for s in journaled.values() if self._planned.get(s.filename) == s.size]
        if planned:
            note(f"checking shards left by an interrupted run ({len(planned)})")
        with ThreadPoolExecutor(_HASH_THREADS, "hash") as pool:
            for shard, is_whole in zip(planned, pool.map(self._holds, planned), strict=True):
                if is_whole:
                    self.finished[shard.filename] = shard

    def _holds(self, shard: WrittenShard) -> bool:
        """Return whether the shard exists as a regular file with the recorded size and hash."""
        try:
            with open_regular(self.path / shard.filename) as file:
                is_of_size = os.fstat(file.fileno()).st_size == shard.size
                return is_of_size and sha256_of(file) == shard.sha256
        except OSError:  # it will be written again
            return False

    def _header(self) -> bytes:
        return json.dumps({"plan": self._digest}).encode()

    def _old_files(self) -> list[Path]:
        """Return the files that the plan replaces, without `finished`, in the order to remove."""
        if not self.path.is_dir():
            return []
        names = [entry.name for entry in self.path.iterdir()]
        old = set(files_to_remove(names, self.finished, is_adapter=self._is_adapter))
        for name in filter(self._is_weights, names):
            is_ours = name in self._planned or name.endswith(PARTIAL_SUFFIX)
            is_ours |= self._overwrite and not self._is_adapter and not is_weights(name)
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
        """Return whether a complete or partial shard could have this name."""
        final = name.removesuffix(PARTIAL_SUFFIX)
        if consolidated([final], ()) and not self._is_adapter:
            return True
        return final in self._planned or is_weights(final) or is_pickled_weights(final)

    def _remove_old_files(self) -> None:
        for path in self._old_files():
            with disk_errors(path):
                path.unlink()

    def _start_journal(self, journal: FileIO) -> None:
        lines = [self._header(), *map(_journal_line, self.finished.values())]
        with disk_errors(self.path):
            journal.truncate(0)
            write_all(journal, b"".join(line + b"\n" for line in lines))
            os.fsync(journal.fileno())

    def other_weights(self) -> dict[str, str | None]:
        """Return the weights that stay in the folder although this plan does not write them."""
        names = [
            path.relative_to(self.path).as_posix()
            for pattern in ("*", "*/*")
            for path in sorted(self.path.glob(pattern))
            if path.is_file()
        ]
        return other_weights(names, {*self._planned, *self._small})

    def write_small(self) -> None:
        """Write all small files but the index."""
        for name, content in self._small.items():
            self.write(name, content)

    def write(self, name: str, content: bytes) -> None:
        """Write a small file; its name appears only when it is complete."""
        path = self.path / name
        if path.parent != self.path and path.parent.is_symlink():
            raise UsageError(f"{path.parent}: is a link", "Remove it, or use another --save-dir.")
        with disk_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(path) as file:
            write_all(file, content)

    def check_shards(self) -> None:
        """Check that the other ranks have written their shards into this same folder.

        Raises:
            UsageError: a shard is missing.
        """
        for name, size in self._planned.items():
            if not _becomes_visible(partial(is_file_of_size, self.path / name, size)):
                raise _not_shared(self.path, name)

    def complete(self) -> None:
        """Remove the journal: everything is in place."""
        with disk_errors(self.path):
            (self.path / JOURNAL).unlink()
        self.close()

    def close(self) -> None:
        """Unlock the folder, complete or not."""
        if self._lock is not None:
            self._lock.release()


def _read_journal(path: Path) -> tuple[bytes, dict[str, WrittenShard]]:
    """Return the journal's first line and the shards that it lists; empty without a journal."""
    try:
        with open_regular(path) as file:
            header, *lines = file.read(_MAX_JOURNAL_BYTES).split(b"\n", _MAX_JOURNAL_LINES)
    except OSError:
        return b"", {}
    if not lines:  # a crash cut it off, as it may cut off the last line
        return b"", {}
    journaled = filter(None, map(_journaled_shard, lines[:-1]))
    return header, {shard.filename: shard for shard in journaled}


def _holds_content(path: Path, content: bytes | None) -> bool:
    """Return whether `path` is a regular file with this content."""
    try:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            return content is not None and size == len(content) and file.read(size) == content
    except OSError:
        return False


def _journaled_shard(line: bytes) -> WrittenShard | None:
    """Parse a line of the journal; return None if a crash or an editor has damaged it."""
    try:
        shard = WrittenShard(**json.loads(line))
    except (ValueError, TypeError, RecursionError):
        return None
    return shard if isinstance(shard.filename, str) else None


def _journal_line(shard: WrittenShard) -> bytes:
    entry = {"filename": shard.filename, "size": shard.size, "sha256": shard.sha256}
    return json.dumps(entry).encode()


def check_shared(path: Path) -> None:
    """Raise UsageError if `path` is not the folder that rank 0 opened."""
    if not _becomes_visible((path / JOURNAL).exists):
        raise _not_shared(path, JOURNAL)


def journal_shard(path: Path, shard: WrittenShard) -> None:
    """Record in the journal of the folder `path` that a shard is complete; any rank may call it."""
    flags = os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    with disk_errors(path / JOURNAL), FileIO(os.open(path / JOURNAL, flags), "ab") as file:
        file.write(_journal_line(shard) + b"\n")  # in one write: other ranks append too
        os.fsync(file.fileno())


def _not_shared(path: Path, name: str) -> UsageError:
    return UsageError(
        f"{path}: not the same folder on all ranks: {name} is missing",
        "Use a --save-dir on a disk that all machines share.",
    )


def _becomes_visible(is_visible: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + _VISIBLE_WITHIN_SECONDS
    while not is_visible():
        if time.monotonic() > deadline:
            return False
        time.sleep(_POLL_SECONDS)
    return True
