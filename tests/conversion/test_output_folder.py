"""The folder that is written into: forged by somebody else, not shared by the ranks, or in use."""

from __future__ import annotations

import functools
import hashlib
import json
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch

import hubmerge
from hubmerge import api
from hubmerge.checkpoint.data_files import DataFiles
from hubmerge.conversion import output_folder
from hubmerge.conversion.output_folder import JOURNAL
from hubmerge.conversion.shard_writer import write_shard
from hubmerge.errors import HubmergeError, UsageError
from hubmerge.planning.fingerprint import fingerprint
from hubmerge.system.ranks import Ranks
from tests.support.checkpoints.cases_plain import save_alone
from tests.support.patience import NET_SECONDS

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
FIRST = "model-00001-of-00003.safetensors"
SHARD_SIZE = 200_000


@functools.cache
def scratch() -> Path:
    """A folder that lives as long as this process."""
    scratch.keep = TemporaryDirectory(prefix="hubmerge-output-")  # type: ignore[attr-defined]
    return Path(scratch.keep.name)  # type: ignore[attr-defined]


@functools.cache
def source() -> Path:
    """A checkpoint of three shards."""
    folder = scratch() / "checkpoint"
    save_alone(folder, {"model": {f"{name}.weight": torch.randn(300, 300) for name in "abc"}})
    return folder


