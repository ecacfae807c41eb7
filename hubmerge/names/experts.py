"""Stacked experts: one tensor for all of them in memory, often one for each on the Hub.

The Hub's layout of an architecture is transformers' own conversion read backwards, or what the base
model's index says; never guessed from a name. An expert's tensor is a slice in the plan, so nothing
is copied and memory stays as it is.

One thing nobody can see from outside: VeOmni with Muon's zero-communication mode and expert
parallelism saves expert tensors transposed in blocks, and `.metadata` does not say so.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from hubmerge.errors import UsageError
from hubmerge.names.architecture import Architecture
from hubmerge.names.reference import Reference
from hubmerge.names.views import TensorView

_STACK = re.compile(r"(.*\.experts)\.(gate_up_proj|gate_proj|up_proj|down_proj)(?:\.weight)?")

# How models that keep experts apart call their tensors and what stands before them.
_STYLES = (
    ("", "", {"gate": "gate_proj", "up": "up_proj", "down": "down_proj"}),
    (".mlp.", ".block_sparse_moe.", {"gate": "w1", "up": "w3", "down": "w2"}),
)

Parts = dict[str, TensorView]


@dataclass(frozen=True)
class Layout:
    """The tensors of the model by Hub name, each with its name in memory."""

    parts: dict[str, tuple[str, TensorView]]
    warnings: list[str]


def to_hub_layout(
    stored: Parts, wanted: str, architecture: Architecture | None, reference: Reference | None
) -> Layout:
    """Bring tensors from the names and shapes they have in memory to those on the Hub.

    Args:
        stored: by name in memory, prefixes stripped.
        wanted: ``auto``, ``fused`` or ``split``, see `NamingOptions`.

    Raises:
        UsageError: experts shall be split that have no layout of their own each.
    """
    joined = _fuse_gate_up(stored, architecture)
    on_hub = _to_hub(joined, architecture)
    known = set(reference.files) if reference else set()
    result: dict[str, tuple[str, TensorView]] = {}
    warnings: list[str] = []
    for name, part in joined.items():
        as_hub = on_hub[name]
        choice = as_hub if len(as_hub) > 1 else None
        if choice is None and _STACK.fullmatch(name) and len(part.shape) == 3:
            choice = _split_by_name(
                name, part, joined, known, force=wanted == "split" and not architecture
            )
            if wanted == "split" and choice is None:
                raise UsageError(
                    f"--experts split: no layout is known with one tensor for each of {name!r}",
                    "Leave the option out: the Hub's layout of this architecture is fused.",
                )
            if choice is None and not architecture and not known and not warnings:
                warnings.append(
                    f"experts are stored stacked ({name!r}) and stay so: only a config that "
                    "transformers knows or --base-model tells the Hub's layout; --experts split "
                    "gives each its own tensors"
                )
        if choice is None:
            choice = as_hub
        elif wanted == "fused" or (wanted == "auto" and name in known and not known >= set(choice)):
            choice = {name: part}
        result.update({hub_name: (name, piece) for hub_name, piece in choice.items()})
    return Layout(result, warnings)


def _fuse_gate_up(stored: Parts, architecture: Architecture | None) -> Parts:
    """Gate and up projections that are stored apart as the one tensor that transformers has."""
    joined = dict(stored)
    for name in stored:
        match = _STACK.fullmatch(name)
        if architecture is None or match is None or match[2] != "gate_proj":
            continue
        up, fused = name.replace(".gate_proj", ".up_proj"), f"{match[1]}.gate_up_proj"
        if up in stored and fused in architecture.names and stored[up].shape == stored[name].shape:
            both = TensorView.cat([stored[name], stored[up]], dim=1)
            if both.shape == architecture.names[fused]:
                del joined[name], joined[up]
                joined[fused] = both
    if architecture is not None:
        joined = dict(_without_suffix(joined, architecture))
    return joined


def _without_suffix(parts: Parts, architecture: Architecture) -> Iterator[tuple[str, TensorView]]:
    """``experts.down_proj.weight`` of older trainers is ``experts.down_proj``."""
    for name, part in parts.items():
        plain = name.removesuffix(".weight")
        is_stack = name not in architecture.names and plain in architecture.names
        yield (plain if is_stack and _STACK.fullmatch(name) else name), part


def _to_hub(stored: Parts, architecture: Architecture | None) -> dict[str, Parts]:
    """By name in memory, the Hub's tensors that transformers would make of each."""
    result: dict[str, Parts] = {name: {} for name in stored}
    known = {}
    for name, part in stored.items():
        if architecture is not None and name in architecture.names:
            known[name] = part
        else:
            result[name] = {name: part}
    names = {source.key: name for name, part in known.items() for source in part.sources}
    converted = architecture.to_hub(known) if architecture is not None else {}
    for hub_name, part in converted.items():
        result[names[part.sources[0].key]][hub_name] = part
    return result


def _split_by_name(
    name: str, part: TensorView, stored: Parts, known: set[str], *, force: bool
) -> Parts | None:
    """The experts' own tensors as a reference has them, or (`force`) as most models call them."""
    if not known and not force:
        return None
    for before, after, names in _STYLES:
        if before not in name:
            continue
        split = _experts(name.replace(before, after) if before else name, part, stored, name, names)
        if split and (force or known >= set(split)):
            return split
    return None


def _experts(
    new_name: str, part: TensorView, stored: Parts, name: str, names: Mapping[str, str]
) -> Parts | None:
    stem, _, kind = new_name.removesuffix(".weight").rpartition(".")
    kind = kind.removesuffix("_proj")
    result: Parts = {}
    for number, expert in enumerate(part.unbind()):
        if kind != "gate_up":
            result[f"{stem}.{number}.{names[kind]}.weight"] = expert
            continue
        down = stored.get(name.replace("gate_up_proj", "down_proj"))
        if down is None or expert.shape != (2 * down.shape[2], down.shape[1]):
            return None  # transposed or interleaved, as GPT-OSS has it
        gate, up = expert.chunk(2)
        result[f"{stem}.{number}.{names['gate']}.weight"] = gate
        result[f"{stem}.{number}.{names['up']}.weight"] = up
    return result
