"""A folder that holds something already: a model, a user's files, links, pipes."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

import hubmerge
from hubmerge import errors
from tests.support.faults.conversion import (
    DATA_FILE,
    INDEX,
    JOURNAL,
    REPOSITORY,
    SHARD_SIZE,
    assets,
    command,
    content,
    convert,
    damaged,
    failure,
    push,
    source,
    wanted,
)
from tests.support.patience import NET_SECONDS


def test_the_checkpoints_own_folder_is_never_written_into(tmp_path: Path) -> None:
    """Its data files could have the names of shards."""
    folder = shutil.copytree(source(), tmp_path / "c")
    before = content(folder)
    for overwrite in (False, True):
        with pytest.raises(errors.UsageError, match="is the checkpoint itself"):
            convert(folder, load_dir=folder, overwrite=overwrite)
    assert content(folder) == before


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
    done = subprocess.run(command(*push(source(), out)), capture_output=True, text=True,
                          check=False, cwd=REPOSITORY, timeout=NET_SECONDS)  # fmt: skip
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
        with pytest.raises(errors.UsageError, match=rf"{name}: already exists") as refusal:
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
