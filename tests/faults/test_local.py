"""Local faults: disks that fill, files that lie, processes that die; every run ends well."""

from __future__ import annotations

import errno
import fcntl
import functools
import hashlib
import importlib
import json
import os
import random
import shutil
import signal
import socket
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch

import hubmerge
from hubmerge import api, errors
from hubmerge.conversion import output_folder
from hubmerge.system import ranks
from tests.support.checkpoints.cases_plain import save_alone
from tests.support.faults.calls import READS, WRITES, at_each, dying, failing, in_child
from tests.support.faults.foreign import FOREIGN

REPOSITORY = Path(__file__).parents[2]
SHARD_SIZE = 200_000
INDEX = "model.safetensors.index.json"
JOURNAL = ".hubmerge.journal"
FIRST_KEY = "model.model.a.weight"
DATA_FILE = "__0_0.distcp"
TOKEN = "hf_" + "CaNaRy" * 6


# ---- One honest checkpoint, and the folder that it must become ----


@functools.cache
def scratch() -> Path:
    """A folder that lives as long as this process."""
    scratch.keep = TemporaryDirectory(prefix="hubmerge-faults-")  # type: ignore[attr-defined]
    return Path(scratch.keep.name)  # type: ignore[attr-defined]


def first_tensor() -> torch.Tensor:
    """The tensor of `FIRST_KEY`."""
    return torch.randn(300, 300, generator=torch.Generator().manual_seed(1))


@functools.cache
def source() -> Path:
    """A checkpoint of three shards."""
    folder = scratch() / "checkpoint"
    model = {f"model.{n}.weight": first_tensor() + i for i, n in enumerate("abc")}
    save_alone(folder, {"model": model, "optimizer": {"step": 7}})
    return folder


@functools.cache
def assets() -> Path:
    """A config that only has to be copied."""
    folder = scratch() / "assets"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "unknown", "dtype": "float32"}')
    return folder


def convert(save_dir: Path, **options: Any) -> hubmerge.ConvertResult:
    """Convert the honest checkpoint, or another."""
    load_dir = options.pop("load_dir", source())
    return hubmerge.convert(load_dir, save_dir, shard_size=SHARD_SIZE,
                            model_assets_dir=assets(), **options)  # fmt: skip


def failure(save_dir: Path, **options: Any) -> hubmerge.HubmergeError | None:
    """Convert; the error that this ended with, or None."""
    try:
        convert(save_dir, **options)
    except hubmerge.HubmergeError as error:
        return error
    return None


def content(folder: Path) -> dict[str, bytes]:
    """All files of a folder, by name."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@functools.cache
def wanted() -> dict[str, bytes]:
    """The folder of a run that nothing disturbed."""
    convert(scratch() / "wanted")
    found = content(scratch() / "wanted")
    assert len([name for name in found if name.endswith(".safetensors")]) == 3
    return found


def assert_honest(folder: Path) -> None:
    """After a fault: no final name on an incomplete file, and an index only beside all shards."""
    if not folder.exists():
        return
    found = content(folder)
    for name, data in found.items():
        if not name.endswith(".partial") and name != JOURNAL:
            assert data == wanted()[name], f"{name} is not what it must be"
    if INDEX in found:
        assert found.keys() - {JOURNAL} == wanted().keys()


def assert_rerun_completes(folder: Path) -> None:
    """The same call again gives the same bytes, keeps finished shards, removes what is partial."""
    finished = {path: path.stat().st_mtime_ns for path in folder.glob("*.safetensors")}
    journal = folder / JOURNAL
    noted = journal.read_text() if journal.exists() else ""
    assert (folder / INDEX).exists() <= (len(finished) == 3)
    if (folder / INDEX).exists() and not noted:
        assert content(folder) == wanted()  # it was complete
        return
    convert(folder)
    assert content(folder) == wanted()
    for path, changed in finished.items():
        if f'"{path.name}"' in noted:
            assert path.stat().st_mtime_ns == changed, f"{path.name} was written again"


def calls_of_a_run(names: tuple[str, ...], folder: Path) -> list[str]:
    """The calls that a run makes that nothing disturbs."""
    wanted()
    with at_each(names, lambda _name, _count: None) as calls:
        convert(folder)
    return calls


# ---- Writing ----


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
    monkeypatch.setattr(output_folder, "check_room", lambda *_args: None)
    needed = sum(map(len, wanted().values()))
    filled = 0
    for number, room in enumerate([*range(4096, needed + 8192, 24_576), 12_288, 16_384]):
        out = small_disk(4 * needed) / str(number)
        small_disk(room)
        error = failure(out)
        filled += isinstance(error, errors.InsufficientSpaceError)
        assert error is None or ("full" in str(error) and "again" in error.hint)
        assert_honest(out)
        small_disk(4 * needed)
        assert_rerun_completes(out)
        shutil.rmtree(out)
    assert filled > 20


def test_room_for_a_shard_is_set_aside_before_it_is_written(
    small_disk: Callable[[int], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A shard that would not fit is refused without one byte of it written; no size is feigned."""
    monkeypatch.setattr(output_folder, "check_room", lambda *_args: None)
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
    assert "takes no file of that size" in failed.stderr
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


