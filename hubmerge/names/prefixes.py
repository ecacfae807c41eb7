"""Wrappers and prefixes: what torch and trainers put before or between a model's own names."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from typing import NamedTuple

from hubmerge.errors import CheckpointError

# Modules that stand around others at any depth: torch.compile's, FSDP1's, activation
# checkpointing's, Lightning's strategies' and NeMo Automodel's holder of fp32 parameters.
_WRAPPER_SEGMENTS = frozenset(
    {
        "_orig_mod",
        "_fsdp_wrapped_module",
        "_checkpoint_wrapped_module",
        "_forward_module",
        "_fp32_params",
    }
)

# DistributedDataParallel's, only ever in front.
_LEADING = "module."

# A prefix is looked for in the first segments of names only.
_MAX_PREFIX_SEGMENTS = 4


class PrefixRule(NamedTuple):
    """A change of all names: one prefix stripped, or one added."""

    stripped: str = ""
    added: str = ""

    def __call__(self, name: str) -> str:
        return self.added + name.removeprefix(self.stripped)

    def __str__(self) -> str:
        if self.added:
            return f"the prefix {self.added!r} added"
        return f"the prefix {self.stripped!r} stripped" if self.stripped else "names as they are"


def unwrap(name: str) -> str:
    """Return `name` without the names of wrapping modules.

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


def best_rule(names: Collection[str], known: Collection[str]) -> tuple[PrefixRule, int]:
    """Find the rule that gives the most names that are known to be a model's.

    Args:
        names: the stored names, unwrapped.
        known: the names of the base model, or of the architecture.

    Returns:
        The rule, and how many names it makes known.
    """
    as_they_are = sum(name in known for name in names)
    stripped, added = Counter[str](), Counter[str]()
    for name in names:
        for prefix in _prefixes(name):
            stripped[prefix] += (name.removeprefix(prefix) in known) - (name in known)
    stored = set(names)
    for name in known:
        for prefix in _prefixes(name):
            added[prefix] += name.removeprefix(prefix) in stored
    scores = {PrefixRule(): as_they_are}
    scores |= {PrefixRule(stripped=p): as_they_are + gain for p, gain in stripped.items()}
    # Adding a prefix that names already have is never right.
    scores |= {PrefixRule(added=p): count for p, count in added.items() if p not in stripped}
    best = min(scores, key=lambda rule: (-scores[rule], len(rule.added), len(rule.stripped), rule))
    return best, scores[best]


def _prefixes(name: str) -> list[str]:
    segments = name.split(".")[:-1][:_MAX_PREFIX_SEGMENTS]
    prefixes = []
    for count in range(1, len(segments) + 1):
        if segments[count - 1].isdigit():
            break
        prefixes.append(".".join(segments[:count]) + ".")
    return prefixes
