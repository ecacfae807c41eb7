"""Whatever folder of a run is given, the model's checkpoint in it is found, or the reason told."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from hubmerge.checkpoint.locate import locate, step_of
from hubmerge.errors import HubmergeError, NotACheckpointError, UsageError
from hubmerge.names.naming import holds_model
from tests.support.checkpoints.cases_plain import save_alone

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
    "ep0-ba20": ("Composer", "ep0-ba20/.cache"),
    "iter_000000020/model": ("cosmos", "iter_000000020/optim"),
    "finetrainers_step_20": ("finetrainers", "logs"),
    "0000020/model": ("Bagel", "0000020/ema"),
    "checkpoints/000020/pretrained_model/pytorch_model_fsdp_0": (
        "LeRobot",
        "checkpoints/000020/pretrained_model/optimizer_0",
    ),
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
        located = locate(given, holds_model)
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
    located = locate(tmp_path, holds_model)
    assert located.folder == tmp_path / step.format(100)
    assert step.format(100) in located.notes[0]
    assert "3 complete steps" in located.notes[0]
    assert str(cut_off.relative_to(tmp_path)) in located.warnings[0]


def test_two_models_of_one_step_are_listed(tmp_path: Path) -> None:
    """Nothing says which of two models is meant: both are named, none is taken."""
    for number in (0, 1):
        write_empty(tmp_path / f"checkpoint-5/pytorch_model_fsdp_{number}")
    with pytest.raises(UsageError, match=r"fsdp_0, .*fsdp_1"):
        locate(tmp_path, holds_model)


def test_two_runs_are_listed(tmp_path: Path) -> None:
    """The newest step of several runs is no answer."""
    write_empty(tmp_path / "first/global_step_10")
    write_empty(tmp_path / "second/global_step_20")
    with pytest.raises(UsageError, match="first/global_step_10, second/global_step_20"):
        locate(tmp_path, holds_model)


def test_only_an_optimizer_is_no_model(tmp_path: Path) -> None:
    """A step whose model was not saved is refused, however complete its optimizer is."""
    write_empty(tmp_path / "checkpoint-5/optimizer_0")
    with pytest.raises(NotACheckpointError, match=r"optimizer state only \(checkpoint-5/optim"):
        locate(tmp_path, holds_model)


STEPS = {
    "ep0-ba200": 200,
    "ep12-ba9": 9,
    "iter_000001000": 1000,
    "finetrainers_step_30": 30,
    "0004000": 4000,
    "005000": 5000,
    "checkpoint-7": 7,
    "step7": 7,
    "global_step_8": 8,
    "epoch_1_step_60": 60,
    "epoch=1-step=60.ckpt": 60,
    "12": None,
    "rank_0": None,
    "pytorch_model_fsdp_0": None,
}


@pytest.mark.parametrize(("name", "step"), STEPS.items(), ids=STEPS)
def test_the_step_of_a_folder(name: str, step: int | None) -> None:
    """The step's number is read from the names that trainers give to folders."""
    assert step_of(Path(name)) == step


def test_a_step_that_its_trainer_marks_as_unfinished(tmp_path: Path) -> None:
    """Automodel leaves `.incomplete` in the step's folder; neither it nor its model is taken."""
    older = write_empty(tmp_path / "epoch_0_step_10/model")
    newer = write_empty(tmp_path / "epoch_0_step_20/model")
    (newer.parent / ".incomplete").touch()
    located = locate(tmp_path, holds_model)
    assert located.folder == older
    assert "epoch_0_step_20" in located.warnings[0]
    for given in (newer, newer.parent):
        with pytest.raises(NotACheckpointError, match=r"\.incomplete"):
            locate(given, holds_model)


def test_only_folders_with_a_model_are_candidates(tmp_path: Path) -> None:
    """Of one step's folders, schedulers and counters are no choice, whatever they are called."""
    weights = {"layers.0.weight": torch.randn(2, 2)}
    save_alone(tmp_path / "iter_000000500/net", {"model": weights})
    save_alone(tmp_path / "iter_000000500/sched", {"scheduler": {"last_lr": torch.ones(1)}})
    save_alone(tmp_path / "iter_000000500/loop", {"trainer": {"iteration": torch.tensor(3)}})
    save_alone(tmp_path / "iter_000000500/adam", {"optim": {"w": {"exp_avg": torch.ones(2, 2)}}})
    assert locate(tmp_path, holds_model).folder.name == "net"