# ---- Reading ----


def test_any_failing_read_names_file_and_tensor(tmp_path: Path) -> None:
    """An error at each read of a data file: exit 3, the file named, nothing half done."""
    calls = calls_of_a_run(READS, tmp_path / "count")
    assert len(calls) > 6
    named = 0
    for count in range(len(calls)):
        out = tmp_path / str(count)
        with (
            at_each(READS, failing(count, errno.EIO)),
            pytest.raises(errors.DamagedFileError) as refusal,
        ):
            convert(out)
        assert DATA_FILE in str(refusal.value)
        assert os.strerror(errno.EIO) in str(refusal.value)
        named += "while reading 'model.model." in str(refusal.value)
        assert_honest(out)
        assert not list(out.glob("*.partial"))
        assert_rerun_completes(out)
    assert named >= 6  # all but the samples that name the checkpoint


def damaged(tmp_path: Path) -> Path:
    """A copy of the checkpoint to damage."""
    return Path(shutil.copytree(source(), tmp_path / "damaged"))


def record_of(folder: Path, key: str) -> tuple[int, int]:
    """Where a tensor's record begins and how long it is, by torch's own reading."""
    from torch.distributed.checkpoint import FileSystemReader

    stored = FileSystemReader(folder).read_metadata().storage_data
    info = next(info for index, info in stored.items() if index.fqn == key)
    return info.offset, info.length


@pytest.mark.parametrize("left", [0, 1, 1000, 300_000, 700_000, -1])
def test_a_truncated_file_is_named_with_its_tensor_and_bytes(left: int, tmp_path: Path) -> None:
    """A data file cut off anywhere: file, tensor, expected and actual bytes, before any write."""
    folder = damaged(tmp_path)
    whole = (folder / DATA_FILE).stat().st_size
    size = left if left >= 0 else whole + left
    os.truncate(folder / DATA_FILE, size)
    with pytest.raises(errors.DamagedFileError) as refusal:
        convert(tmp_path / "out", load_dir=folder)
    text = str(refusal.value)
    assert refusal.value.exit_code == 3
    assert text.startswith(f"{DATA_FILE}: the file is too short, while reading 'model.model.")
    assert f"(expected {whole:,} bytes, found {size:,})" in text
    assert not (tmp_path / "out").exists()


def test_only_what_the_model_needs_must_be_there(tmp_path: Path) -> None:
    """The optimizer's records stand last in the file, and are cut off."""
    model = {"model.a.weight": first_tensor()}
    save_alone(tmp_path / "c", {"model": model, "optimizer": {"z": torch.randn(300, 300)}})
    offset, length = record_of(tmp_path / "c", FIRST_KEY)
    assert record_of(tmp_path / "c", "optimizer.z")[0] >= offset + length
    os.truncate(tmp_path / "c" / DATA_FILE, offset + length)
    result = hubmerge.convert(tmp_path / "c", tmp_path / "out")
    assert result.total_parameters == 300 * 300


def test_a_later_save_that_was_cut_off_is_said(tmp_path: Path) -> None:
    """`.metadata` is the older save's, and the data files may be the newer one's."""
    folder = shutil.copytree(source(), tmp_path / "c")
    assert not any("cut off" in warning for warning in api.plan(folder)[0].warnings)
    (folder / ".metadata.tmp").write_bytes(b"")
    assert any("cut off" in warning for warning in api.plan(folder)[0].warnings)


@pytest.mark.parametrize(
    "wrong", [["--shard-size", "0"], ["--shard-size", "2 EB"], ["--save-dir", ""],
              ["--load-dir", ""], ["--model-assets-dir", ""]]
)  # fmt: skip
def test_an_option_that_cannot_be_used_is_exit_2(wrong: list[str], tmp_path: Path) -> None:
    """An empty path (a variable that is not set) is not the current folder."""
    done = run(*push(source(), tmp_path / "out"), *wrong)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "option", [["--tag", "v1"], ["--private"], ["--create-pr"], ["--max-disk", "1GB"]]
)  # fmt: skip
def test_what_only_a_push_does_needs_a_push(option: list[str], tmp_path: Path) -> None:
    """An option that would be passed over in silence is refused."""
    done = run(*push(source(), tmp_path / "out"), *option)
    assert done.returncode == 2
    assert f"{option[0]} cannot be used with --no-push" in done.stderr


def test_the_checkpoints_own_folder_is_never_written_into(tmp_path: Path) -> None:
    """Its data files could have the names of shards."""
    folder = shutil.copytree(source(), tmp_path / "c")
    before = content(folder)
    for overwrite in (False, True):
        with pytest.raises(errors.UsageError, match="checkpoint's own folder"):
            convert(folder, load_dir=folder, overwrite=overwrite)
    assert content(folder) == before


def test_a_shard_size_of_any_length_is_one(tmp_path: Path) -> None:
    """Larger than any float, and larger than the model."""
    done = run(*push(source(), tmp_path / "out", "--shard-size", "9" * 400))
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "model.safetensors").exists()


