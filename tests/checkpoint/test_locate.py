"""Whatever folder of a run is given, the model's checkpoint in it is found, or the reason told."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest

from hubmerge.checkpoint.locate import locate
from hubmerge.errors import HubmergeError, NotACheckpointError, UsageError

# Where each trainer of the table keeps a model, and a folder beside it that is none.
LAYOUTS = {
    "checkpoint-200/pytorch_model_fsdp_0": ("accelerate", "checkpoint-200/optimizer_0"),
    "checkpoints/global_step_20": ("VeOmni", "checkpoints/global_step_20/hf_ckpt"),
    "checkpoints/global_step_20/model/ckpt": ("VeOmni", "checkpoints/global_step_20/optimizer"),
    "checkpoints/global_step_20/model/actor/ckpt": (
        "VeOmni",
        "checkpoints/global_step_20/model/lora_ckpt",
    ),
    "checkpoint/step-20": ("torchtitan", "checkpoint/step-20/.cache"),
    "epoch=0-step=20.ckpt": ("Lightning", "logs"),
    "step_20/trainer": ("prime-rl", "step_20/optimizer"),
    "ckpt-step-20/weights": ("xtuner", "ckpt-step-20/weights.incomplete"),
    "step_20/policy/weights": ("NeMo-RL", "step_20/policy/optimizer"),
    "step_20/policy/weights/model": ("NeMo-RL", "step_20/policy/weights/optim"),
    "epoch_0_step_20/model": ("Automodel", "epoch_0_step_20/optim"),
    "step20/model_and_optim": ("OLMo-core", "step20/train"),
}


def write_empty(folder: Path, *, complete: bool = True) -> Path:
    """The files of a checkpoint, without content; locating looks at names alone."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "__0_0.distcp").write_bytes(b"")
    if complete:
        (folder / ".metadata").write_bytes(b"")
    return folder


@pytest.mark.parametrize("place", LAYOUTS)
def test_every_trainers_run_folder(place: str, tmp_path: Path) -> None:
    """The run, the step and the checkpoint itself all lead to the same place, named by trainer."""
    trainer, beside = LAYOUTS[place]
    model = write_empty(tmp_path / "run" / place)
    if not beside.endswith(("logs", "train")):
        write_empty(tmp_path / "run" / beside)
    given = model
    while given != tmp_path:
        located = locate(given)
        assert located.folder == model
        assert trainer in located.layout
        assert bool(located.notes) == (given != model)
        given = given.parent


@pytest.mark.parametrize(
    "step", ["global_step_{}", "checkpoint-{}/pytorch_model_fsdp_0", "step-{}", "step{}/model"]
)
def test_the_newest_complete_step(step: str, tmp_path: Path) -> None:
    """By number and not by name; a step whose save was cut off is passed by and told."""
    for number in (9, 100, 20):
        write_empty(tmp_path / step.format(number))
    cut_off = write_empty(tmp_path / step.format(300), complete=False)
    located = locate(tmp_path)
    assert located.folder == tmp_path / step.format(100)
    assert step.format(100) in located.notes[0]
    assert "3 complete steps" in located.notes[0]
    assert str(cut_off.relative_to(tmp_path)) in located.warnings[0]


def test_two_models_of_one_step_are_listed(tmp_path: Path) -> None:
    """Nothing says which of two models is meant: both are named, none is taken."""
    for number in (0, 1):
        write_empty(tmp_path / f"checkpoint-5/pytorch_model_fsdp_{number}")
    with pytest.raises(UsageError, match=r"fsdp_0, .*fsdp_1"):
        locate(tmp_path)


def test_two_runs_are_listed(tmp_path: Path) -> None:
    """The newest step of several runs is no answer."""
    write_empty(tmp_path / "first/global_step_10")
    write_empty(tmp_path / "second/global_step_20")
    with pytest.raises(UsageError, match="first/global_step_10, second/global_step_20"):
        locate(tmp_path)


