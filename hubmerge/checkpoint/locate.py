"""From any folder that a user points at to the one folder that holds the model's checkpoint.

People give the run's output folder, a step, or the checkpoint itself. Each trainer nests them in
its own way (`_LAYOUTS`), so all folders below are searched, to a bounded depth, for what describes
a checkpoint; optimizer state and finished exports are skipped. The newest complete step is taken.
If that leaves more than one folder, those without model weights and copies by EMA go; if there are
still several, the user must choose.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from hubmerge.checkpoint.description import describing_files, warnings_for
from hubmerge.checkpoint.foreign import other_weights, refuse_foreign
from hubmerge.checkpoint.metadata import read_checkpoint
from hubmerge.checkpoint.schema import Checkpoint
from hubmerge.errors import HubmergeError, NotACheckpointError, UsageError
from hubmerge.formatting import format_list

# Deeper than any trainer nests, and more folders than any run has: `/` was given by mistake.
_MAX_DEPTH = 6
_MAX_FOLDERS = 20_000
_MAX_LISTED = 10

# By trainer: the last parts of the path of a checkpoint's folder. The first that matches is taken.
_LAYOUTS: tuple[tuple[str, str], ...] = (
    ("LeRobot", r"checkpoints/\d{6}/pretrained_model/pytorch_model_fsdp_\d+"),
    (
        "accelerate, HF Trainer, axolotl, LLaMA-Factory or ms-swift (FSDP)",
        r"pytorch_model_fsdp_\d+",
    ),
    ("VeOmni", r"global_step_\d+/model/(.+/)?ckpt"),
    ("VeOmni", r"global_step_\d+"),
    ("torchtitan or flame", r"step-\d+"),
    ("prime-rl", r"step_\d+/trainer"),
    ("NeMo-RL", r"step_\d+/policy/weights(/model)?"),
    ("NeMo-RL", r"policy/weights(/model)?"),
    ("NeMo Automodel", r"epoch_\d+_step_\d+/model"),
    ("OLMo-core", r"step\d+/model_and_optim"),
    ("xtuner", r"ckpt-step-\d+/weights"),
    ("Composer", r"ep\d+-ba\d+"),
    ("cosmos", r"iter_\d{9}/model"),
    ("finetrainers", r"finetrainers_step_\d+"),
    ("Bagel", r"\d{7}/(model|ema)"),
    ("Lightning", r".+\.ckpt"),
)

# A folder that names the step it was written at, and the number of that step.
_STEP = re.compile(
    r"(?:(?:[a-z]+_)?(?:global_)?step[-_]?|checkpoint[-_]|ckpt-step-|iter_|ep\d+-ba"
    r"|(?:epoch[_=]?\d+[-_])?step[_=]|(?=\d{4}))(\d+)(?:\.ckpt)?"
)

# Never a model: optimizer state is a checkpoint of its own with many trainers, and the others are
# what a run or an earlier conversion exports.
_OPTIMIZER = re.compile(r"optimi[sz]ers?(_\d+)?|optim")
_NOT_MODEL = re.compile(
    rf"{_OPTIMIZER.pattern}|hf_ckpt|lora_ckpt|extra_state|lr_scheduler|dataloader|tokenizer"
    r"|consolidated|wandb|tensorboard|__pycache__|.+\.incomplete|tmp_.+|\..+"
)

# A folder that holds the moving average of the model beside it.
_EMA = re.compile(r"(.+_)?ema(_.+)?")

# A file that Automodel leaves in a step until its save is complete.
_UNFINISHED = ".incomplete"

HoldsModel = Callable[[Checkpoint], bool]


@dataclass(frozen=True, slots=True)
class Located:
    """A checkpoint's folder, and how it was found.

    Attributes:
        layout: the trainer that arranges folders like this, or "" if none is known to. No proof:
            a folder can have any name.
        is_ema: whether it was chosen as the EMA copy of the model in the folder beside it.
        notes: how it was found, if it was not just the given folder, one sentence each.
        warnings: what was skipped, and what is not proved, one sentence each.
    """

    folder: Path
    layout: str
    is_ema: bool = False
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Candidate:
    """A folder below the given one, with the step that its path names, if any."""

    folder: Path
    step: int | None
    complete: bool


@dataclass(slots=True)
class _Search:
    """What a search below a folder came across.

    Attributes:
        candidates: the folders that hold a checkpoint, or the beginning of one.
        refusals: why folders of other tools were skipped, the gravest first.
        unreadable: folders that this user may not list (``lost+found``).
        optimizers: folders that hold optimizer state alone.
    """

    given: Path
    candidates: list[_Candidate] = field(default_factory=list)
    refusals: list[NotACheckpointError] = field(default_factory=list)
    others: list[NotACheckpointError] = field(default_factory=list)
    unreadable: list[Path] = field(default_factory=list)
    optimizers: list[Path] = field(default_factory=list)

    def names(self, folders: list[Path]) -> list[str]:
        """Return these folders as the user sees them from the given one."""
        return [str(folder.relative_to(self.given)) for folder in folders]


def locate(given: Path, holds_model: HoldsModel, *, ema: bool = False) -> Located:
    """Find the model's checkpoint in `given` or below it.

    Folders are only listed; if several checkpoints of one step are found, their metadata is read.

    Args:
        holds_model: tells whether a checkpoint has the weights of a model.
        ema: take the EMA copy, if the step has one in a folder of its own.

    Raises:
        UsageError: there are several, and nothing says which.
        NotACheckpointError: there is none, or the files are those of another tool.
    """
    refuse_foreign(given)
    paths = describing_files(given)
    if _is_unfinished(given) or (paths and _is_unfinished(given.absolute().parent)):
        raise NotACheckpointError(
            f"{given}: the save is incomplete (it left a file {_UNFINISHED})",
            "Use an earlier step; this one was interrupted or is still being written.",
        )
    if paths:
        return Located(given, _layout(given), warnings=tuple(warnings_for(paths)))
    if not given.is_dir() or _is_interrupted(given):
        return Located(given, "")  # reading it says best what is wrong
    search = _search(given)
    complete = [candidate for candidate in search.candidates if candidate.complete]
    if not complete:
        raise _nothing(search)
    newest = _newest(complete)
    chosen, warnings = _choose(search, newest, holds_model, ema=ema)
    name = chosen.folder.relative_to(given)
    among = f", the newest of {len(complete)} complete steps" if len(complete) > 1 else ""
    note = f"took {name} in {given.name or given}{among}"
    warnings += [
        *_skipped(search, chosen),
        *(
            f"skipped {name}: it cannot be listed"
            for name in search.names(search.unreadable[:_MAX_LISTED])
        ),
        *warnings_for(describing_files(chosen.folder)),
    ]
    is_ema = len(newest) > 1 and _is_ema(chosen)
    return Located(chosen.folder, _layout(chosen.folder), is_ema, (note,), tuple(warnings))


def _choose(
    search: _Search, newest: list[_Candidate], holds_model: HoldsModel, *, ema: bool
) -> tuple[_Candidate, list[str]]:
    """Choose among the checkpoints of the newest step; say what is left out."""
    if len(newest) == 1:
        return newest[0], []
    models = [place for place in newest if _holds_model(place.folder, holds_model)] or newest
    copies = [place for place in models if _is_ema(place)]
    wanted = copies if ema and copies else [p for p in models if p not in copies] or models
    if len(wanted) > 1:
        names = search.names([place.folder for place in wanted])
        raise UsageError(
            f"{search.given}: holds several checkpoints: {format_list(names)}",
            "Point --load-dir at one of them.",
        )
    if not copies or ema:
        return wanted[0], []
    names = search.names([place.folder for place in copies])
    return wanted[0], [f"left out {format_list(names)}, the EMA copy; --ema takes it instead"]


def _holds_model(folder: Path, holds_model: HoldsModel) -> bool:
    try:
        return holds_model(read_checkpoint(folder))
    except HubmergeError:
        return True  # a model that is damaged must not be hidden by what lies beside it


def _is_ema(candidate: _Candidate) -> bool:
    return _EMA.fullmatch(candidate.folder.name) is not None


def _search(given: Path) -> _Search:
    """Find every folder below `given` that holds a checkpoint, or the beginning of one."""
    search = _Search(given)
    search.others.extend(other_weights(given))
    try:
        waiting = sorted(_folders(given, search))
    except OSError as error:
        raise NotACheckpointError(f"{given}: cannot be listed: {error.strerror}") from None
    seen = 0
    while waiting:
        folder = waiting.pop(0)
        seen += 1
        if seen > _MAX_FOLDERS:
            raise UsageError(
                f"{given}: holds more than {_MAX_FOLDERS:,} folders",
                "Point --load-dir at one step.",
            )
        try:
            below = _look_into(folder, search)
        except NotACheckpointError as refusal:
            search.refusals.append(refusal)
        except OSError:
            search.unreadable.append(folder)
        else:
            if len(folder.relative_to(given).parts) < _MAX_DEPTH:
                waiting += below
    return search


def _look_into(folder: Path, search: _Search) -> list[Path]:
    """Note what a folder holds; return the folders to search next."""
    below = sorted(_folders(folder, search))
    refuse_foreign(folder)
    complete = bool(describing_files(folder)) and not _is_unfinished(folder)
    if complete or _is_interrupted(folder) or _is_unfinished(folder):
        step = step_of(folder.relative_to(search.given.parent))
        search.candidates.append(_Candidate(folder, step, complete))
        return []
    search.others.extend(other_weights(folder))
    return below


def _folders(folder: Path, search: _Search) -> Iterator[Path]:
    with os.scandir(folder) as entries:
        for entry in entries:
            if not entry.is_dir(follow_symlinks=False):
                continue
            if not _NOT_MODEL.fullmatch(entry.name):
                yield Path(entry.path)
            elif _OPTIMIZER.fullmatch(entry.name):
                search.optimizers.append(Path(entry.path))


def _is_interrupted(folder: Path) -> bool:
    """Return whether there is data without the description that is written last."""
    return (folder / ".metadata.tmp").exists() or any(folder.glob("*.distcp"))


def _is_unfinished(folder: Path) -> bool:
    return os.path.lexists(folder / _UNFINISHED)


def step_of(path: Path) -> int | None:
    """Return the training step that the names of a path's folders tell; the innermost counts."""
    steps = [int(match[1]) for part in path.parts if (match := _STEP.fullmatch(part))]
    return steps[-1] if steps else None


