"""Data files that cannot be read, are short, missing or changed: each is named, with its tensor."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import pytest
import torch

import hubmerge
from hubmerge import api, errors
from tests.support.checkpoints.cases_plain import save_alone
from tests.support.faults.calls import READS, at_each, failing
from tests.support.faults.conversion import (
    DATA_FILE,
    FIRST_KEY,
    INDEX,
    assert_honest,
    assert_rerun_completes,
    calls_of_a_run,
    content,
    convert,
    damaged,
    failure,
    first_tensor,
    push,
    record_of,
    run,
    source,
    wanted,
)


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
    assert not any("interrupted" in warning for warning in api.plan(folder)[0].warnings)
    (folder / ".metadata.tmp").write_bytes(b"")
    assert any("interrupted" in warning for warning in api.plan(folder)[0].warnings)


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


def test_a_dry_run_ends_as_the_run_would(tmp_path: Path) -> None:
    """A short data file is exit 3 for both."""
    folder = damaged(tmp_path)
    os.truncate(folder / DATA_FILE, 10)
    done = run(*push(folder, tmp_path / "out", "--dry-run"))
    assert (done.returncode, DATA_FILE in done.stderr) == (3, True)