def test_only_an_optimizer_is_no_model(tmp_path: Path) -> None:
    """A step whose model was not saved is refused, however complete its optimizer is."""
    write_empty(tmp_path / "checkpoint-5/optimizer_0")
    with pytest.raises(NotACheckpointError, match="not a distributed checkpoint"):
        locate(tmp_path)


def test_only_interrupted_saves(tmp_path: Path) -> None:
    """The steps that were cut off are named."""
    write_empty(tmp_path / "global_step_5", complete=False)
    with pytest.raises(NotACheckpointError, match=r"global_step_5") as refusal:
        locate(tmp_path)
    assert ".metadata" in refusal.value.hint


def test_one_file_per_rank_is_found(tmp_path: Path) -> None:
    """`use_collectives=False` leaves `__{rank}.metadata` only."""
    folder = write_empty(tmp_path / "run/step-3", complete=False)
    (folder / "__0.metadata").write_bytes(b"")
    assert locate(tmp_path / "run").folder == folder


@pytest.mark.parametrize(
    ("file", "words"),
    [
        ("model_world_size_8_rank_0.pt", ("verl", "verl.model_merger")),
        ("zero_pp_rank_0_mp_rank_00_optim_states.pt", ("DeepSpeed", "zero_to_fp32.py")),
        ("mp_rank_00_model_states.pt", ("DeepSpeed", "zero_to_fp32.py")),
        ("latest_checkpointed_iteration.txt", ("Megatron", "Megatron Bridge")),
        ("pytorch_model_fsdp_0_rank0.bin", ("accelerate", "use_dcp")),
    ],
)
@pytest.mark.parametrize("below", ["", "run/global_step_5"])
def test_other_tools_are_named(
    file: str, words: tuple[str, str], below: str, tmp_path: Path
) -> None:
    """Another tool's files are refused with the tool that converts them, in the folder or below."""
    (tmp_path / below).mkdir(parents=True, exist_ok=True)
    (tmp_path / below / file).write_bytes(b"")
    with pytest.raises(NotACheckpointError) as refusal:
        locate(tmp_path)
    assert words[0] in str(refusal.value)
    assert words[1] in refusal.value.hint
    assert refusal.value.exit_code == 3


def test_megatrons_distributed_checkpoint(tmp_path: Path) -> None:
    """It has a `.metadata` too: `metadata.json` tells it."""
    write_empty(tmp_path)
    (tmp_path / "metadata.json").write_text(json.dumps({"sharded_backend": "torch_dist"}))
    with pytest.raises(NotACheckpointError, match="Megatron"):
        locate(tmp_path)


def test_another_tools_folder_beside_does_not_hide_the_model(tmp_path: Path) -> None:
    """A run may hold both: what can be converted is found."""
    (tmp_path / "critic").mkdir()
    (tmp_path / "critic/model_world_size_8_rank_0.pt").write_bytes(b"")
    model = write_empty(tmp_path / "actor/global_step_5")
    assert locate(tmp_path).folder == model


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    """The error of reading it says so."""
    from hubmerge import inspect

    with pytest.raises(HubmergeError, match="no such folder"):
        inspect(tmp_path / "missing")


@pytest.fixture
def closed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A folder that may not be listed, by root neither."""
    folder = tmp_path / "run/lost+found"
    folder.mkdir(parents=True)
    real = os.scandir

    def scandir(path: Any) -> Any:
        if Path(path) == folder:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    return folder


def test_a_folder_that_may_not_be_listed_is_passed_by(closed: Path) -> None:
    """It stops nothing, and a note says so; where nothing is found, the error does."""
    with pytest.raises(NotACheckpointError, match=r"below it \(lost\+found cannot be listed\)"):
        locate(closed.parent)
    model = write_empty(closed.parent / "step-3")
    located = locate(closed.parent)
    assert located.folder == model
    assert located.warnings[-1] == "passed by lost+found: it cannot be listed"


def test_the_given_folder_must_be_listed(closed: Path) -> None:
    """That one cannot be passed by."""
    with pytest.raises(NotACheckpointError, match="cannot be listed: Permission denied"):
        locate(closed)
