"""From a folder and options to a plan that the model's own loader has accepted.

    locate -> read -> what is known of the model -> names -> plan -> assets -> the loader's check

transformers is asked only if there is a config, and only then imported.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from hubmerge.checkpoint.boxes import is_all_zero, same_elements
from hubmerge.checkpoint.data_files import DataFiles
from hubmerge.checkpoint.locate import Located, locate
from hubmerge.checkpoint.metadata import read_checkpoint
from hubmerge.checkpoint.schema import Checkpoint, StoredTensor
from hubmerge.errors import CheckpointError, UsageError
from hubmerge.hf_format.assets import Assets, collect_assets
from hubmerge.hf_format.filenames import MODEL_STEM
from hubmerge.names.adapter import may_hold_adapter
from hubmerge.names.architecture import Architecture, UnknownArchitectureError, load_architecture
from hubmerge.names.diffusers_model import UnknownModelError, kept_in_fp32
from hubmerge.names.layouts import WRAPPER
from hubmerge.names.loader_check import check_with_loader
from hubmerge.names.mtp import is_mtp, promised_mtp
from hubmerge.names.naming import ModelSpec, holds_model, name_weights
from hubmerge.names.options import NamingOptions
from hubmerge.names.prefixes import best_rule, unwrap
from hubmerge.names.reference import differences, find_base_model, read_reference
from hubmerge.names.torchtitan import is_torchtitan
from hubmerge.names.weights import Naming
from hubmerge.planning.adapter import (
    AdapterFiles,
    adapter_assets,
    check_adapter_plan,
    find_adapter_files,
)
from hubmerge.planning.assets_beside import find_assets_beside
from hubmerge.planning.consistency import reconcile
from hubmerge.planning.options import DEFAULT_DTYPE, DEFAULT_SHARD_SIZE, PlanOptions
from hubmerge.planning.plan import Plan, PlannedTensor, make_plan
from hubmerge.progress import SILENT, Progress
from hubmerge.system.gc_pause import gc_paused

# Of the names of a class that stands for an unknown one, the checkpoint must have at least so many.
_FEWEST_KNOWN = 0.25


def _folders_of(located: Located) -> Iterator[str]:
    """Say whose folders these look like: a hint for the user, and no proof for a card."""
    if located.layout:
        yield f"folder layout: {located.layout}"


class _Known(NamedTuple):
    """What is known of the model, and what could not be found out."""

    truth: ModelSpec
    warnings: list[str]
    stem: str = MODEL_STEM
    kept_in_fp32: tuple[str, ...] = ()


@gc_paused()
def prepare(
    load_dir: Path, options: PlanOptions, progress: Progress = SILENT
) -> tuple[Plan, Assets]:
    """Plan the conversion of whatever `load_dir` points at.

    No tensor is read but those that the config ties, to be compared, and what is left out although
    it may be trained, up to its first value that is not zero.

    Raises:
        HubmergeError: one of the tree in `hubmerge.errors`.
    """
    assets_dir = Path(options.model_assets_dir) if options.model_assets_dir is not None else None
    wanted, dtype = options.naming, options.dtype or DEFAULT_DTYPE
    progress.status("Reading checkpoint…")
    located = locate(load_dir, holds_model, ema=wanted.ema)
    checkpoint = read_checkpoint(located.folder)
    if located.is_ema:
        wanted = replace(wanted, ema=False)  # done: no copy inside the checkpoint is meant
    may_be_adapter = may_hold_adapter(checkpoint.tensors) and wanted.mode != "full"
    beside = None
    if assets_dir is None and not may_be_adapter:
        beside = find_assets_beside(located.folder, load_dir)
    if (assets_dir or beside or wanted.base_model) is not None:
        progress.status("Checking names with transformers…")
    known = _what_is_known(checkpoint, assets_dir, beside, wanted)
    files = AdapterFiles(None, None)
    if may_be_adapter:
        files = find_adapter_files(located.folder, load_dir, assets_dir, wanted)
    truth = replace(known.truth, adapter=files.spec)
    wanted = replace(wanted, keep_dtype=(*wanted.keep_dtype, *known.kept_in_fp32))
    naming = name_weights(
        checkpoint, wanted, truth, dtype, dtype_is_given=options.dtype is not None
    )
    naming.warnings[:0] = [*located.warnings, *known.warnings]
    plan = make_plan(
        checkpoint,
        naming,
        dtype=dtype,
        shard_size=options.shard_size or DEFAULT_SHARD_SIZE,
        allow_overflow=wanted.allow_overflow,
        notes=(*located.notes, *_folders_of(located), *naming.notes),
        stem=known.stem,
    )
    if plan.is_adapter:
        warnings = check_adapter_plan(plan, files, known.truth, wanted)
        plan = replace(plan, warnings=(*plan.warnings, *warnings))
        return plan, adapter_assets(files, assets_dir)
    assets = reconcile(
        beside.with_dtype(plan.main_dtype)
        if beside is not None
        else collect_assets(assets_dir, plan.main_dtype),
        plan,
        known.truth.architecture,
        must_load=wanted.check_model,
    )
    plan = replace(plan, notes=(*plan.notes, *assets.notes))
    if wanted.check_model:
        warnings = _check(plan, naming, known.truth)
        plan = replace(plan, warnings=(*plan.warnings, *warnings))
    return plan, assets


def _what_is_known(
    checkpoint: Checkpoint,
    assets_dir: Path | None,
    beside: Assets | None,
    options: NamingOptions,
) -> _Known:
    base_dir = find_base_model(options.base_model) if options.base_model is not None else None
    warnings: list[str] = []
    if options.base_model is not None and base_dir is None:
        warnings.append(
            f"the names cannot be compared with those of {options.base_model}, which is not in the "
            f"local cache; hf download {options.base_model} --include '*.json' puts them there"
        )
    folders = [folder for folder in (base_dir, assets_dir) if folder is not None]
    reference = next(filter(None, map(read_reference, folders)), None)
    if reference is None and options.like_base_shards:
        raise UsageError(
            "--like-base-shards: neither --base-model nor the assets folder holds a safetensors "
            "index, or a safetensors file that can be read",
            "Name one with --base-model.",
        )
    if reference is not None and reference.label == str(base_dir):
        reference = replace(reference, label=options.base_model or "")
    files = DataFiles(checkpoint.folder)

    def same(left: StoredTensor, right: StoredTensor) -> bool:
        return same_elements(left, right, files)

    def all_zero(tensor: StoredTensor) -> bool:
        try:
            return is_all_zero(tensor, files)
        except CheckpointError:
            return False  # it is not part of the model, and need not be whole

    config_assets = beside or _with_config(assets_dir, base_dir)
    if config_assets is None:
        return _Known(ModelSpec(None, None, reference, same, all_zero), warnings)
    architecture = _architecture(config_assets, checkpoint.tensors, options, warnings)
    spec = ModelSpec(
        config_assets.config, architecture, reference, same, all_zero, modules=config_assets.modules
    )
    kept = _kept_in_fp32(config_assets, warnings)
    return _Known(spec, warnings, config_assets.stem, kept)


def _kept_in_fp32(assets: Assets, warnings: list[str]) -> tuple[str, ...]:
    """Regexes of the names that diffusers keeps in fp32."""
    if assets.library != "diffusers":
        return ()
    try:
        return kept_in_fp32(str((assets.config or {})["_class_name"]))
    except UnknownModelError as error:
        warnings.append(
            f"{error}: which tensors it keeps in float32 is not known; name them with --keep-dtype"
        )
        return ()


def _with_config(*folders: Path | None) -> Assets | None:
    """Return the assets of the first folder that has a config."""
    for folder in folders:
        if folder is not None:
            assets = collect_assets(folder, None)
            if assets.config is not None:
                return assets
    return None


def _architecture(
    assets: Assets, keys: Collection[str], options: NamingOptions, warnings: list[str]
) -> Architecture | None:
    if assets.library in ("diffusers", "lerobot"):
        warnings.append(
            f"the names are not checked: {assets.library} loads this model, not transformers"
        )
        return None
    trusts_code = options.trust_remote_code
    try:
        found = load_architecture(assets, trust_remote_code=trusts_code, keys=keys)
    except UnknownArchitectureError as error:
        has_code = not trusts_code and (assets.config or {}).get("auto_map")
        warnings.append(
            f"the names cannot be checked: transformers cannot build this model ({error}); which "
            "weights are tied, how experts are stored on the Hub and what stays in float32 are "
            "not known either" + "; --trust-remote-code runs the model's own code" * bool(has_code)
        )
        return None
    nearest = found.model_class.__name__
    if found.stands_for and found.is_certain and not _resembles(keys, found):
        warnings.append(
            f"the names cannot be checked: config.json names {found.stands_for}, which "
            f"transformers does not have, and these are not the names of {nearest} either; which "
            "weights are tied, how experts are stored on the Hub and what stays in float32 are "
            "not known"
        )
        return None
    if not found.is_certain:
        warnings.append(
            f"{found.stands_for or 'the class of the model'} is defined by code that comes with "
            f"it: names are only compared with those of {nearest}, and keep the layout that they "
            "have in the checkpoint; --trust-remote-code runs the code"
        )
    elif found.stands_for:
        warnings.append(
            f"config.json names {found.stands_for}, which transformers does not have: "
            f"names, ties and precision are those of {nearest}"
        )
    return found


def _resembles(keys: Collection[str], stand_in: Architecture) -> bool:
    """Return whether a checkpoint may be of the class that stands for an unknown one.

    A draft model of a few layers is derived from a class, and has hardly one of its names.
    """
    names = {unwrap(key.removeprefix(f"{WRAPPER}.")) for key in keys}
    if may_hold_adapter(names) or is_torchtitan(names):
        return True
    _, known = best_rule(names, stand_in.hub_shapes.keys() | stand_in.names.keys())
    return known >= _FEWEST_KNOWN * len(stand_in.names)


def _check(plan: Plan, naming: Naming, truth: ModelSpec) -> list[str]:
    """Ask the loader, or else the base model; return what could not be checked."""
    if truth.architecture is not None:
        return check_with_loader(_loaded_by_transformers(plan, truth), truth.architecture)
    if truth.reference is not None:
        names = [weight.name for weight in naming.weights if not weight.folder]
        different = differences(names, truth.reference.files)
        if different:
            raise CheckpointError(
                f"these are not the names of the base model {truth.reference.label}: {different}",
                "Correct them with --rename or --model-key; --no-check-model converts them so.",
            )
    return []


def _loaded_by_transformers(plan: Plan, truth: ModelSpec) -> Iterator[PlannedTensor]:
    """Return the tensors without those of layers that only servers load."""
    promises, known = promised_mtp(truth.config or {}), truth.known_names()
    for shard in plan.model_shards:
        for tensor in shard.tensors:
            if tensor.name in known or not is_mtp(tensor.name, promises):
                yield tensor
