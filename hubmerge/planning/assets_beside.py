"""Config and tokenizer that lie beside a checkpoint, for a user who names no assets folder.

They come from whoever the checkpoint comes from: they are read as its own files are, and neither
code nor a pickle is taken from there.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

from hubmerge.checkpoint.files import read_inside
from hubmerge.checkpoint.locate import step_folder
from hubmerge.hf_format.asset_names import CONFIG, PICKLES, is_asset
from hubmerge.hf_format.assets import MAX_JSON_BYTES, MODULES, Asset, Assets

# NeMo Automodel's, in the checkpoint; VeOmni's, beside the folder of all checkpoints.
_IN_CHECKPOINT = ".hf_metadata"
_IN_RUN = "model_assets"

# Of these one stands in any config of a model, and in none of a trainer.
_OF_A_MODEL = ("model_type", "architectures", "_class_name", "output_features")


def find_assets_beside(folder: Path, load_dir: Path) -> Assets | None:
    """Find a model's config, and what lies with it, in the places where trainers put it.

    Args:
        folder: the checkpoint's.
        load_dir: what the user gave, in which that was found.

    Raises:
        UnsafeInputError: a file is a link that leads away, no regular file, or too large.
    """
    for place in _places(folder.absolute(), load_dir.absolute()):
        if os.path.lexists(place / CONFIG):
            assets = _read(place.resolve())
            if assets is not None:
                return assets
    return None


def _places(folder: Path, given: Path) -> Iterator[Path]:
    """The checkpoint's folder and those around it in its step, then the run's own."""
    step = step_folder(folder)
    for place in (folder, *folder.parents):
        is_inside = place.is_relative_to(given) or (step is not None and place.is_relative_to(step))
        if place != folder and not is_inside:
            break
        yield place
        yield place / _IN_CHECKPOINT
    if step is not None:
        yield step.parent / _IN_RUN
        yield step.parent.parent / _IN_RUN


def _read(place: Path) -> Assets | None:
    """Read the assets in a folder; None if its config is no model's."""
    try:
        config = json.loads(read_inside(place, CONFIG, MAX_JSON_BYTES).decode())
    except (ValueError, RecursionError):
        return None
    if not isinstance(config, dict) or not any(key in config for key in _OF_A_MODEL):
        return None
    names = sorted(path.name for path in place.iterdir() if is_asset(path.name))
    files = tuple(
        Asset(name, place / name, read_inside(place, name, MAX_JSON_BYTES))
        for name in names
        if name not in PICKLES and name != MODULES
    )
    named = ", ".join(asset.name for asset in files)
    notes = (f"no --model-assets-dir was given; taken from {place}: {named}",)
    warnings = (
        (
            f"{CONFIG} names code of its own (auto_map), which is not taken from beside a "
            "checkpoint: give --model-assets-dir",
        )
        if "auto_map" in config
        else ()
    )
    return Assets(files, config, warnings, notes)
