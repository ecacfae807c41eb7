"""transformers' conversion rules run backwards: from the names in memory to those on the Hub.

The only module that touches transformers' conversion mapping, which is documented but young. Its
own code does the work, on tensors without data that record where their elements come from.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from hubmerge.checkpoint.schema import StoredTensor
from hubmerge.names.torch_views import Recorded, from_torch, to_torch
from hubmerge.names.views import NotAViewError, TensorView


@dataclass(frozen=True)
class OnHub:
    """Tensors as `save_pretrained` would write them.

    Attributes:
        tensors: by name on the Hub.
        made_of: the names in memory that each consists of.
        ignored: names in memory that `save_pretrained` leaves out.
        refused: rules that do more than move elements, or do not fit; their tensors keep the names
            and shapes that they have in memory.
    """

    tensors: dict[str, TensorView]
    made_of: dict[str, tuple[str, ...]]
    ignored: tuple[str, ...] = ()
    refused: tuple[str, ...] = ()

    @classmethod
    def unchanged(cls, views: Mapping[str, TensorView]) -> OnHub:
        """Return these tensors under the names that they have in memory."""
        return cls(dict(views), {name: (name,) for name in views})

    def with_unchanged(self, views: Mapping[str, TensorView]) -> OnHub:
        """Return the same with these tensors under the names that they have in memory."""
        others = OnHub.unchanged(views)
        return replace(
            self,
            tensors=self.tensors | others.tensors,
            made_of=self.made_of | others.made_of,
        )


def reverse_conversion(model: Any, stored: Mapping[str, TensorView]) -> OnHub:
    """Return what `save_pretrained` of `model` would make of these tensors.

    Args:
        model: a model of transformers; its weights are not looked at.
        stored: by name in memory.
    """
    ignored = [name for name in model._keys_to_ignore_on_save or () if name in stored]
    kept = {name: view for name, view in stored.items() if name not in ignored}
    rules, refused = _rules(model), {}
    try:
        found = _reverse(model, rules, kept)
    except Exception:  # noqa: BLE001 - whatever a rule raises at tensors that do not fit it
        refused = {n: why for n, rule in enumerate(rules) if (why := _why_not(model, rule, kept))}
        found = _reverse(model, [r for n, r in enumerate(rules) if n not in refused], kept)
    return OnHub(
        {name: tensor.view for name, tensor in found.items()},
        {name: tensor.names for name, tensor in found.items()},
        tuple(sorted(ignored)),
        tuple(refused.values()),
    )


def stand_ins(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, TensorView]:
    """Return a view for each name of a model, as if all were stored."""
    return {n: TensorView.whole(StoredTensor(n, "", shape, ())) for n, shape in shapes.items()}


def _rules(model: Any) -> list[Any]:
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import PrefixChange

    # As transformers does for a model that was not loaded: whether its checkpoint had a prefix is
    # not known.
    rules = get_model_conversion_mapping(model, add_legacy=False)
    return [rule for rule in rules if not isinstance(rule, PrefixChange)]


def _reverse(model: Any, rules: list[Any], stored: Mapping[str, TensorView]) -> dict[str, Recorded]:
    """Run these rules backwards; raises whatever one of them raises."""
    from transformers.core_model_loading import revert_weight_conversion

    tensors = {name: to_torch(Recorded(view, (name,))) for name, view in stored.items()}
    if not rules:
        return {name: from_torch(tensor) for name, tensor in tensors.items()}
    model._weight_conversions = rules
    try:
        reverted = revert_weight_conversion(model, tensors)
    finally:
        del model._weight_conversions
    return {name: from_torch(tensor) for name, tensor in reverted.items()}


def _why_not(model: Any, rule: Any, stored: Mapping[str, TensorView]) -> str:
    """Return why a rule cannot be run backwards on these tensors; "" if it can."""
    try:
        _reverse(model, [rule], stored)
    except Exception as error:  # noqa: BLE001 - whatever it raises is the reason
        operations = ", ".join(type(op).__name__ for op in getattr(rule, "operations", ()))
        is_computed = isinstance(error, NotAViewError)
        reason = "computes new values" if is_computed else f"does not fit ({error})"
        return f"{operations or type(rule).__name__} for {', '.join(rule.target_patterns)} {reason}"
    return ""
