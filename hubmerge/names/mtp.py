"""Layers for multi-token prediction: a config promises them, and transformers does not load them.

Servers draft tokens with them. They stand behind the model's own layers (``model.layers.61`` where
there are 61) or under a name of their own (``mtp.layers.0``).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from hubmerge.hf_format.assets import config_levels

_FIELD = re.compile(r"(?=.*(?:^|_)(?:mtp|nextn)(?:_|$)).*(?:^|_)(?:num|layers?|modules)(?:_|$)")
_SEGMENT = re.compile(r"(?:^|\.)mtps?(?:_\w+)?\.")
_LAYER = re.compile(r"(?:^|\.)layers\.(\d+)\.")


class MtpPromise(NamedTuple):
    """What a config says of such layers.

    Attributes:
        field: where it says so, with dots.
        layers: how many there are.
        first: the number of the first where they follow the model's layers; None if unknown.
    """

    field: str
    layers: int
    first: int | None


def promised_mtp(config: Mapping[str, Any]) -> list[MtpPromise]:
    """Find every field of a config, at any depth, that promises such layers."""
    promises = []
    for path, level in config_levels(config):
        own = level.get("num_hidden_layers")
        first = own if type(own) is int else None
        for key, value in level.items():
            if type(value) is int and value > 0 and _FIELD.match(key):
                promises.append(MtpPromise(path + key, value, first))
    return promises


def is_mtp(name: str, promises: Collection[MtpPromise]) -> bool:
    """Return whether a tensor that the model itself does not have is of a promised layer."""
    if not promises:
        return False
    number = _LAYER.search(name)
    return bool(_SEGMENT.search(name)) or (
        number is not None
        and any(
            p.first is not None and p.first <= int(number[1]) < p.first + p.layers for p in promises
        )
    )


def missing_layers(names: Collection[str], promises: Collection[MtpPromise]) -> list[str]:
    """Return which of the promised layers are absent although others of their kind are there."""
    missing: list[str] = []
    for promise in promises:
        for own_name, first in ((False, promise.first), (True, 0)):
            if first is None:
                continue
            found = _numbers(names, own_name=own_name)
            wanted = set(range(first, first + promise.layers))
            if wanted & found:
                prefix = "mtp." if own_name else ""
                missing += [f"{prefix}layers.{number}" for number in sorted(wanted - found)]
    return list(dict.fromkeys(missing))


def _numbers(names: Collection[str], *, own_name: bool) -> set[int]:
    """Return the numbers of layers, under a name of their own or behind the model's."""
    return {
        int(match[1])
        for name in names
        if bool(_SEGMENT.search(name)) == own_name and (match := _LAYER.search(name))
    }