@pytest.mark.parametrize("ema", [False, True])
def test_a_folder_with_the_ema_copy(tmp_path: Path, ema: bool) -> None:
    """The model is taken and the copy named; --ema takes the copy."""
    for name in ("model", "ema"):
        save_alone(tmp_path / "0002000" / name, {"model": {"weight": torch.randn(2, 2)}})
    located = locate(tmp_path, holds_model, ema=ema)
    assert located.folder.name == ("ema" if ema else "model")
    assert located.is_ema == ema
    assert any("--ema" in warning for warning in located.warnings) != ema


@pytest.mark.parametrize("below", [".", "checkpoint-10"])
@pytest.mark.parametrize(
    ("file", "words"),
    [
        ("pytorch_model_fsdp.bin", "whole state dict"),
        ("pytorch_model_fsdp_1.bin", "whole state dict"),
        ("pytorch_model.bin", "whole state dict"),
        ("pytorch_model-00001-of-00002.bin", "whole state dict"),
        ("metadata.pkl", "torch_checkpointing"),
    ],
)
def test_other_weights_are_named_for_what_they_are(
    file: str, words: str, below: str, tmp_path: Path
) -> None:
    """What a user took for a distributed checkpoint is named, in the step or in the run."""
    folder = tmp_path / below
    folder.mkdir(exist_ok=True)
    (folder / file).write_bytes(b"")
    with pytest.raises(NotACheckpointError, match=rf"{words}.*\({file}\)"):
        locate(tmp_path, holds_model)
    model = write_empty(tmp_path / "checkpoint-20/pytorch_model_fsdp_0")
    assert locate(tmp_path, holds_model).folder == model  # such files may lie beside one


def test_only_interrupted_saves(tmp_path: Path) -> None:
    """The steps that were cut off are named."""
    write_empty(tmp_path / "global_step_5", complete=False)
    with pytest.raises(NotACheckpointError, match=r"global_step_5") as refusal:
        locate(tmp_path, holds_model)
    assert ".metadata" in refusal.value.hint


def test_one_file_per_rank_is_found(tmp_path: Path) -> None:
    """`use_collectives=False` leaves `__{rank}.metadata` only."""
    folder = write_empty(tmp_path / "run/step-3", complete=False)
    (folder / "__0.metadata").write_bytes(b"")
    assert locate(tmp_path / "run", holds_model).folder == folder


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
        locate(tmp_path, holds_model)
    assert words[0] in str(refusal.value)
    assert words[1] in refusal.value.hint
    assert refusal.value.exit_code == 3


def test_megatrons_distributed_checkpoint(tmp_path: Path) -> None:
    """It has a `.metadata` too: `metadata.json` tells it."""
    write_empty(tmp_path)
    (tmp_path / "metadata.json").write_text(json.dumps({"sharded_backend": "torch_dist"}))
    with pytest.raises(NotACheckpointError, match="Megatron"):
        locate(tmp_path, holds_model)


def test_another_tools_folder_beside_does_not_hide_the_model(tmp_path: Path) -> None:
    """A run may hold both: what can be converted is found."""
    (tmp_path / "critic").mkdir()
    (tmp_path / "critic/model_world_size_8_rank_0.pt").write_bytes(b"")
    model = write_empty(tmp_path / "actor/global_step_5")
    assert locate(tmp_path, holds_model).folder == model


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
        locate(closed.parent, holds_model)
    model = write_empty(closed.parent / "step-3")
    located = locate(closed.parent, holds_model)
    assert located.folder == model
    assert located.warnings[-1] == "skipped lost+found: it cannot be listed"


def test_the_given_folder_must_be_listed(closed: Path) -> None:
    """That one cannot be passed by."""
    with pytest.raises(NotACheckpointError, match="cannot be listed: Permission denied"):
        locate(closed, holds_model)
