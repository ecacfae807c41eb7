"""The local folder that holds finished shards until they are uploaded.

Everything that hubmerge writes there is in a subfolder of its own, so that a folder which holds
other files loses none of them. One run at a time uses it. What a run that dies leaves in it:

    1. the lock and the empty subfolder               nothing of the model
    2. NAME.partial, growing, then NAME               a shard that the Hub does not have
    3. NAME, while it is uploaded and committed       a shard that the Hub may or may not have
    4. NAME is deleted once the Hub lists it (if      no shard: the staging branch holds it
       several share a commit, once it is uploaded:   (or the Hub holds its content, which the
       one that is lost then is converted again)      next run finds out, or uploads again)
    5. subfolder and lock are removed                 nothing

The next run never trusts what it finds there: it empties the subfolder, asks the Hub what the
staging branch holds, and converts the rest again, to the same bytes.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from hubmerge.errors import HubmergeError, InsufficientSpaceError, UnsafeInputError, UsageError
from hubmerge.planning.plan import Plan
from hubmerge.system.disk import FolderLock, check_space, disk_errors
from hubmerge.system.ranks import Ranks

_STAGED, _LOCK = "hubmerge-staged", ".hubmerge.lock"


def staging_cap(plan: Plan, max_disk: int | None, ranks: Ranks) -> int:
    """Return the bytes that this process may stage at a time: its share of its machine's.

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


def check_outside_checkpoint(chosen: Path | None, plan: Plan) -> None:
    """Raise UsageError if shards would be staged inside the checkpoint."""
    if chosen is not None and chosen.resolve().is_relative_to(plan.checkpoint.folder.resolve()):
        raise UsageError(
            f"{chosen}: lies in the checkpoint, which is never modified",
            "Use another --staging-dir.",
        )


def staging_root(chosen: Path | None, needed_bytes: int, fingerprint: str) -> Path:
    """Return where to stage; raise as `staging_folder` does. Nothing is created."""
    root = chosen or _temporary_root(needed_bytes, fingerprint)
    if root.exists() and not root.is_dir():
        raise UsageError(f"{root}: not a directory", "Use another --staging-dir.")
    check_space(root, needed_bytes, "--staging-dir")
    return root


@contextmanager
def staging_folder(
    chosen: Path | None, needed_bytes: int, fingerprint: str, rank: int
) -> Iterator[Path]:
    """Yield an empty, locked folder on a disk with enough space; remove it afterwards.

    Args:
        chosen: the user's choice; None for a temporary folder on a disk with enough space.

    Raises:
        InsufficientSpaceError: no disk has that much space.
        UsageError: it is not a directory, or another run uses it.
    """
    root = staging_root(chosen, needed_bytes, fingerprint)
    with disk_errors(root):
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
    if chosen is None:
        _check_owner(root)
    folder = root / f"{_STAGED}-{rank}"
    lock_path = root / f"{_LOCK}-{rank}"
    with FolderLock(lock_path, "--staging-dir"):
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


def staging_note(root: Path, chosen: Path | None) -> str:
    """Return where shards are staged, and why if it is not the usual place."""
    usual = next(_temporary_places(), root.parent)
    why = "" if chosen is not None or root.parent == usual else f": {usual} has too little space"
    return f"staging shards in {root}{why}"


def _temporary_root(needed_bytes: int, fingerprint: str) -> Path:
    """Return a folder for temporary files on a disk with enough space.

    A rerun gets the same name: each of its processes removes what the killed process of its rank
    left there.
    """
    free_bytes: dict[Path, int] = {}
    for place in _temporary_places():
        with suppress(OSError):
            free_bytes[place] = shutil.disk_usage(place).free
            if free_bytes[place] >= needed_bytes:
                return place / _root_name(fingerprint)
    found = ", ".join(f"{place}: {free:,}" for place, free in free_bytes.items())
    raise InsufficientSpaceError(
        f"no disk has the {needed_bytes:,} bytes free that staging needs ({found})",
        "Use --staging-dir on a disk with more space, a smaller --shard-size, or a lower "
        "--max-disk.",
    )


def _root_name(fingerprint: str) -> str:
    return f"hubmerge-{os.getuid()}-{fingerprint[:16]}"


def _temporary_places() -> Iterator[Path]:
    """Yield the folders to consider for temporary files, the best first."""
    finders: list[Callable[[], Path]] = [lambda: Path(tempfile.gettempdir()), Path.cwd, Path.home]
    for find in finders:
        # Python raises if the working folder was removed, or if the user has no home.
        with suppress(OSError, RuntimeError):
            place = find()
            if place.is_dir():
                yield place


def remove_leftovers(fingerprint: str, ranks: Ranks) -> None:
    """Remove what killed runs left in temporary folders: of other models, of more ranks.

    One process on each machine does it. A run that is still going holds its lock.
    """
    if ranks.rank % ranks.local_count:
        return
    for root in (found for place in _temporary_places() for found in place.glob(_root_name("*"))):
        with suppress(OSError):
            if root.is_symlink() or root.stat().st_uid != os.getuid():
                continue
            for lock in root.glob(f"{_LOCK}-*"):
                number = lock.name.removeprefix(f"{_LOCK}-")
                is_ours = root.name == _root_name(fingerprint) and number.isdecimal()
                if not (is_ours and int(number) < ranks.count):
                    with suppress(HubmergeError), FolderLock(lock, "--staging-dir"):
                        shutil.rmtree(root / f"{_STAGED}-{number}", ignore_errors=True)
                        lock.unlink(missing_ok=True)
            root.rmdir()


def _check_owner(root: Path) -> None:
    """Raise UnsafeInputError if somebody else has put something there under our name."""
    if root.is_symlink() or root.stat().st_uid != os.getuid():
        raise UnsafeInputError(f"{root}: belongs to another user", "Use --staging-dir.")
