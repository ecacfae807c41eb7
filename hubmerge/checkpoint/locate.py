"""From any folder that a user points at to the one folder that holds the model's checkpoint.

People give the run's output folder, a step, or the checkpoint itself. Each trainer nests them in
its own way (`_LAYOUTS`), so all folders below are looked through, to a bounded depth, for what
describes a checkpoint; optimizer state and finished exports are passed by. The newest complete step
is taken; where that leaves more than one, the user must choose.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from hubmerge.checkpoint.description import describing_files, warnings_for
from hubmerge.checkpoint.foreign import refuse_foreign
from hubmerge.errors import NotACheckpointError, UsageError
from hubmerge.formatting import format_list

# Deeper than any trainer nests, and more folders than any run has: `/` was given by mistake.
_MAX_DEPTH = 6
_MAX_FOLDERS = 20_000
_MAX_LISTED = 10

# By trainer: the last parts of the path of a checkpoint's folder. The first that fits is taken.
_LAYOUTS: tuple[tuple[str, str], ...] = (
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
    ("Lightning", r".+\.ckpt"),
)

# A folder that names the step it was written at, and the number of that step.
_STEP = re.compile(
    r"(?:global_step_|checkpoint[-_]|step[-_]?|ckpt-step-|iter_|(?:epoch[_=]?\d+[-_])?step[_=])(\d+)(?:\.ckpt)?"
)

# Never a model: optimizer state is a checkpoint of its own with many trainers, and the others are
# what a run or an earlier conversion exports.
_NOT_MODEL = re.compile(
    r"optimi[sz]ers?(_\d+)?|optim|hf_ckpt|lora_ckpt|extra_state|lr_scheduler|dataloader|tokenizer"
    r"|consolidated|wandb|tensorboard|__pycache__|.+\.incomplete|tmp_.+|\..+"
)


@dataclass(frozen=True, slots=True)
class Located:
    """A checkpoint's folder, and how it was found.

    Attributes:
        layout: the trainer whose layout the path has, or "" where it tells none.
        notes: how it was found, where it was not just the given folder, one sentence each.
        warnings: what was passed by, and what is not proved, one sentence each.
    """

    folder: Path
    layout: str
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Found:
    """A folder below the given one, with the step that its path names, if any."""

    folder: Path
    step: int | None
    complete: bool


def locate(given: Path) -> Located:
    """Find the model's checkpoint in `given` or below it; only folders are listed.

    Raises:
        UsageError: there are several, and nothing says which.
        NotACheckpointError: there is none, or the files are those of another tool.
    """
    refuse_foreign(given)
    paths = describing_files(given)
    if paths:
        return Located(given, _layout(given), warnings=tuple(warnings_for(paths)))
    if not given.is_dir() or _is_cut_off(given):
        return Located(given, "")  # reading it says best what is wrong
    foreign: list[NotACheckpointError] = []
    unreadable: list[Path] = []
    found = list(_search(given, foreign, unreadable))
    complete = [place for place in found if place.complete]
    if not complete:
        raise _nothing(given, found, foreign, unreadable)
    newest = _newest(complete)
    if len(newest) > 1:
        raise _in_doubt(given, newest)
    chosen = newest[0]
    name = chosen.folder.relative_to(given)
    among = f", the newest of {len(complete)} complete steps" if len(complete) > 1 else ""
    note = f"took {name} in {given.name or given}{among}"
    warnings = [
        *_passed_by(given, chosen, found),
        *(
            f"passed by {name}: it cannot be listed"
            for name in _names(given, unreadable[:_MAX_LISTED])
        ),
        *warnings_for(describing_files(chosen.folder)),
    ]
    return Located(chosen.folder, _layout(chosen.folder), (note,), tuple(warnings))


def _search(
    given: Path, foreign: list[NotACheckpointError], unreadable: list[Path]
) -> Iterator[_Found]:
    """Every folder below `given` that holds a checkpoint, or the beginning of one.

    Args:
        foreign: gets the refusals of other tools' folders, which may stand beside.
        unreadable: gets the folders that this user may not look into (``lost+found``).
    """
    try:
        waiting = sorted(_folders(given))
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
            place, below = _look_into(folder, given)
        except NotACheckpointError as refusal:
            foreign.append(refusal)
        except OSError:
            unreadable.append(folder)
        else:
            if place is not None:
                yield place
            elif len(folder.relative_to(given).parts) < _MAX_DEPTH:
                waiting += below


def _look_into(folder: Path, given: Path) -> tuple[_Found | None, list[Path]]:
    """The checkpoint in a folder, and where there is none, the folders to look into next."""
    below = sorted(_folders(folder))
    refuse_foreign(folder)
    complete = bool(describing_files(folder))
    if complete or _is_cut_off(folder):
        return _Found(folder, step_of(folder.relative_to(given.parent)), complete), []
    return None, below


def _folders(folder: Path) -> Iterator[Path]:
    with os.scandir(folder) as entries:
        for entry in entries:
            if not _NOT_MODEL.fullmatch(entry.name) and entry.is_dir(follow_symlinks=False):
                yield Path(entry.path)


def _is_cut_off(folder: Path) -> bool:
    """Is there data without the description that is written last?"""
    return (folder / ".metadata.tmp").exists() or any(folder.glob("*.distcp"))


def step_of(path: Path) -> int | None:
    """The training step that the names of a path's folders tell; the innermost's counts."""
    steps = [int(match[1]) for part in path.parts if (match := _STEP.fullmatch(part))]
    return steps[-1] if steps else None


def _newest(places: list[_Found]) -> list[_Found]:
    """Those of the highest step; all of them if any has no step or they are of several runs."""
    steps = [place.step for place in places if place.step is not None]
    if len(steps) < len(places) or len({_run(place) for place in places}) > 1:
        return places
    return [place for place in places if place.step == max(steps)]


def _run(place: _Found) -> Path:
    """The folder that the step's folder stands in."""
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


def _passed_by(given: Path, chosen: _Found, found: list[_Found]) -> Iterator[str]:
    for place in found:
        if not place.complete and (place.step or 0) > (chosen.step or 0):
            yield f"passed by {place.folder.relative_to(given)}: its save was interrupted"


def _names(given: Path, folders: list[Path]) -> list[str]:
    """These folders, as the user sees them from `given`."""
    return [str(folder.relative_to(given)) for folder in folders]


def _nothing(
    given: Path,
    found: list[_Found],
    foreign: list[NotACheckpointError],
    unreadable: list[Path],
) -> NotACheckpointError:
    if found:
        names = format_list(_names(given, [place.folder for place in found]))
        return NotACheckpointError(
            f"{given}: no complete checkpoint; the save of each of these was interrupted: {names}",
            "Their .metadata is missing (it is written last, and is a hidden file).",
        )
    if foreign:
        return foreign[0]
    unknown = format_list(_names(given, unreadable))
    return NotACheckpointError(
        f"{given}: not a distributed checkpoint: there is no .metadata file in it or below it"
        + f" ({unknown} cannot be listed)" * bool(unknown),
        "Point --load-dir at the folder that holds .metadata and the .distcp files.",
    )


def _in_doubt(given: Path, places: list[_Found]) -> UsageError:
    names = _names(given, [place.folder for place in places])
    return UsageError(
        f"{given}: holds several checkpoints: {format_list(names)}",
        "Point --load-dir at one of them.",
    )