def test_a_missing_file_is_named_with_its_tensor(tmp_path: Path) -> None:
    """A data file that is not there: file, tensor and expected bytes."""
    folder = damaged(tmp_path)
    whole = (folder / DATA_FILE).stat().st_size
    (folder / DATA_FILE).unlink()
    with pytest.raises(errors.DamagedFileError) as refusal:
        convert(tmp_path / "out", load_dir=folder)
    text = str(refusal.value)
    assert text.startswith(f"{DATA_FILE}: the data file is missing, while reading 'model.model.")
    assert f"expected {whole:,} bytes" in text


def test_a_flipped_bit_in_the_structure_never_passes_for_another_tensor(tmp_path: Path) -> None:
    """Each byte before and after the payload flipped: the right bytes, or an error, no third."""
    folder = damaged(tmp_path)
    begin, length = record_of(folder, FIRST_KEY)
    honest = (folder / DATA_FILE).read_bytes()
    record = honest[begin : begin + length]
    payload = record.index(first_tensor().numpy().tobytes())
    places = [*range(0, payload, 11), *range(payload + 360_000, length, 29)]
    refused = 0
    for number, place in enumerate(places):
        broken = bytearray(honest)
        broken[begin + place] ^= 1 << (number % 8)
        (folder / DATA_FILE).write_bytes(broken)
        out = tmp_path / "out"
        error = failure(out, load_dir=folder)
        if error is not None:
            refused += 1
            assert error.exit_code in (3, 4)
            assert DATA_FILE in str(error)
            assert not (out / INDEX).exists()
        else:
            for name, data in content(out).items():
                assert name == "README.md" or data == wanted()[name], place
        shutil.rmtree(out, ignore_errors=True)
    assert refused > 20


def test_an_interrupted_save_is_no_checkpoint(tmp_path: Path) -> None:
    """`.metadata.tmp` without `.metadata` says so, and is not read."""
    folder = damaged(tmp_path)
    (folder / ".metadata").rename(folder / ".metadata.tmp")
    with pytest.raises(errors.NotACheckpointError, match=r"interrupted.*\.metadata\.tmp"):
        convert(tmp_path / "out", load_dir=folder)
    assert not (tmp_path / "out").exists()


# ---- Dying ----


def test_killed_at_any_call_a_rerun_completes(tmp_path: Path) -> None:
    """kill -9 before each call that changes the disk: nothing lies, and the same call resumes."""
    calls = calls_of_a_run(WRITES, tmp_path / "count")
    for count in range(len(calls)):
        out = tmp_path / str(count)

        def run(count: int = count, out: Path = out) -> None:
            with at_each(WRITES, dying(count)):
                convert(out)

        assert in_child(run) == -signal.SIGKILL, calls[count]
        assert_honest(out)
        assert_rerun_completes(out)


def test_killed_at_any_time_a_rerun_completes(tmp_path: Path) -> None:
    """kill -9 at twenty random times."""
    wanted()
    dice = random.Random(20)
    killed = 0
    for number in range(20):
        out = tmp_path / str(number)
        child = os.fork()
        if child == 0:
            convert(out)
            os._exit(0)
        time.sleep(dice.uniform(0, 0.06))
        os.kill(child, signal.SIGKILL)
        killed += os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != 0
        assert_honest(out)
        assert_rerun_completes(out)
    assert killed


class Paused(hubmerge.Progress):
    """Stops for ever in the middle of a shard, and says so through a pipe."""

    def __init__(self, pipe: int) -> None:
        self.pipe = pipe

    def converted(self, size_bytes: int) -> None:
        os.write(self.pipe, b"x")
        time.sleep(60)


def test_two_runs_on_one_folder(tmp_path: Path) -> None:
    """The second run is refused while the first works; when that is dead, it takes over."""
    wanted()
    out = tmp_path / "out"
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        convert(out, progress=Paused(write))
        os._exit(0)
    try:
        assert os.read(read, 1) == b"x"
        # The first may still write what it has converted.
        (partial,) = out.glob("*.partial")
        before = content(out) | {partial.name: b""}
        for overwrite in (False, True):
            with pytest.raises(errors.UsageError, match="another run"):
                convert(out, overwrite=overwrite)
        assert content(out) | {partial.name: b""} == before
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert list(out.glob("*.partial"))
    assert_rerun_completes(out)


# ---- A folder that is already in use ----


def test_another_model_is_only_replaced_on_demand(tmp_path: Path) -> None:
    """Without --overwrite the older model stays, byte for byte; with it, none of it is left."""
    out = tmp_path / "out"
    hubmerge.convert(source(), out, shard_size=100)
    (out / "mine.txt").write_text("mine")
    (out / "model-00009-of-00009.safetensors").write_bytes(b"older")
    before = content(out)
    with pytest.raises(errors.UsageError, match="already holds a model") as refusal:
        convert(out)
    assert "--overwrite" in refusal.value.hint
    assert content(out) == before
    convert(out, overwrite=True)
    assert content(out) == wanted() | {"mine.txt": b"mine"}


