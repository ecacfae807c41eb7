"""What names and shapes alone tell of a state dict: layers, second copies, the model's own prefix.

All functions take names without wrappers, each with its shape, and need one pass over the names for
each level of modules that they descend.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping

from hubmerge.names.module_names import BASES, HEADS, MODULES, is_module

Shapes = Mapping[str, tuple[int, ...]]

_NUMBERED = re.compile(r"(?:^|\.)\d+\.")

# Of the names of two copies, at least so many must be in both.
_ALIKE = 0.8

# A copy of a model has more tensors than the codebook of a quantizer, which may have an EMA too.
_FEWEST = 3

# Modules beside one another that are compared; a checkpoint has hardly ever more than three copies.
_MAX_COMPARED = 8


_EMA = re.compile(
    r"(?:\w+_)?(?:ema|swa|polyak|averaged?|moving_average|shadow)(?:_\w+|_?\d+)?", re.IGNORECASE
)


def is_ema(segment: str) -> bool:
    """Return whether a module or dict of this name holds a moving average of another."""
    return _EMA.fullmatch(segment) is not None


def by_first_segment(names: Iterable[str], prefix: str = "") -> dict[str, list[str]]:
    """Group names by the module under `prefix` that they are in; parameters there are left out."""
    groups: dict[str, list[str]] = {}
    for name in names:
        if name.startswith(prefix):
            segment, dot, _ = name[len(prefix) :].partition(".")
            if dot:
                groups.setdefault(segment, []).append(name)
    return groups


def has_layers(shapes: Shapes, names: Iterable[str]) -> bool:
    """Return whether there are matrices in numbered layers among `names`."""
    return any(len(shapes[name]) > 1 and _NUMBERED.search(name) for name in names)


def is_whole_model(names: Collection[str], prefix: str) -> bool:
    """Return whether the names begin anew under `prefix`: a base model, perhaps with a head."""
    inner = {name[len(prefix) :].partition(".")[0] for name in names}
    return inner <= BASES or not inner.isdisjoint(HEADS)


def find_copies(shapes: Shapes) -> list[str]:
    """Find modules that hold the same names and shapes, such as a model and its EMA.

    Returns:
        Their prefixes, those with the most tensors first; at most one per model, and none if
        everything is one model.
    """
    prefix = ""
    names: Collection[str] = shapes.keys()
    while True:
        groups = by_first_segment(names, prefix)
        if not groups:
            return []
        copies = _alike(shapes, {f"{prefix}{s}.": group for s, group in groups.items()})
        if len(copies) > 1:
            return copies
        segment, inner = max(groups.items(), key=lambda item: len(item[1]))
        if segment.isdigit() or 2 * len(inner) <= len(names):
            return []
        prefix, names = f"{prefix}{segment}.", inner


def are_alike(left: Shapes, right: Shapes) -> bool:
    """Return whether two state dicts hold the same model, but for a head or some buffers."""
    one, other = _core(left), _core(right)
    both = sum(other.get(name) == shape for name, shape in one.items())
    return both > 0 and both >= _ALIKE * max(len(one), len(other))


def share_names(part: Shapes, whole: Shapes) -> bool:
    """Return whether `whole` has nearly all the names in `part`."""
    one, other = _core(part), _core(whole)
    return bool(one) and sum(name in other for name in one) >= _ALIKE * len(one)


def have_same_shapes(part: Shapes, whole: Shapes) -> bool:
    """Return whether `whole` has tensors of nearly all the shapes in `part`, whatever their names.

    It has for an EMA that numbers the parameters, or leaves the dots out of their names.
    """
    known = set(whole.values())
    matrices = [shape for shape in part.values() if len(shape) > 1]
    return bool(matrices) and sum(s in known for s in matrices) >= _ALIKE * len(matrices)


def find_rivals(shapes: Shapes) -> list[str]:
    """Find several models that are not alike: whole ones under names that no model has."""
    groups = by_first_segment(shapes)
    rivals = [
        f"{segment}."
        for segment, names in groups.items()
        if not is_module(segment)
        and has_layers(shapes, names)
        and is_whole_model(names, f"{segment}.")
    ]
    return rivals if len(rivals) > 1 else []


def find_inner_copy(shapes: Shapes) -> str | None:
    """Find the prefix of a copy that lies among the modules of the bare model itself."""
    for segment, names in by_first_segment(shapes).items():
        # Of a model and its copy, and perhaps some tensors more, each is a third at least.
        if is_module(segment) or segment.isdigit() or 3 * len(names) < len(shapes):
            continue
        copy = {name[len(segment) + 1 :]: shapes[name] for name in names}
        rest = {n: shape for n, shape in shapes.items() if not n.startswith(f"{segment}.")}
        if len(copy) >= _FEWEST and has_layers(rest, rest) and are_alike(copy, rest):
            return f"{segment}."
    return None


def _alike(shapes: Shapes, groups: Mapping[str, list[str]]) -> list[str]:
    """The largest class of groups that hold the same model."""
    has_ema = any(is_ema(prefix.split(".")[-2]) for prefix in groups)
    largest = sorted(groups, key=lambda prefix: len(groups[prefix]), reverse=True)[:_MAX_COMPARED]
    candidates = [
        prefix
        for prefix in largest
        if not prefix.split(".")[-2].isdigit()
        and (has_ema or has_layers(shapes, groups[prefix]))
        and len(groups[prefix]) >= _FEWEST
    ]
    if len(candidates) < 2:
        return []
    inner = {p: {name[len(p) :]: shapes[name] for name in groups[p]} for p in candidates}
    for prefix in candidates:
        copies = [other for other in candidates if are_alike(inner[prefix], inner[other])]
        # A model's own encoder and decoder may be alike.
        if len(copies) > 1 and not all(p.split(".")[-2] in MODULES for p in copies):
            return copies
    return []


def _core(shapes: Shapes) -> Shapes:
    """Names from where they branch: `module.` of an averaged model says nothing."""
    names = [name for name, shape in shapes.items() if shape]
    prefix = ""
    while names:
        segment = names[0][len(prefix) :].partition(".")[0]
        longer = f"{prefix}{segment}."
        if segment.isdigit() or not all(name.startswith(longer) for name in names):
            break
        prefix = longer
    return {name[len(prefix) :]: shapes[name] for name in names}


def own_prefix(shapes: Shapes) -> str:
    """Find what stands before the model's own names: the attribute of a trainer's module.

    It is told by where it leads to: names that models have, as far as `module_names` knows. What
    lies outside of it must not be needed by a model: no layers and no head.
    """
    prefix = best = ""
    names: Collection[str] = shapes.keys()
    while names:
        firsts = [name[len(prefix) :].partition(".") for name in names]
        if any(is_module(segment) for segment, _, _ in firsts):
            best = prefix
        groups = by_first_segment(names, prefix)
        if not groups:
            break
        segment, inner = max(groups.items(), key=lambda item: len(item[1]))
        longer = f"{prefix}{segment}."
        if segment.isdigit() or segment in MODULES:
            break
        if segment in BASES and not _begins_anew(inner, longer, segment):
            break
        if len(inner) < len(names) and not _may_stand_outside(shapes, names, inner, longer):
            break
        prefix, names = longer, inner
    return best


def _begins_anew(names: Iterable[str], prefix: str, base: str) -> bool:
    """Return whether a whole model is inside an attribute that is called like a base model."""
    anew = (f"{prefix}{base}.", f"{prefix}lm_head.", f"{prefix}module.")
    return any(name.startswith(anew) for name in names)


def _may_stand_outside(
    shapes: Shapes, names: Collection[str], inner: Collection[str], prefix: str
) -> bool:
    outside = set(names) - set(inner)
    if has_layers(shapes, outside) or not has_layers(shapes, inner):
        return False
    return is_whole_model(inner, prefix) or all(len(shapes[name]) < 2 for name in outside)
