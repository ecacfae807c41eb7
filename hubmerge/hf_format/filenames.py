"""The names of files by which loaders find a model: weights, their index, an adapter's config."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable

MODEL_STEM = "model"
SINGLE_NAME = "model.safetensors"
DIFFUSERS_STEM = "diffusion_pytorch_model"
STEMS = (MODEL_STEM, DIFFUSERS_STEM)
INDEX_NAME = "model.safetensors.index.json"
ADAPTER_NAME = "adapter_model.safetensors"
ADAPTER_CONFIG = "adapter_config.json"

# The files that loaders look for first, to decide how to load the weights.
LOADER_ENTRY_POINTS = frozenset(
    {INDEX_NAME, f"{DIFFUSERS_STEM}.safetensors.index.json", ADAPTER_CONFIG}
)

_MODEL_WEIGHTS = re.compile(rf"(model|{DIFFUSERS_STEM})(-\d{{5,}}-of-\d{{5,}})?\.safetensors")
_ADAPTER_WEIGHTS = re.compile(r"adapter_model(-\d{5,}-of-\d{5,})?\.safetensors")
_PICKLED = re.compile(
    r"((?:diffusion_)?pytorch_model|adapter_model)(-\d{5,}-of-\d{5,})?\.bin|pytorch_model\.bin\.index\.json"
)


def is_model_weights(name: str) -> bool:
    """Return whether a file of a whole model's weights may have this name."""
    return bool(_MODEL_WEIGHTS.fullmatch(name))


def is_weights(name: str) -> bool:
    """Return whether a file of weights, a model's or an adapter's, may have this name."""
    return is_model_weights(name) or bool(_ADAPTER_WEIGHTS.fullmatch(name))


def is_pickled_weights(name: str) -> bool:
    """Return whether pickled weights, which loaders use without safetensors, have this name."""
    return bool(_PICKLED.fullmatch(name))


def files_to_remove(names: Iterable[str], kept: Collection[str], *, is_adapter: bool) -> list[str]:
    """Return the existing files that must be removed when a model or an adapter is written.

    An adapter may lie beside a whole model; a model beside an adapter would not be loaded.
    """
    if is_adapter:
        return []
    return [
        name
        for name in names
        if (name in LOADER_ENTRY_POINTS or is_weights(name)) and name not in kept
    ]
