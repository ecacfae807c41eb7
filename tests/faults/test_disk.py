"""A disk that fails, fills up or is read-only: one error, and a rerun completes the folder."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import hubmerge
from hubmerge import errors
from hubmerge.conversion import output_folder
from tests.support.faults.calls import WRITES, at_each, failing
from tests.support.faults.conversion import (
    REPOSITORY,
    SHARD_SIZE,
    assert_honest,
    assert_rerun_completes,
    calls_of_a_run,
    command,
    content,
    convert,
    failure,
    push,
    source,
    wanted,
)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
def test_any_failing_write_ends_well(number: int, tmp_path: Path) -> None:
    """Disk full, or an error, at each call that changes the disk: one error; a rerun completes."""
    calls = calls_of_a_run(WRITES, tmp_path / "count")
    assert set(calls) == set(WRITES)
    for count in range(len(calls)):
        out = tmp_path / str(count)
        with at_each(WRITES, failing(count, number)):
            error = failure(out)
        if error is None:
            # Removing is always possible here, and the journal's end is the last of the run.
            assert set(calls[count:]) == {"unlink"}
        else:
            assert os.strerror(number) in str(error)
            assert error.hint
            assert error.exit_code == (7 if number == errno.ENOSPC else 1), calls[count]
        assert_honest(out)
        assert not list(out.glob("*.partial"))
        assert_rerun_completes(out)


def _fails(words: list[str]) -> bool:
    return subprocess.run(words, capture_output=True, check=False).returncode != 0


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """A real filesystem; call it to say how many bytes it has."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    if shutil.which("mount") is None or _fails(mount):
        pytest.skip("nothing can be mounted here; test_any_failing_write_ends_well covers it")

    def resize(size_bytes: int) -> Path:
        command = ["mount", "-o", f"remount,size={size_bytes}", str(folder)]
        subprocess.run(command, check=True, capture_output=True)
        return folder

    yield resize
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_disk_without_room_is_refused_before_the_first_write(
    small_disk: Callable[[int], Path],
) -> None:
    """Needed and free bytes are named, and nothing is created."""
    folder = small_disk(300_000)
    free = shutil.disk_usage(folder).free
    with pytest.raises(errors.InsufficientSpaceError) as refusal:
        convert(folder / "out")
    needed = sum(map(len, wanted().values()))
    assert f"{needed:,} bytes are needed" in str(refusal.value)
    assert f"{free:,} are free" in str(refusal.value)
    assert not (folder / "out").exists()


def test_a_real_disk_fills_at_any_place(
    small_disk: Callable[[int], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever file the disk has no room for, the run says so, and goes on when there is room."""
    monkeypatch.setattr(output_folder, "check_space", lambda *_args: None)
    needed = sum(map(len, wanted().values()))
    filled = 0
    for number, room in enumerate([*range(4096, needed + 8192, 24_576), 12_288, 16_384]):
        out = small_disk(4 * needed) / str(number)
        small_disk(room)
        error = failure(out)
        filled += isinstance(error, errors.InsufficientSpaceError)
        assert error is None or ("full" in str(error) and "rerun" in error.hint)
        assert_honest(out)
        small_disk(4 * needed)
        assert_rerun_completes(out)
        shutil.rmtree(out)
    assert filled > 20


def test_room_for_a_shard_is_set_aside_before_it_is_written(
    small_disk: Callable[[int], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A shard that would not fit is refused without one byte of it written; no size is feigned."""
    monkeypatch.setattr(output_folder, "check_space", lambda *_args: None)
    folder = small_disk(4_000_000)
    room, sizes = [], []

    class Watched(hubmerge.Progress):
        def converted(self, size_bytes: int) -> None:
            for path in folder.glob("out/*.partial"):
                room.append(path.stat().st_blocks * 512)
                sizes.append(path.stat().st_size)

    convert(folder / "out", progress=Watched())
    shard_bytes = len(wanted()["model-00001-of-00003.safetensors"])
    assert min(room) >= shard_bytes
    assert min(sizes) < shard_bytes
    shutil.rmtree(folder / "out")
    room.clear()
    small_disk(shard_bytes // 2)
    with pytest.raises(errors.InsufficientSpaceError, match=r"model-00001-of-00003.*full"):
        convert(folder / "out", progress=Watched())
    assert not room


def test_a_disk_that_takes_no_such_file(tmp_path: Path) -> None:
    """A limit on a file's size is not a full disk, and a smaller shard size is the way out."""
    out = tmp_path / "out"
    limited = f'ulimit -f {SHARD_SIZE // 2048}; exec "$@"'
    arguments = ["bash", "-c", limited, "bash", *command(*push(source(), out))]
    failed = subprocess.run(arguments, capture_output=True, text=True, check=False, cwd=REPOSITORY)
    assert failed.returncode == errors.InsufficientSpaceError.exit_code
    assert "does not allow a file of this size" in failed.stderr
    assert "--shard-size" in failed.stderr
    assert not list(out.glob("*.safetensors*"))


def test_a_read_only_source_is_enough(small_disk: Callable[[int], Path], tmp_path: Path) -> None:
    """A checkpoint on a read-only disk converts elsewhere; into itself, the error says why not."""
    disk = small_disk(4_000_000)
    copy = shutil.copytree(source(), disk / "checkpoint")
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    convert(tmp_path / "out", load_dir=copy)
    assert content(tmp_path / "out").keys() == wanted().keys()
    with pytest.raises(hubmerge.HubmergeError, match="Read-only file system"):
        hubmerge.convert(copy)
    # That folder name says the step; the card of a copy is another.
    assert all(data == wanted()[name] for name, data in content(tmp_path / "out").items())


def test_permissions_follow_the_umask(tmp_path: Path) -> None:
    """Every file is readable to whom the umask lets, and no file is executable."""
    for umask, mode in ((0o022, 0o644), (0o077, 0o600), (0o002, 0o664)):
        before = os.umask(umask)
        try:
            convert(tmp_path / str(umask))
        finally:
            os.umask(before)
        modes = {path.stat().st_mode & 0o777 for path in (tmp_path / str(umask)).iterdir()}
        assert modes == {mode}


def test_no_fault_touches_the_source(tmp_path: Path) -> None:
    """After all of this, the checkpoint has the bytes and times that it had."""
    folder = source()

    def state() -> dict[str, tuple[str, int]]:
        return {p.name: (hashlib.sha256(p.read_bytes()).hexdigest(), p.stat().st_mtime_ns)
                for p in [folder, *folder.iterdir()] if p.is_file()}  # fmt: skip

    before, changed = state(), folder.stat().st_mtime_ns
    with at_each(WRITES, failing(9, errno.EIO)):
        assert failure(tmp_path / "out") is not None
    assert state() == before
    assert folder.stat().st_mtime_ns == changed