@functools.cache
def lora() -> Path:
    """A checkpoint of an adapter, with PEFT's config beside it."""
    folder = scratch() / "lora"
    layer = "base_model.model.model.layers.0.self_attn.q_proj"
    weights = {f"{layer}.lora_{name}.default.weight": torch.randn(4, 4) for name in "AB"}
    save_alone(folder, {"model": weights})
    config = {"peft_type": "LORA", "r": 4, "target_modules": ["q_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def convert(out: Path, **options: Any) -> hubmerge.ConvertResult:
    """Convert the checkpoint of three shards."""
    return hubmerge.convert(source(), out, shard_size=SHARD_SIZE, **options)


def content(folder: Path) -> dict[str, bytes]:
    """All files of a folder, by name."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@functools.cache
def wanted() -> dict[str, bytes]:
    """The folder of a run that nothing disturbed."""
    convert(scratch() / "wanted")
    return content(scratch() / "wanted")


# ---- A folder that came with the checkpoint ----


def forge(out: Path, name: str, size: int, sha256: str) -> None:
    """A journal of this very plan, as anybody can compute it, that calls a file finished."""
    plan, _ = api.plan(source(), shard_size=SHARD_SIZE)
    header = {"plan": fingerprint(plan, DataFiles(source()))}
    line = {"filename": name, "size": size, "sha256": sha256}
    (out / JOURNAL).write_text(f"{json.dumps(header)}\n{json.dumps(line)}\n")


@pytest.mark.parametrize("name", [f"{FIRST}.partial", FIRST, "mine.safetensors"])
@pytest.mark.parametrize("size_of", ["link", "file", "shard"])
def test_a_journal_cannot_have_a_link_kept(name: str, size_of: str, tmp_path: Path) -> None:
    """Whatever size it claims for a link, what that points at is not written, and no shard."""
    out, victim = tmp_path / "out", tmp_path / "victim"
    out.mkdir()
    victim.write_bytes(wanted()[FIRST] if size_of == "shard" else b"mine")
    before = victim.read_bytes()
    (out / name).symlink_to(victim)
    size = len(str(victim)) if size_of == "link" else len(before)
    forge(out, name, size, hashlib.sha256(before).hexdigest())
    result = convert(out)
    assert victim.read_bytes() == before
    assert {path.name for path in out.iterdir() if path.is_symlink()} <= {"mine.safetensors"}
    assert {n: data for n, data in content(out).items() if n != "mine.safetensors"} == wanted()
    assert result.shards[0].sha256 == hashlib.sha256(wanted()[FIRST]).hexdigest()


@pytest.mark.parametrize("whole_size", [False, True])
def test_a_journal_is_not_believed(whole_size: bool, tmp_path: Path) -> None:
    """A shard of another size than planned, or with another sha256 than noted, is written again."""
    out = tmp_path / "out"
    out.mkdir()
    evil = bytes(len(wanted()[FIRST])) if whole_size else b"evil"
    (out / FIRST).write_bytes(evil)
    forge(out, FIRST, len(evil), hashlib.sha256(wanted()[FIRST]).hexdigest())
    convert(out)
    assert content(out) == wanted()


def test_what_a_journal_says_truly_is_kept(tmp_path: Path) -> None:
    """A whole shard is not written again, or none of this would prove anything."""
    out = tmp_path / "out"
    out.mkdir()
    (out / FIRST).write_bytes(wanted()[FIRST])
    written = (out / FIRST).stat().st_mtime_ns
    forge(out, FIRST, len(wanted()[FIRST]), hashlib.sha256(wanted()[FIRST]).hexdigest())
    convert(out)
    assert content(out) == wanted()
    assert (out / FIRST).stat().st_mtime_ns == written


@pytest.mark.parametrize("beside", ["link", "file"])
def test_a_partial_file_is_always_a_new_one(beside: str, tmp_path: Path) -> None:
    """Also where nobody has cleared the folder before a shard is written."""
    plan, _ = api.plan(source(), shard_size=SHARD_SIZE)
    victim, partial = tmp_path / "victim", tmp_path / f"{FIRST}.partial"
    victim.write_bytes(b"mine" * 100_000)
    if beside == "link":
        partial.symlink_to(victim)
    else:
        partial.hardlink_to(victim)
    write_shard(plan.shards[0], DataFiles(source()), tmp_path, lambda _: None)
    assert victim.read_bytes() == b"mine" * 100_000
    assert (tmp_path / FIRST).read_bytes() == wanted()[FIRST]


def test_a_folder_in_it_that_is_a_link_is_refused(tmp_path: Path) -> None:
    """Chat templates stand in a folder of their own, which may lead elsewhere."""
    assets, out, victim = tmp_path / "assets", tmp_path / "out", tmp_path / "victim"
    name = "additional_chat_templates"
    for folder in (assets / name, out, victim):
        folder.mkdir(parents=True)
    (assets / name / "tool.jinja").write_text("theirs")
    (victim / "tool.jinja").write_text("mine")
    (out / name).symlink_to(victim)
    with pytest.raises(UsageError, match="is a link"):
        convert(out, model_assets_dir=assets, overwrite=True)
    assert (victim / "tool.jinja").read_text() == "mine"


# ---- Several ranks ----


class Threads(Ranks):
    """A rank that is a thread of this process."""

    def __init__(self, rank: int, values: list[Any], together: threading.Barrier) -> None:
        self.rank, self.count = rank, len(values)
        self._values, self._together = values, together

    def all_gather(self, value: Any) -> list[Any]:
        self._values[self.rank] = value
        self._together.wait()
        found = list(self._values)
        self._together.wait()
        return found


def run_ranks(folders: list[Path]) -> list[HubmergeError | None]:
    """Convert with a rank for each of these folders; how each one ended."""
    wanted()
    values: list[Any] = [None] * len(folders)
    together = threading.Barrier(len(folders), timeout=NET_SECONDS)

    def run(rank: int) -> HubmergeError | None:
        try:
            convert(folders[rank], ranks=Threads(rank, values, together))
        except HubmergeError as error:
            together.abort()
            return error
        return None

    with ThreadPoolExecutor(len(folders)) as pool:
        return list(pool.map(run, range(len(folders))))


def test_ranks_that_share_a_folder(tmp_path: Path) -> None:
    """Together they write what one alone writes."""
    assert run_ranks([tmp_path / "out"] * 3) == [None] * 3
    assert content(tmp_path / "out") == wanted()


@pytest.mark.parametrize("theirs", ["missing", "empty", "used"])
def test_ranks_with_folders_of_their_own(
    theirs: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A path that means another disk on another machine: no index, and an error that says why."""
    monkeypatch.setattr(output_folder, "_VISIBLE_WITHIN_SECONDS", 0.5)
    one, other = tmp_path / "one", tmp_path / "other"
    if theirs != "missing":
        other.mkdir()
    if theirs == "used":
        (other / JOURNAL).write_text('{"plan": "x"}\n')
    errors = [error for error in run_ranks([one, other]) if isinstance(error, UsageError)]
    assert len(errors) == 1
    assert "not the same folder on all ranks" in str(errors[0])
    assert "share" in errors[0].hint
    assert (one / JOURNAL).exists()
    assert not (one / INDEX).exists()


# ---- A model and an adapter ----


def to_model(out: Path) -> None:
    """A whole model in one file."""
    hubmerge.convert(source(), out, overwrite=True)


def to_shards(out: Path) -> None:
    """A whole model in three files."""
    convert(out, overwrite=True)


@pytest.mark.parametrize("write", [to_model, to_shards])
def test_a_model_in_place_of_an_adapter(write: Callable[[Path], None], tmp_path: Path) -> None:
    """Nothing is left of the adapter: transformers would load it on top of the new model."""
    hubmerge.convert(lora(), tmp_path / "out")
    write(tmp_path / "out")
    write(tmp_path / "fresh")
    assert content(tmp_path / "out") == content(tmp_path / "fresh")


@pytest.mark.parametrize("write", [to_model, to_shards])
def test_an_adapter_beside_a_model(write: Callable[[Path], None], tmp_path: Path) -> None:
    """The model stays whole, as it does on the Hub; an older adapter goes."""
    out = tmp_path / "out"
    write(out)
    before = content(out)
    with pytest.raises(UsageError, match="already holds a model"):
        hubmerge.convert(lora(), out)
    assert content(out) == before
    for dtype in ("float32", "bfloat16"):
        hubmerge.convert(lora(), out, overwrite=True, dtype=dtype)
    hubmerge.convert(lora(), tmp_path / "fresh", dtype="bfloat16")
    assert content(out) == before | content(tmp_path / "fresh")


def test_a_config_of_an_adapter_alone_is_not_removed_unasked(tmp_path: Path) -> None:
    """A model beside it would not be loaded as it is; an adapter belongs there."""
    out = tmp_path / "out"
    out.mkdir()
    (out / "adapter_config.json").write_text("{}")
    with pytest.raises(UsageError, match=r"already holds a model \(adapter_config.json\)"):
        convert(out)
    assert content(out) == {"adapter_config.json": b"{}"}
    hubmerge.convert(lora(), out, overwrite=True)
    assert (out / "adapter_model.safetensors").exists()


# ---- Weights in other files ----


def test_weights_that_servers_prefer_count_as_a_model(tmp_path: Path) -> None:
    """They are replaced with it; other weights stay, and are named."""
    out = tmp_path / "out"
    (out / "onnx").mkdir(parents=True)
    (out / "consolidated.safetensors").write_bytes(b"older")
    (out / "onnx" / "model.onnx").write_bytes(b"older")
    with pytest.raises(UsageError, match="already holds a model"):
        convert(out)
    (warning,) = set(convert(out, overwrite=True).warnings) - set(convert(tmp_path / "x").warnings)
    assert "keeps other weights" in warning
    assert "onnx/model.onnx (for ONNX Runtime)" in warning
    assert {path.name for path in out.iterdir()} == {*wanted(), "onnx"}


def test_warnings_come_before_the_first_byte(tmp_path: Path) -> None:
    """Each once, and all that the result names."""
    told: list[str] = []

    class Told(hubmerge.Progress):
        def warn(self, text: str) -> None:
            assert not list((tmp_path / "out").glob("*.safetensors*"))
            told.append(text)

    result = convert(tmp_path / "out", progress=Told())
    assert tuple(told) == result.warnings != ()