@pytest.mark.parametrize(
    "name",
    ["model.safetensors", INDEX, "model-00001-of-00002.safetensors", "pytorch_model.bin",
     "pytorch_model-00001-of-00002.bin", "pytorch_model.bin.index.json", "adapter_model.bin"],
)  # fmt: skip
@pytest.mark.parametrize("is_cut_off", [False, True])
def test_any_model_is_only_replaced_on_demand(name: str, is_cut_off: bool, tmp_path: Path) -> None:
    """Also one of the older form, and one that was put where another plan's run was cut off."""
    if is_cut_off:
        folder = damaged(tmp_path)
        (folder / DATA_FILE).write_bytes(bytes((folder / DATA_FILE).stat().st_size))
        assert failure(tmp_path / "out", load_dir=folder, dtype="float32")
        assert (tmp_path / "out" / JOURNAL).read_bytes()
    else:
        (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).write_bytes(b"mine")
    before = content(tmp_path / "out")
    with pytest.raises(errors.UsageError, match=f"already holds a model \\({name}\\)"):
        convert(tmp_path / "out")
    assert content(tmp_path / "out") == before
    convert(tmp_path / "out", overwrite=True)
    assert content(tmp_path / "out") == wanted()


@pytest.mark.parametrize("name", [INDEX, "README.md", JOURNAL])
@pytest.mark.parametrize("kind", ["pipe", "endless", "broken", "folder"])
def test_what_is_no_file_is_neither_read_nor_replaced(name: str, kind: str, tmp_path: Path) -> None:
    """A folder that came with a checkpoint may hold anything: refused at once."""
    out = tmp_path / "out"
    out.mkdir()
    if name == INDEX:
        (out / JOURNAL).write_bytes(b"x\n")
    match kind:
        case "pipe":
            os.mkfifo(out / name)
        case "endless":
            (out / name).symlink_to("/dev/zero")
        case "broken":
            (out / name).symlink_to(tmp_path / "nowhere")
        case "folder":
            (out / name).mkdir()
    done = subprocess.run(command(*push(source(), out)), capture_output=True, text=True, timeout=30,
                          check=False, cwd=REPOSITORY)  # fmt: skip
    assert done.returncode in {1, 2}
    assert name in done.stderr
    assert "defect" not in done.stderr
    assert not list(out.glob("*.safetensors"))


def test_no_file_of_the_users_is_replaced_unasked(tmp_path: Path) -> None:
    """A project's own README or config: refused before any write; --overwrite replaces it."""
    for name in ("README.md", "config.json"):
        out = tmp_path / name
        out.mkdir()
        (out / name).write_text("{}")
        with pytest.raises(errors.UsageError, match=rf"{name}: is there already") as refusal:
            convert(out)
        assert "--overwrite" in refusal.value.hint
        assert content(out) == {name: b"{}"}
        convert(out, overwrite=True)
        assert content(out) == wanted()
    same = tmp_path / "same"
    same.mkdir()
    shutil.copy(assets() / "config.json", same)  # it says float32
    hubmerge.convert(source(), same, dtype="float32", model_assets_dir=assets())