def step_folder(path: Path) -> Path | None:
    """Return the innermost of a folder and those around it that is named after a training step."""
    return next((p for p in (path, *path.parents) if _STEP.fullmatch(p.name)), None)


def _newest(places: list[_Candidate]) -> list[_Candidate]:
    """Return those of the highest step; all if any has no step or they are of several runs."""
    steps = [place.step for place in places if place.step is not None]
    if len(steps) < len(places) or len({_run(place) for place in places}) > 1:
        return places
    return [place for place in places if place.step == max(steps)]


def _run(place: _Candidate) -> Path:
    """Return the folder that the step's folder is in."""
    folder = place.folder
    while folder != folder.parent and not _STEP.fullmatch(folder.name):
        folder = folder.parent
    return folder.parent


def _layout(folder: Path) -> str:
    path = folder.absolute().as_posix()
    for trainer, tail in _LAYOUTS:
        if re.search(rf"(^|/){tail}$", path):
            return trainer
    return ""


def _skipped(search: _Search, chosen: _Candidate) -> Iterator[str]:
    for place in search.candidates:
        if not place.complete and (place.step or 0) > (chosen.step or 0):
            name = place.folder.relative_to(search.given)
            yield f"skipped {name}: its save was interrupted"


def _nothing(search: _Search) -> NotACheckpointError:
    """Say what the folder holds instead of a model's checkpoint."""
    given = search.given
    if search.candidates:
        names = format_list(search.names([place.folder for place in search.candidates]))
        return NotACheckpointError(
            f"{given}: no complete checkpoint; the save of each of these was interrupted: {names}",
            "Their .metadata is missing (it is written last, and is a hidden file), or a file "
            f"{_UNFINISHED} marks them.",
        )
    if search.refusals or search.others:
        return [*search.refusals, *search.others][0]
    optimizers = [folder for folder in search.optimizers if describing_files(folder)]
    if optimizers:
        return NotACheckpointError(
            f"{given}: holds optimizer state only ({format_list(search.names(optimizers))})",
            "Point --load-dir at the folder that the model was saved in.",
        )
    unknown = format_list(search.names(search.unreadable))
    return NotACheckpointError(
        f"{given}: not a distributed checkpoint: there is no .metadata file in it or below it"
        + f" ({unknown} cannot be listed)" * bool(unknown),
        "Point --load-dir at the folder that holds .metadata and the .distcp files.",
    )
