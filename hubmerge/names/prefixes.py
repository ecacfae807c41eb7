"""Wrappers and prefixes: what torch and trainers put before or between a model's own names."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable

from hubmerge.errors import CheckpointError

# Modules that torch wraps around others, at any depth: torch.compile, FSDP1, activation
# checkpointing.
_WRAPPER_SEGMENTS = frozenset({"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})

# DistributedDataParallel's, only ever in front.
_LEADING = "module."

# A prefix is looked for in the first segments of names only.
_MAX_PREFIX_SEGMENTS = 4

Rule = Callable[[str], str]


def unwrap(name: str) -> str:
    """`name` without the names of wrapping modules.

    Raises:
        CheckpointError: it is FSDP1's flattened parameter, whose parts cannot be told.
    """
    segments = name.split(".")
    if "_flat_param" in segments:
        raise CheckpointError(
            f"{name!r} is a flattened parameter of FSDP1: the tensors in it have no names",
            "Save with use_orig_params=True, or with FSDP's SHARDED_STATE_DICT.",
        )
    if not _WRAPPER_SEGMENTS.isdisjoint(segments):
        name = ".".join(s for s in segments if s not in _WRAPPER_SEGMENTS)
    while name.startswith(_LEADING):
        name = name.removeprefix(_LEADING)
    return name


def default_prefix(names: Collection[str]) -> str:
    """What to strip where nothing tells the model's own names: a Lightning module's attribute.

    ``model.model.layers…`` and ``model.lm_head…`` under one another are `self.model = model` around
    a causal model; a model's own names have only one ``model.``.
    """
    prefix = ""
    while names and all(name.startswith(f"{prefix}model.") for name in names):
        deeper = (f"{prefix}model.model.", f"{prefix}model.lm_head.")
        if not any(name.startswith(deeper) for name in names):
            break
        prefix += "model."
    return prefix


def best_rule(names: Collection[str], known: Collection[str]) -> tuple[Rule, str, int]:
    """The prefix rule that gives the most names that are known to be a model's.

    Args:
        names: the stored names, unwrapped.
        known: the names of the base model, or of the architecture.

    Returns:
        The rule, what it does in a few words, and how many names it makes known.
    """
    default = default_prefix(names)
    best = _strip(default)
    best_score = _score(names, known, best[0])
    for rule in _candidates(names, known):
        score = _score(names, known, rule[0])
        if score > best_score:
            best, best_score = rule, score
    return *best, best_score


def _score(names: Iterable[str], known: Collection[str], rule: Rule) -> int:
    return sum(rule(name) in known for name in names)


def _candidates(names: Collection[str], known: Collection[str]) -> list[tuple[Rule, str]]:
    stripped = {"", *(prefix for name in names for prefix in _prefixes(name))}
    added = {prefix for name in known for prefix in _prefixes(name)}
    # Adding a prefix that names already have is never right.
    missing = [p for p in added if not any(name.startswith(p) for name in names)]
    return [
        *map(_strip, sorted(stripped, key=lambda p: (len(p), p))),
        *map(_add, sorted(missing, key=lambda p: (len(p), p))),
    ]


def _prefixes(name: str) -> list[str]:
    segments = name.split(".")[:-1][:_MAX_PREFIX_SEGMENTS]
    prefixes = []
    for count in range(1, len(segments) + 1):
        if segments[count - 1].isdigit():
            break
        prefixes.append(".".join(segments[:count]) + ".")
    return prefixes


def _strip(prefix: str) -> tuple[Rule, str]:
    what = f"the prefix {prefix!r} stripped" if prefix else "names as they are"
    return (lambda name: name.removeprefix(prefix)), what


def _add(prefix: str) -> tuple[Rule, str]:
    return (lambda name: prefix + name), f"the prefix {prefix!r} added"
