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
from hubmerge.names.conversion_rules import OnHub
from hubmerge.names.reference import Reference
from hubmerge.names.views import TensorView

_STACK = re.compile(r"(.*\.experts)\.(gate_up_proj|gate_proj|up_proj|down_proj)(?:\.weight)?")

_NUMBER = re.compile(r"\.\d+\.")

# How models that keep experts apart call their tensors and what stands before them.
_STYLES = (
    ("", "", {"gate": "gate_proj", "up": "up_proj", "down": "down_proj"}),
    (".mlp.", ".block_sparse_moe.", {"gate": "w1", "up": "w3", "down": "w2"}),
)

Views = dict[str, TensorView]


@dataclass(frozen=True)
class Layout:
    """The tensors of the model as they are published.

    Attributes:
        views: by name on the Hub, each with a name that it has in memory.
        ignored: names in memory that `save_pretrained` leaves out.
        warnings: what a user should know.
    """

    views: dict[str, tuple[str, TensorView]]
    ignored: tuple[str, ...]
    warnings: list[str]


@dataclass
class _Group:
    """Tensors in memory, and those on the Hub that are made of them together."""

    in_memory: Views
    on_hub: Views


def to_hub_layout(
    stored: Views, wanted: str, architecture: Architecture | None, reference: Reference | None
) -> Layout:
    """Bring tensors from the names and shapes they have in memory to those on the Hub.

    Args:
        stored: by name in memory, prefixes stripped.
        wanted: ``auto``, ``fused`` or ``split``, see `NamingOptions`.
        architecture: what transformers makes of the config.
        reference: the base model.

    Raises:
        UsageError: experts shall be split that have no layout of their own each.
    """
    joined = _fuse_gate_up(stored, architecture)
    on_hub = _on_hub(joined, architecture)
    known = set(reference.files) if reference else set()
    result: dict[str, tuple[str, TensorView]] = {}
    warnings = [
        f"transformers' own rule {rule}: those tensors keep the layout that they have in memory"
        for rule in on_hub.refused
    ]
    for group in _groups(joined, on_hub):
        name, view = next(iter(group.in_memory.items()))
        is_split = len(group.on_hub) > len(group.in_memory)
        choice = group.on_hub
        if _is_stack(group.in_memory) and not is_split:
            split = _split_by_name(
                name, view, joined, known, force=wanted == "split" and not architecture
            )
            if wanted == "split" and split is None:
                raise UsageError(
                    f"--experts split: no layout is known with one tensor for each of {name!r}",
                    "Leave the option out: the Hub's layout of this architecture is fused.",
                )
            if split is None and not architecture and not known and not warnings:
                warnings.append(
                    f"experts are stored stacked ({name!r}) and stay so: only a config that "
                    "transformers knows or --base-model tells the Hub's layout; --experts split "
                    "gives each its own tensors"
                )
            is_split, choice = split is not None, split or choice
        if (wanted == "fused" and is_split and "experts" in name) or (
            wanted == "auto" and known >= set(group.in_memory) and not known >= set(choice)
        ):
            choice = group.in_memory
        result.update({hub_name: (name, one) for hub_name, one in choice.items()})
    return Layout(result, on_hub.ignored, warnings)


def _groups(stored: Views, on_hub: OnHub) -> list[_Group]:
    """Group the names in memory by the tensors on the Hub that they have in common."""
    group_of: dict[str, _Group] = {}
    for hub_name, view in on_hub.tensors.items():
        names = on_hub.made_of[hub_name]
        group = _Group({}, {})
        for name in names:
            other = group_of.get(name) or _Group({name: stored[name]}, {})
            if other is not group:
                group.in_memory |= other.in_memory
                group.on_hub |= other.on_hub
                group_of |= dict.fromkeys(other.in_memory, group)
        group.on_hub[hub_name] = view
    return list({id(group): group for group in group_of.values()}.values())


def _is_stack(in_memory: Views) -> bool:
    (name, view), *others = in_memory.items()
    return not others and len(view.shape) == 3 and _STACK.fullmatch(name) is not None


def _fuse_gate_up(stored: Views, architecture: Architecture | None) -> Views:
    """Fuse separately stored gate and up projections into the one tensor of transformers."""
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


def _without_suffix(views: Views, architecture: Architecture) -> Iterator[tuple[str, TensorView]]:
    """Strip ``.weight`` of older trainers, as from ``experts.down_proj.weight``."""
    for name, view in views.items():
        plain = name.removesuffix(".weight")
        is_stack = name not in architecture.names and plain in architecture.names
        yield (plain if is_stack and _STACK.fullmatch(name) else name), view


def _on_hub(stored: Views, architecture: Architecture | None) -> OnHub:
    """Return what transformers would make of the tensors; those it does not know stay.

    A further layer is converted as the model's own are: those that predict several tokens are in no
    class of transformers.
    """
    if architecture is None:
        return OnHub.unchanged(stored)
    kinds = set(map(_of_any_layer, architecture.names))
    known = {name: view for name, view in stored.items() if _of_any_layer(name) in kinds}
    unknown = {name: view for name, view in stored.items() if name not in known}
    return architecture.to_hub(known).with_unchanged(unknown)


def _of_any_layer(name: str) -> str:
    return _NUMBER.sub(".#.", name)


def _split_by_name(
    name: str, view: TensorView, stored: Views, known: set[str], *, force: bool
) -> Views | None:
    """Split into one tensor per expert, named as in a reference or (`force`) as is usual."""
    if not known and not force:
        return None
    for before, after, names in _STYLES:
        if before not in name:
            continue
        split = _experts(name.replace(before, after) if before else name, view, stored, name, names)
        if split and (force or known >= set(split)):
            return split
    return None


def _experts(
    new_name: str, view: TensorView, stored: Views, name: str, names: Mapping[str, str]
) -> Views | None:
    stem, _, kind = new_name.removesuffix(".weight").rpartition(".")
    kind = kind.removesuffix("_proj")
    result: Views = {}
    for number, expert in enumerate(view.unbind()):
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