def test_the_older_models_tokenizer_goes_with_it(tmp_path: Path) -> None:
    """Replaced by a model with a config, nothing of the older one is left to be loaded."""
    convert(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("{}")
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates" / "tool.jinja").write_text("older")
    (tmp_path / "mine.json").write_text("{}")
    hubmerge.convert(source(), tmp_path, shard_size=SHARD_SIZE, overwrite=True)  # no config: kept
    assert (tmp_path / "tokenizer_config.json").exists()
    convert(tmp_path, overwrite=True)
    assert not list((tmp_path / "additional_chat_templates").iterdir())
    (tmp_path / "additional_chat_templates").rmdir()
    assert content(tmp_path) == wanted() | {"mine.json": b"{}"}


def test_a_changed_plan_keeps_nothing_of_the_last(tmp_path: Path) -> None:
    """After a killed run, another dtype starts afresh: no shard of the old plan is kept."""
    out = tmp_path / "out"

    def run() -> None:
        with at_each(("replace",), dying(4)):
            convert(out)

    wanted()
    assert in_child(run) == -signal.SIGKILL
    assert list(out.glob("*.safetensors"))
    convert(out, dtype="float32")
    convert(tmp_path / "fresh", dtype="float32")
    assert content(out) == content(tmp_path / "fresh")


@pytest.mark.parametrize("size", [0, 10, 1_000_000])
def test_a_shard_that_the_journal_names_wrongly_is_written_again(size: int, tmp_path: Path) -> None:
    """A finished shard of another size, a torn line, a link in its place: written afresh."""
    out = tmp_path / "out"

    def run() -> None:
        with at_each(("replace",), dying(5)):
            convert(out)

    wanted()
    assert in_child(run) == -signal.SIGKILL
    shards = sorted(out.glob("*.safetensors"))
    os.truncate(shards[0], size)
    with (out / JOURNAL).open("ab") as journal:
        journal.write(
            b'{"filename": "../../x", "size": 1, "sha256": ""}\n{"filename": 5}\n[]\n\xff'
        )
    convert(out)
    assert content(out) == wanted()


@pytest.mark.parametrize("name", [JOURNAL, "README.md.partial", "config.json.partial",
                                  "model-00001-of-00003.safetensors.partial",
                                  f"{INDEX}.partial"])  # fmt: skip
def test_no_link_in_the_folder_is_written_through(name: str, tmp_path: Path) -> None:
    """A checkpoint may bring its own `hf_ckpt`: what links in it point at is not touched."""
    victim, out = tmp_path / "victim", tmp_path / "out"
    victim.write_bytes(b'{"plan": "x"}\n')
    out.mkdir()
    (out / JOURNAL).write_bytes(b'{"plan": "x"}\n')
    (out / name).unlink(missing_ok=True)
    (out / name).symlink_to(victim)
    error = failure(out)
    assert (error is not None) == (name == JOURNAL)
    assert victim.read_bytes() == b'{"plan": "x"}\n'


def test_a_default_folder_that_is_a_link_is_refused(tmp_path: Path) -> None:
    """`hf_ckpt` in a checkpoint may not lead elsewhere unless the user says so."""
    folder, victim = damaged(tmp_path), tmp_path / "victim"
    victim.mkdir()
    (folder / "hf_ckpt").symlink_to(victim)
    with pytest.raises(errors.UsageError, match="is a link"):
        hubmerge.convert(folder)
    assert not list(victim.iterdir())


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


# ---- Errors that are not ours ----

PLACES = [
    (api, "locate"), (api, "read_checkpoint"), (api, "inspect_checkpoint"), (api, "prepare"),
    (api, "convert_plan"),
]  # fmt: skip


@pytest.mark.parametrize("error", FOREIGN, ids=lambda e: type(e).__name__)
def test_no_foreign_error_escapes(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is raised below, a caller sees one of our errors, with the foreign one as cause."""

    def fail(*_args: Any, **_options: Any) -> None:
        raise error

    def both() -> None:
        hubmerge.inspect(source())
        convert(scratch() / "never")

    for module, name in PLACES:
        with monkeypatch.context() as patch:
            patch.setattr(module, name, fail)
            with pytest.raises(hubmerge.HubmergeError) as raised:
                both()
        assert raised.value.__cause__ is error
        assert str(raised.value)
        assert raised.value.hint
        expected = 7 if isinstance(error, MemoryError) else 1
        assert raised.value.exit_code == expected


DEEPER = [
    ("conversion.slabs", "cast"), ("conversion.shard_writer", "_blocks"),
    ("conversion.shard_writer", "sync_folder"), ("conversion.shard_writer", "_Output.write"),
    ("conversion.to_folder", "fingerprint"), ("conversion.to_folder", "journal_shard"),
]  # fmt: skip


@pytest.mark.parametrize(("module", "name"), DEEPER)
def test_no_foreign_error_escapes_from_the_middle(
    module: str, name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The same from threads and half-written shards: nothing partial stays, the lock is free."""
    wanted()
    for number, error in enumerate(FOREIGN):

        def fail(*_args: Any, error: BaseException = error, **_options: Any) -> None:
            raise error

        with monkeypatch.context() as patch:
            *owners, attribute = name.split(".")
            owner = functools.reduce(getattr, owners, importlib.import_module(f"hubmerge.{module}"))
            patch.setattr(owner, attribute, fail)
            with pytest.raises(hubmerge.HubmergeError) as raised:
                convert(tmp_path / str(number))
        assert not list(tmp_path.glob("*/*.partial"))
        convert(tmp_path / str(number))  # though `raised` still holds the first run's frames
        assert raised.value.exit_code in (1, 7)


@pytest.mark.parametrize("text", ["\x1b[2Jx", "a\rb", "\ud800", "\x07", "\u202e", "x" * 100_000])
def test_messages_are_safe_for_a_terminal(text: str) -> None:
    """Whatever stands in a file, a message neither moves the cursor nor fills the screen."""
    shown = str(errors.HubmergeError(f"file {text}"))
    assert shown.startswith("file ")
    assert shown.isprintable()
    assert len(shown) < 5000
    shown.encode()


# ---- The command ----


def command(*arguments: str | Path, slow: bool = False) -> list[str]:
    """`hubmerge ...` as a process; `slow` sleeps at each write."""
    module = "tests.support.faults.slow" if slow else "hubmerge"
    return [sys.executable, "-m", module, *map(str, arguments)]


def run(*arguments: str | Path, **env: str) -> subprocess.CompletedProcess[str]:
    """Run the command to its end."""
    return subprocess.run(command(*arguments), capture_output=True, text=True, check=False,
                          cwd=REPOSITORY, env=os.environ | env)  # fmt: skip


def push(load_dir: Path, out: Path, *more: str) -> list[str | Path]:
    """The arguments of a conversion."""
    return ["push", "--no-push", "--load-dir", load_dir, "--save-dir", out,
            "--shard-size", str(SHARD_SIZE), *more]  # fmt: skip


@pytest.mark.parametrize(
    ("number", "code", "word"),
    [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")],
)
def test_a_signal_ends_it_soon_and_the_same_command_resumes(
    number: int, code: int, word: str, tmp_path: Path
) -> None:
    """Ctrl-C and SIGTERM: within two seconds, one line, exit 130 or 143, then it resumes."""
    out = tmp_path / "out"
    arguments = [*push(source(), out, "--quiet"), "--model-assets-dir", assets()]
    process = subprocess.Popen(command(*arguments, slow=True), stderr=subprocess.PIPE,
                               stdout=subprocess.PIPE, text=True, cwd=REPOSITORY)  # fmt: skip
    deadline = time.monotonic() + 30
    while not list(out.glob("*-00002-*.partial")) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(number)
    sent = time.monotonic()
    stdout, stderr = process.communicate(timeout=20)
    assert time.monotonic() - sent < 2
    assert process.returncode == code
    assert stdout == ""
    # click ends the line of a terminal's ^C before it.
    assert stderr.lstrip() == f"Error: {word}; the same command resumes where this run ended\n"
    assert_honest(out)
    assert (out / "model-00001-of-00003.safetensors").exists()
    again = run(*push(source(), out), "--model-assets-dir", assets())
    assert "reading the shards that a run which was cut off has finished (1)" in again.stderr
    assert "model-00001-of-00003.safetensors is already there" in again.stderr
    assert content(out) == wanted()


def ended_soon(process: subprocess.Popen[str], number: int) -> tuple[str, str]:
    """Send the signal; what the process printed, which must end within two seconds."""
    process.send_signal(number)
    sent = time.monotonic()
    stdout, stderr = process.communicate(timeout=20)
    assert time.monotonic() - sent < 2
    assert process.returncode == 128 + number
    return stdout, stderr.lstrip()  # click ends the line of a terminal's ^C before it


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_verification_soon(number: int, tmp_path: Path) -> None:
    """In the middle of hashing."""
    convert(tmp_path / "out")
    words = ["verify", "--load-dir", source(), "--save-dir", tmp_path / "out", "--shard-size",
             str(SHARD_SIZE), "--model-assets-dir", assets()]  # fmt: skip
    process = subprocess.Popen(command(*words, slow=True), stdout=subprocess.PIPE, text=True,
                               stderr=subprocess.PIPE, cwd=REPOSITORY,
                               env=os.environ | {"SLOW": "preadv"})  # fmt: skip
    assert process.stderr is not None
    assert process.stderr.readline().startswith("checking ")
    stdout, stderr = ended_soon(process, number)
    word = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}[signal.Signals(number)]
    assert stdout == ""
    assert stderr == f"Error: {word}; nothing was changed, and the same command can be run again\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_planning_soon(number: int, tmp_path: Path) -> None:
    """While transformers is imported, to check the names."""
    (tmp_path / "assets").mkdir()
    (tmp_path / "assets" / "config.json").write_text('{"model_type": "llama"}')
    words = [*push(source(), tmp_path / "out"), "--model-assets-dir", tmp_path / "assets"]
    process = subprocess.Popen(command(*words), stdout=subprocess.PIPE, text=True,
                               stderr=subprocess.PIPE, cwd=REPOSITORY)  # fmt: skip
    maps = Path(f"/proc/{process.pid}/maps")
    if not maps.exists():
        process.kill()
        pytest.skip("only /proc tells how far a process is")
    deadline = time.monotonic() + 30
    while "libtorch_cpu" not in maps.read_text() and time.monotonic() < deadline:
        time.sleep(0.01)
    stdout, stderr = ended_soon(process, number)
    assert stdout == ""
    assert stderr.endswith("; the same command resumes where this run ended\n")
    assert stderr.startswith("Error: ")
    assert not (tmp_path / "out").exists()


def test_a_process_that_torchrun_did_not_start_does_not_wait_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Started on one rank of a training job, it has that job's variables, and nobody to meet."""
    monkeypatch.setattr("hubmerge.system.ranks._START_WITHIN", timedelta(seconds=1))
    store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    variables = {
        "WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(store.port), "TORCHELASTIC_USE_AGENT_STORE": "True",
    }  # fmt: skip
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(errors.UsageError, match="not all have started") as refusal:
        ranks.current_ranks()
    assert "unset WORLD_SIZE" in refusal.value.hint


@pytest.mark.parametrize("port", ["abc", "70000", None])
def test_another_launchers_variables_are_refused(port: str | None, tmp_path: Path) -> None:
    """WORLD_SIZE without a store to meet at: said in words, and nothing is written."""
    env = {"WORLD_SIZE": "2", "RANK": "1", "MASTER_ADDR": "127.0.0.1"}
    done = run(*push(source(), tmp_path / "out"), **env, **({"MASTER_PORT": port} if port else {}))
    assert done.returncode == 2
    assert "cannot reach each other" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("arguments", [["--help"], ["push", "--help"], ["inspect", "--load-dir"]])
def test_only_a_push_has_ranks(arguments: list[str]) -> None:
    """What one process does alone waits for no other, whatever a launcher has set."""
    given = [*arguments, source()] if arguments[-1] == "--load-dir" else arguments
    done = run(*given, WORLD_SIZE="2", RANK="1", MASTER_ADDR="127.0.0.1", MASTER_PORT="1")
    assert done.returncode == 0, done.stderr
    assert done.stdout


def test_a_rank_that_dies_is_no_defect_of_ours(tmp_path: Path) -> None:
    """The job's store goes with it: the others say so, with the code for a rerun that resumes."""
    script = tmp_path / "job.py"
    script.write_text(
        "import os, sys, time\n"
        "from hubmerge.system.ranks import current_ranks\n"
        "ranks = current_ranks()\n"
        "if ranks.rank == 0:\n"
        "    time.sleep(1)\n"
        "    os._exit(9)\n"
        "from hubmerge.errors import RetriesExhaustedError\n"
        "try:\n"
        "    ranks.all_gather(1)\n"
        "except RetriesExhaustedError as error:\n"
        "    sys.exit('another process of this job has gone' not in str(error))\n"
    )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    env = os.environ | {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    job = [
        subprocess.Popen([sys.executable, script], env=env | {"RANK": str(rank)}, cwd=REPOSITORY)
        for rank in range(2)
    ]
    assert [process.wait(timeout=60) for process in job] == [9, 0]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux has it")
def test_a_log_that_is_full_does_not_end_the_work(tmp_path: Path) -> None:
    """Lines about the progress are not worth a conversion of hours."""
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command(*push(source(), tmp_path / "out")), stderr=full, check=False,
                              stdout=subprocess.PIPE, text=True, cwd=REPOSITORY)  # fmt: skip
    assert done.returncode == 0
    assert done.stdout.startswith("✓ Converted")


@pytest.mark.parametrize("shard_size", ["1000000", str(SHARD_SIZE)])
def test_a_terminal_that_goes_does_not_end_the_work(shard_size: str, tmp_path: Path) -> None:
    """The laptop is closed, the run on the node goes on."""
    ours, theirs = os.openpty()
    arguments = [*push(source(), tmp_path / "out"), "--shard-size", shard_size]
    process = subprocess.Popen(command(*arguments, slow=True), stderr=theirs,
                               stdout=subprocess.PIPE, cwd=REPOSITORY)  # fmt: skip
    os.close(theirs)
    assert os.read(ours, 1)
    os.close(ours)
    stdout, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert stdout.startswith("✓ Converted".encode())


def test_a_conversion_has_no_bar_for_uploads(tmp_path: Path) -> None:
    """On a terminal; nothing is uploaded."""
    ours, theirs = os.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("4H", 24, 80, 0, 0))  # rows, columns
    process = subprocess.Popen(command(*push(source(), tmp_path / "out")), stderr=theirs,
                               stdout=subprocess.PIPE, cwd=REPOSITORY)  # fmt: skip
    os.close(theirs)
    shown = b""
    with suppress(OSError):  # which is how a terminal's other end says that it has gone
        while piece := os.read(ours, 4096):
            shown += piece
    os.close(ours)
    process.communicate()
    assert b"Converted:" in shown
    assert b"Uploaded" not in shown


def test_json_is_all_there_is_on_stdout(tmp_path: Path) -> None:
    """A run, a dry run and an inspection print exactly one JSON object, warnings on stderr."""
    for arguments in (
        push(source(), tmp_path / "out", "--json"),
        push(source(), tmp_path / "none", "--json", "--dry-run"),
        ["inspect", "--load-dir", source(), "--json"],
    ):
        done = run(*arguments)
        assert done.returncode == 0, done.stderr
        assert isinstance(json.loads(done.stdout), dict)
        assert done.stdout.count("\n") == 1
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("debug", [False, True])
def test_errors_are_lines_without_a_traceback_or_the_token(debug: bool, tmp_path: Path) -> None:
    """`Error:` and `Hint:` on stderr, the right exit code; a traceback only with HF_DEBUG."""
    folder = damaged(tmp_path)
    os.truncate(folder / DATA_FILE, 10)
    env = {"HF_TOKEN": TOKEN} | ({"HF_DEBUG": "1"} if debug else {})
    done = run(*push(folder, tmp_path / "out"), **env)
    assert done.returncode == 3
    assert done.stdout == ""
    assert ("Traceback" in done.stderr) == debug
    lines = done.stderr.splitlines()[-2:]
    assert lines[0].startswith(f"Error: {DATA_FILE}: ")
    assert lines[1].startswith("Hint: ")
    assert TOKEN not in done.stdout + done.stderr


def test_the_token_is_in_no_output(tmp_path: Path) -> None:
    """A whole run with a token in the environment, and debugging on: it is nowhere."""
    done = run(*push(source(), tmp_path / "out", "--json"), HF_TOKEN=TOKEN, HF_DEBUG="1")
    assert done.returncode == 0
    written = b"".join(content(tmp_path / "out").values())
    assert TOKEN not in done.stdout + done.stderr
    assert TOKEN.encode() not in written


def test_a_reader_that_leaves_is_no_traceback() -> None:
    """`hubmerge inspect | head -0`: exit 1, and silence."""
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(command("inspect", "--load-dir", source()), stdout=write, check=False,
                          stderr=subprocess.PIPE, text=True, cwd=REPOSITORY)  # fmt: skip
    os.close(write)
    assert done.returncode == 1
    assert done.stderr == ""


@pytest.mark.parametrize("debug", ["", "1"])
def test_output_that_cannot_be_written_is_no_traceback(debug: str) -> None:
    """A full disk behind `> file` is said in words, exit 1."""
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command("inspect", "--load-dir", source()), stdout=full, check=False,
                              stderr=subprocess.PIPE, text=True, cwd=REPOSITORY,
                              env=os.environ | {"HF_DEBUG": debug})  # fmt: skip
    assert done.returncode == 1
    assert done.stderr == "Error: the output cannot be written: No space left on device\n"


