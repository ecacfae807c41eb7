"""One honest checkpoint, the folder that it must become, and the command that converts it."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

import hubmerge
from tests.support.checkpoints.cases_plain import save_alone
from tests.support.faults.calls import at_each

REPOSITORY = Path(__file__).parents[3]
SHARD_SIZE = 200_000
INDEX = "model.safetensors.index.json"
JOURNAL = ".hubmerge.journal"
FIRST_KEY = "model.model.a.weight"
DATA_FILE = "__0_0.distcp"
TOKEN = "hf_" + "CaNaRy" * 6


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


def damaged(tmp_path: Path) -> Path:
    """A copy of the checkpoint to damage."""
    return Path(shutil.copytree(source(), tmp_path / "damaged"))


def record_of(folder: Path, key: str) -> tuple[int, int]:
    """Where a tensor's record begins and how long it is, by torch's own reading."""
    from torch.distributed.checkpoint import FileSystemReader

    stored = FileSystemReader(folder).read_metadata().storage_data
    info = next(info for index, info in stored.items() if index.fqn == key)
    return info.offset, info.length


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
