"""transformers' conversion rules run backwards: from the names in memory to those on the Hub.

The only module that touches transformers' conversion mapping, which is documented but young.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hubmerge.names.torch_views import from_torch, to_torch
from hubmerge.names.views import TensorView

# What transformers does to tensors on the way in that is cutting or reordering on the way back.
_SLICING = {"MergeModulelist", "Concatenate", "Transpose"}


def reverse_conversion(model: Any, stored: Mapping[str, TensorView]) -> dict[str, TensorView]:
    """Return what `save_pretrained` of `model` would make of these tensors, by name on the Hub.

    Rules that are more than slices (two tensors made one) are left out, so that those tensors keep
    their names in memory: transformers loads either, and the loader's own verdict follows.
    """
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import PrefixChange, revert_weight_conversion

    rules = [
        rule
        for rule in get_model_conversion_mapping(model, add_legacy=False)
        if not isinstance(
            rule, PrefixChange
        )  # as transformers does for a model not loaded from one
        and {type(op).__name__ for op in getattr(rule, "operations", ())} <= _SLICING
    ]
    if not rules:
        return dict(stored)
    model._weight_conversions = rules
    try:
        tensors = {name: to_torch(view) for name, view in stored.items()}
        reverted = revert_weight_conversion(model, tensors)
        return {name: from_torch(tensor) for name, tensor in reverted.items()}
    finally:
        del model._weight_conversions