def test_a_dry_run_says_that_a_data_file_is_short(tmp_path: Path) -> None:
    """The plan can be made without the data; that a run would fail with them is said."""
    folder = damaged(tmp_path)
    os.truncate(folder / DATA_FILE, 10)
    done = run(*push(folder, tmp_path / "out", "--dry-run", "--json"))
    assert done.returncode == 0, done.stderr
    (warning,) = [w for w in json.loads(done.stdout)["warnings"] if "would fail" in w]
    assert DATA_FILE in warning


def test_a_dry_run_of_a_push_needs_the_disk_of_its_staging_folder() -> None:
    """Two shards, or --max-disk; all of it where all is written to a folder."""
    arguments = [*push(source(), scratch() / "none"), "--dry-run", "--json"]
    whole = json.loads(run(*arguments).stdout)["peak_disk_bytes"]
    to_hub = ["push", "--load-dir", source(), "--shard-size", str(SHARD_SIZE), "--repo-id", "a/b",
              "--dry-run", "--json"]  # fmt: skip
    largest = len(wanted()["model-00001-of-00003.safetensors"])
    assert whole > 3 * largest
    assert json.loads(run(*to_hub).stdout)["peak_disk_bytes"] == 2 * largest
    capped = run(*to_hub, "--max-disk", str(largest + 10))
    assert json.loads(capped.stdout)["peak_disk_bytes"] == largest + 10


