"""What is known of an adapter beside its checkpoint, and the files that are published with it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hubmerge.checkpoint.files import read_inside
from hubmerge.checkpoint.locate import step_folder
from hubmerge.errors import UsageError
from hubmerge.hf_format.asset_names import CONFIG
from hubmerge.hf_format.assets import MAX_JSON_BYTES, Asset, Assets, collect_assets
from hubmerge.hf_format.filenames import ADAPTER_CONFIG
from hubmerge.names.adapter import AdapterConfig, AdapterSpec
from hubmerge.names.adapter_check import check_adapter
from hubmerge.names.architecture import UnknownArchitectureError, load_architecture
from hubmerge.names.naming import ModelSpec
from hubmerge.names.options import NamingOptions
from hubmerge.names.reference import find_base_model, is_on_hub
from hubmerge.planning.plan import Plan

# An adapter's repository has the config of PEFT, not that of a model.
_NOT_FOR_ADAPTERS = frozenset({CONFIG, "generation_config.json"})

# Where trainers put an adapter's config in a step's folder, beside or above the checkpoint.
_IN_STEP = ("", "lora_ckpt", "hf_ckpt", "lora_adapter", "adapter")


@dataclass(frozen=True)
class AdapterFiles:
    """What was found of an adapter.

    Attributes:
        config: its config, with the content that was read; None if there is none.
        base: the base model's config and what is beside it; None if it is not at hand.
    """

    config: Asset | None
    base: Assets | None

    @property
    def values(self) -> dict[str, Any]:
        return _parse(self.config) if self.config is not None else {}

    @property
    def spec(self) -> AdapterSpec:
        config = AdapterConfig(self.values) if self.config is not None else None
        base_config = self.base.config if self.base is not None else None
        return AdapterSpec(config, _vocabulary(base_config or {}))


def find_adapter_files(
    folder: Path, load_dir: Path, assets_dir: Path | None, options: NamingOptions
) -> AdapterFiles:
    """Find an adapter's config, and that of its base model; nothing is downloaded.

    Args:
        folder: the checkpoint's.
        load_dir: what the user gave, in which that was found.

    Raises:
        UsageError: a file is not what its name says.
        UnsafeInputError: a file beside the checkpoint is a link that leads away, or no file.
    """
    config = _find_config(folder, load_dir, assets_dir, options.adapter_config_path)
    base_model = _parse(config).get("base_model_name_or_path") if config is not None else None
    folders = [find_base_model(options.base_model)] if options.base_model is not None else []
    if isinstance(base_model, str) and is_on_hub(base_model):
        folders.append(find_base_model(base_model))
    folders.append(assets_dir)
    found = (collect_assets(folder, None) for folder in folders if folder is not None)
    return AdapterFiles(config, next((a for a in found if a.config is not None), None))


def _find_config(
    folder: Path, load_dir: Path, assets_dir: Path | None, given: str | Path | None
) -> Asset | None:
    """The config that was given; else of the assets; else of the checkpoint's own step."""
    if given is not None:
        if not Path(given).is_file():
            raise UsageError(f"{given}: no such file", "Check --adapter-config-path.")
        return _read(Path(given))
    if assets_dir is not None and (assets_dir / ADAPTER_CONFIG).is_file():
        return _read(assets_dir / ADAPTER_CONFIG)
    for place in _beside(folder.absolute(), load_dir.absolute()):
        if (place / ADAPTER_CONFIG).is_symlink() or (place / ADAPTER_CONFIG).exists():
            content = read_inside(place.resolve(), ADAPTER_CONFIG, MAX_JSON_BYTES)
            return _checked(Asset(ADAPTER_CONFIG, place / ADAPTER_CONFIG, content))
    return None


def _beside(folder: Path, given: Path) -> Iterator[Path]:
    """The checkpoint's folder, those around it up to the given one, and others of its step."""
    yield folder
    for parent in folder.parents:
        if parent != folder.parent and not parent.is_relative_to(given):
            break
        yield parent
    step = step_folder(folder)
    if step is not None:
        # VeOmni has checkpoints/global_step_5, and what it exports in global_step_5 beside that.
        for place in (step, step.parent.parent / step.name):
            yield from (place / name for name in _IN_STEP)


def _read(path: Path) -> Asset:
    if path.stat().st_size > MAX_JSON_BYTES:
        raise UsageError(f"{path}: is too large to be a config")
    return _checked(Asset(ADAPTER_CONFIG, path, path.read_bytes()))


def _checked(config: Asset) -> Asset:
    """Raise UsageError if this is no adapter's config."""
    try:
        values = json.loads(config.read().decode())
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{config.source}: is not valid JSON: {error}") from None
    if not isinstance(values, dict) or "peft_type" not in values:
        raise UsageError(f"{config.source}: is no adapter config: it has no peft_type")
    return config


def _parse(config: Asset) -> dict[str, Any]:
    values: dict[str, Any] = json.loads(config.read().decode())
    return values


def _vocabulary(config: Mapping[str, Any]) -> int | None:
    """Rows of the embedding of the model that a config describes."""
    for part in (config, config.get("text_config")):
        size = part.get("vocab_size") if isinstance(part, Mapping) else None
        if type(size) is int:
            return size
    return None


def adapter_assets(files: AdapterFiles, assets_dir: Path | None) -> Assets:
    """The tokenizer if there is one, and PEFT's config."""
    found = collect_assets(assets_dir, None).files if assets_dir is not None else ()
    kept = [asset for asset in found if asset.name not in _NOT_FOR_ADAPTERS]
    if files.config is None:
        missing = f"no {ADAPTER_CONFIG}: PeftModel cannot load the adapter"
        return Assets(tuple(kept), None, (f"{missing}; give --adapter-config-path",))
    base = files.values.get("base_model_name_or_path")
    if isinstance(base, str) and is_on_hub(base):
        return Assets((*kept, files.config), None, ())
    unknown = (
        f"{ADAPTER_CONFIG} names no base model on the Hub (base_model_name_or_path is {base!r}): "
        "nobody can load the adapter by its own name; correct it there, and push again"
    )
    return Assets((*kept, files.config), None, (unknown,))


def check_adapter_plan(
    plan: Plan, files: AdapterFiles, truth: ModelSpec, options: NamingOptions
) -> list[str]:
    """Check an adapter's names and shapes against its base model, if that is at hand.

    Returns:
        Warnings: what could not be checked, and what the base model lacks.

    Raises:
        CheckpointError: PEFT would not load the adapter whole.
    """
    config = files.spec.config
    if config is None or not options.check_model:
        return []
    if files.base is None:
        return [
            "the adapter is not checked against its base model, whose config is not at hand; give "
            "that model's folder, or its repository if it is in the local cache, as --base-model"
        ]
    architecture = truth.architecture
    if truth.config != files.base.config:
        try:
            architecture = load_architecture(
                files.base, trust_remote_code=options.trust_remote_code
            )
        except UnknownArchitectureError as error:
            return [f"the adapter is not checked: transformers cannot build its base ({error})"]
    if architecture is None:  # which has been said
        return []
    shapes = {tensor.name: tensor.shape for shard in plan.shards for tensor in shard.tensors}
    return check_adapter(shapes, config, architecture, files.spec.base_rows)
