"""The local folder in which finished shards stand until they are uploaded.

All that hubmerge writes there is in a subfolder of its own, so that a folder which holds other
things loses none of them. One run at a time uses it. What a run that dies leaves in it:

    1. the lock and the empty subfolder               nothing of the model
    2. NAME.partial, growing, then NAME               a shard that the Hub does not have
    3. NAME, while it is uploaded and committed       a shard that the Hub may have, or not
    4. NAME is deleted, after the Hub's listing       no shard: the staging branch holds it
       showed it (or, of many, after its upload:      (or the Hub holds its content, which the
       then one that the Hub lacks is made again)     next run finds out, or uploads again)
    5. subfolder and lock are removed                 nothing

The next run never trusts what it finds there: it empties the subfolder, asks the staging branch
what the Hub holds, and converts the rest again, to the same bytes.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from hubmerge.conversion.output_folder import check_room
from hubmerge.conversion.shard_writer import disk_errors
from hubmerge.errors import HubmergeError, InsufficientSpaceError, UnsafeInputError, UsageError
from hubmerge.planning.plan import Plan
from hubmerge.system.ranks import Ranks

_STAGED, _LOCK = "hubmerge-staged", ".hubmerge.lock"


def staging_cap(plan: Plan, max_disk: int | None, ranks: Ranks) -> int:
    """Bytes that this process may stage at a time: its part of what its machine may.

    Raises:
        UsageError: that is less than one shard.
    """
    largest = max(shard.size_bytes for shard in plan.shards)
    if max_disk is None:
        return 2 * largest
    cap_bytes = max_disk // ranks.local_count
    if cap_bytes < largest:
        each = f" for each of {ranks.local_count} processes" if ranks.local_count > 1 else ""
        raise UsageError(
            f"--max-disk {max_disk:,} is less than one shard of {largest:,} bytes{each}",
            f"Use at least {largest * ranks.local_count}, or a smaller --shard-size.",
        )
    return cap_bytes


def refuse_in_checkpoint(chosen: Path | None, plan: Plan) -> None:
    """Raises UsageError where shards would be staged inside the checkpoint."""
    if chosen is not None and chosen.resolve().is_relative_to(plan.checkpoint.folder.resolve()):
        raise UsageError(
            f"{chosen}: is in the checkpoint, which is never changed", "Use another --staging-dir."
        )


def staging_root(chosen: Path | None, needed_bytes: int, fingerprint: str) -> Path:
    """Where to stage; errors as of `staging_folder`. Nothing is created."""
    root = chosen or _temporary_root(needed_bytes, fingerprint)
    if root.exists() and not root.is_dir():
        raise UsageError(f"{root}: is no folder", "Use another --staging-dir.")
    check_room(root, needed_bytes, "--staging-dir")
    return root


@contextmanager
def staging_folder(
    chosen: Path | None, needed_bytes: int, fingerprint: str, rank: int
) -> Iterator[Path]:
    """An empty folder with so much room, locked, and gone afterwards.

    Args:
        chosen: what the user says; None for a temporary folder on a disk with room.

    Raises:
        InsufficientSpaceError: no disk has that room.
        UsageError: it is no folder, or another run uses it.
    """
    root = staging_root(chosen, needed_bytes, fingerprint)
    with disk_errors(root):
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
    if chosen is None:
        _check_owner(root)
    folder = root / f"{_STAGED}-{rank}"
    lock_path = root / f"{_LOCK}-{rank}"
    with _lock(lock_path, root):
        try:
            with disk_errors(folder):
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir(mode=0o700)
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            lock_path.unlink(missing_ok=True)
            if chosen is None:
                with suppress(OSError):  # another rank's files may still be there
                    root.rmdir()


@contextmanager
def _lock(path: Path, root: Path) -> Iterator[None]:
    with disk_errors(path):
        file: IO[bytes] = open(path, "ab")  # noqa: SIM115 - held, as a lock
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The run that had it may have removed it between our opening and our locking it.
            is_current = path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat())
        except OSError:
            is_current = False
        if not is_current:
            raise UsageError(
                f"{root}: another run stages its shards here",
                "Wait for it, or use another --staging-dir.",
            )
        yield


def _temporary_root(needed_bytes: int, fingerprint: str) -> Path:
    """A folder for temporary files on a disk with room.

    Its name is the same for a rerun, each of whose processes removes what the process of its rank
    left there if it was killed.
    """
    free_bytes: dict[Path, int] = {}
    for place in _places():
        with suppress(OSError):
            free_bytes[place] = shutil.disk_usage(place).free
            if free_bytes[place] >= needed_bytes:
                return place / _root_name(fingerprint)
    found = ", ".join(f"{place}: {free:,}" for place, free in free_bytes.items())
    raise InsufficientSpaceError(
        f"no disk has the {needed_bytes:,} bytes free that staging needs ({found})",
        "Use --staging-dir on a disk with room, a smaller --shard-size, or a lower --max-disk.",
    )


def _root_name(fingerprint: str) -> str:
    return f"hubmerge-{os.getuid()}-{fingerprint[:16]}"


def _places() -> Iterator[Path]:
    """The folders for temporary files, the best first."""
    finders: list[Callable[[], Path]] = [lambda: Path(tempfile.gettempdir()), Path.cwd, Path.home]
    for find in finders:
        # A folder that was removed, and the home of a user whom the machine does not know, cannot
        # be told: Python raises.
        with suppress(OSError, RuntimeError):
            place = find()
            if place.is_dir():
                yield place


def remove_leftovers(fingerprint: str, ranks: Ranks) -> None:
    """Remove what runs that were killed left in temporary folders: of other models, of more ranks.

    One process of each machine does it. Of a run that goes on, the lock tells.
    """
    if ranks.rank % ranks.local_count:
        return
    for root in (found for place in _places() for found in place.glob(_root_name("*"))):
        with suppress(OSError):
            if root.is_symlink() or root.stat().st_uid != os.getuid():
                continue
            for lock in root.glob(f"{_LOCK}-*"):
                number = lock.name.removeprefix(f"{_LOCK}-")
                is_ours = root.name == _root_name(fingerprint) and number.isdecimal()
                if not (is_ours and int(number) < ranks.count):
                    with suppress(HubmergeError), _lock(lock, root):
                        shutil.rmtree(root / f"{_STAGED}-{number}", ignore_errors=True)
                        lock.unlink(missing_ok=True)
            root.rmdir()


def _check_owner(root: Path) -> None:
    """Raises UnsafeInputError where somebody else put something there under our name."""
    if root.is_symlink() or root.stat().st_uid != os.getuid():
        raise UnsafeInputError(f"{root} belongs to another user", "Use --staging-dir.")