def test_no_key_moves_the_cursor_or_breaks_the_output(tmp_path: Path) -> None:
    """What stands in a checkpoint is escaped on a terminal, whatever the terminal can show."""
    folder = tmp_path / "c"
    hostile = {"\x1b]0;owned\x07\x1b[2J": torch.ones(2)}
    save_alone(folder, {"model": {"model.a.weight": torch.ones(2)}, "optimizer": hostile})
    for text, coding in (("inspect", "utf-8"), ("inspect", "latin-1"), ("convert", "ascii")):
        words = push(folder, tmp_path / "out", "--overwrite") if text == "convert" else [text]
        done = run(*words, "--load-dir", folder, PYTHONIOENCODING=coding)
        assert (done.returncode, "\x1b" in done.stdout + done.stderr) == (0, False), done.stderr
    assert "\\x1b]0;owned" in run("inspect", "--load-dir", folder).stdout


@pytest.mark.parametrize("closed", ["stdout", "stderr"])
def test_a_closed_stream_is_no_error(closed: str, tmp_path: Path) -> None:
    """`>&-` and `2>&-`: the work is done all the same."""
    number = {"stdout": 1, "stderr": 2}[closed]
    shell = f'exec "$@" {number}>&-'
    done = subprocess.run(["bash", "-c", shell, "-", *command(*push(source(), tmp_path / "out"))],
                          capture_output=True, text=True, check=False, cwd=REPOSITORY)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / INDEX).exists()


def test_every_error_says_what_to_do_next() -> None:
    """What fits the case, or else what fits the class; and a token in a message is no token."""
    kinds = [kind for kind in vars(errors).values()
             if isinstance(kind, type) and issubclass(kind, hubmerge.HubmergeError)]  # fmt: skip
    for kind in kinds:
        error = kind("file", f"Bearer {TOKEN}") if kind is errors.DamagedFileError else kind(TOKEN)
        assert error.hint.endswith(".")
        assert TOKEN not in str(error)
    assert errors.UsageError("x", "Use y.").hint == "Use y."


def test_help_documents_every_exit_code() -> None:
    """Each class of error has its exit code in --help, and in the module's tree."""
    shown = " ".join(run("--help").stdout.split())
    kinds = [kind for kind in vars(errors).values()
             if isinstance(kind, type) and issubclass(kind, hubmerge.HubmergeError)]  # fmt: skip
    for code in {kind.exit_code for kind in kinds} | {0, 130, 143}:
        assert f" {code} " in shown, code
    for kind in kinds:
        assert kind.__name__ in (errors.__doc__ or "")
