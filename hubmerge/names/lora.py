"""PEFT's names: a LoRA run's tensors become the adapter that `PeftModel.from_pretrained` loads."""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path

from hubmerge.errors import CheckpointError, UsageError
from hubmerge.hf_format.assets import Asset, read_json
from hubmerge.hf_format.filenames import ADAPTER_CONFIG

# What PEFT puts around the model.
_ROOT = "base_model.model."

_LORA = re.compile(r"(?:^|\.)lora_(?:A|B|E|embedding_A|embedding_B|magnitude_vector)(?:\.|$)")

# The adapter's own name, which PEFT keeps in memory and leaves out of files.
_WITH_ADAPTER = re.compile(
    r"(.*\.(?:lora_(?:A|B)))\.([^.]+)(\.(?:weight|bias))"
    r"|(.*\.lora_(?:E|embedding_A|embedding_B))\.([^.]+)()"
    r"|(.*\.lora_magnitude_vector)\.((?!weight$)[^.]+)(?:\.weight)?()"
    r"|(.*)\.modules_to_save\.([^.]+)(\..+)"
)


def has_adapter(names: Collection[str]) -> bool:
    """Is there a LoRA tensor among these?"""
    return any(map(_LORA.search, names))


def adapter_names(names: Collection[str]) -> dict[str, str | None]:
    """For each stored name the adapter's name for it; None for the base model's weights.

    Where a whole PEFT model was saved (frozen weights are ``….base_layer.…``) only what PEFT marks
    is the adapter's; where only what was trained was saved, everything is.

    Raises:
        CheckpointError: there are several adapters, or half of one.
    """
    whole_model = any(".base_layer." in name for name in names)
    result: dict[str, str | None] = {}
    adapters: set[str] = set()
    for name in names:
        match = _WITH_ADAPTER.fullmatch(name)
        marked = match is not None or _LORA.search(name) is not None
        if ".original_module." in name or (whole_model and not marked):
            result[name] = None
            continue
        plain = name
        if match is not None:
            stem, adapter, tail = next(
                match.group(i, i + 1, i + 2) for i in (1, 4, 7, 10) if match[i] is not None
            )
            adapters.add(adapter)
            plain = stem + tail
        result[name] = _ROOT + _below_root(plain)
    if len(adapters) > 1:
        raise CheckpointError(
            f"the checkpoint holds several adapters: {', '.join(sorted(adapters))}",
            "Choose one with --exclude, as in --exclude '\\.NAME\\.'.",
        )
    _check_pairs([name for name in result.values() if name is not None])
    return result


def _below_root(name: str) -> str:
    return name[name.find(_ROOT) + len(_ROOT) :] if _ROOT in name else name


def _check_pairs(names: list[str]) -> None:
    """Raises CheckpointError where one of a pair of matrices is missing: it would load as zeros."""
    known = set(names)
    for name in names:
        for one, other in (("lora_A", "lora_B"), ("lora_B", "lora_A")):
            if f".{one}." in name and name.replace(f".{one}.", f".{other}.") not in known:
                raise CheckpointError(
                    f"the adapter has {name!r} but no {other} for it: its update would be zero",
                    "The save was incomplete, or --include and --exclude left it out.",
                )


def base_name(name: str) -> str | None:
    """The model's own name for a weight of a PEFT model; None for the adapter's."""
    if _LORA.search(name) or ".original_module." in name:
        return None
    name = re.sub(r"\.modules_to_save\.[^.]+\.", ".", _below_root(name))
    return name.replace(".base_layer.", ".")


def find_adapter_config(given: str | Path | None, folders: Collection[Path]) -> Asset | None:
    """The adapter's config: the given file, or the first beside the checkpoint or in the assets.

    Raises:
        UsageError: the given file is not there, or not one.
    """
    candidates = [Path(given)] if given is not None else [f / ADAPTER_CONFIG for f in folders]
    for path in candidates:
        if path.is_file():
            if "peft_type" not in read_json(path):
                raise UsageError(f"{path}: is no adapter config: it has no peft_type")
            return Asset(ADAPTER_CONFIG, path)
    if given is not None:
        raise UsageError(f"{given}: no such file", "Check --adapter-config-path.")
    return None
