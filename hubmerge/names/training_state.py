"""What a trainer saves beside the weights, told by structure rather than by where it is put.

An optimizer keeps its moments under the name of the parameter that they belong to
(``….q_proj.weight.exp_avg``), or under its number (``state.0.exp_avg``). A moment's own name is one
of few; what lies beside a moment belongs to the optimizer too, whatever it is called, and so does
everything in a dict whose `state` holds moments.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import lru_cache

from hubmerge.checkpoint.schema import StoredTensor

OPTIMIZER = "optimizer state"

# Names that torch, DeepSpeed, bitsandbytes, torchao and the common optimizer packages give to
# moments, and nobody to a module.
_MOMENT = re.compile(
    r"(?:max_|fp32_)?exp_(?:avg|inf)\w*|\w*momentum_buffers?|square_avg|grad_avg|acc_delta|mu_product"
    r"|slow_(?:buffer|momentum)|(?:prev|previous|pre|neg)_(?:pre_)?grad\w*|gnorm_vec"
    r"|(?:qmap|absmax|state)[12]|(?:inv_)?(?:preconditioners?|factor_matrices\w*)"
)

# Moments by their place only: under the name of a parameter.
_UNDER_PARAMETER = frozenset({"step", "sum", "prev", "step_size"})
_PARAMETER = frozenset({"weight", "bias"})

_OPTIMIZER_WORD = re.compile(
    r"(?:\w+_)?optim(?:i[sz]er)?s?(?:_states?|_state_dicts?|_params?)?(?:_?\d+)?"
    r"|opt_states?|opt_state_dict|param_groups"
)
_TRAINER_WORD = re.compile(
    r"(?:\w+_)?(?:rng|schedulers?|dataloaders?)(?:_states?|_state_dicts?)?(?:_?\d+)?"
    r"|lr_schedules?|(?:train|trainer|extra|random|np_random|cuda)_states?|trainer|loops|callbacks"
    r"|progress|(?:global_)?steps?|epochs?|iterations?|samplers?|(?:grad_|loss_)?scalers?"
    r"|loss_scale|_metadata"
)

# Dicts around both the model and the rest.
_CONTAINERS = frozenset({"app", "dcp", "state"})

# Fewer of the tensors of a dict may be something else, for all of it to be the optimizer's.
_NEARLY_ALL = 0.9

_WEIGHT_OF_LAYER = re.compile(r"(?:^|\.)\d+\..*weight$")


def training_state(tensors: Iterable[StoredTensor]) -> dict[str, str]:
    """Return the keys of what is no weight, each with what it is."""
    found: dict[str, str] = {}
    unknown: list[StoredTensor] = []
    others: dict[str, list[StoredTensor]] = defaultdict(list)
    for tensor in tensors:
        word = next(filter(is_state_word, _outer_segments(tensor)), None)
        if word is not None and _is_optimizer(word):
            found[tensor.key] = OPTIMIZER
        elif "_extra_state" in tensor.key and "_extra_state" in tensor.key.split("."):
            found[tensor.key] = "extra state"
        elif word is not None:
            others[word].append(tensor)
        else:
            unknown.append(tensor)
    for word, members in others.items():
        # A dict that is called `trainer` may hold the model, and the optimizer.
        if any(len(t.shape) > 1 and _WEIGHT_OF_LAYER.search(t.key) for t in members):
            inner = {t.key.partition(f"{word}.")[2]: t for t in members}
            nested = training_state(replace(t, key=k, path=None) for k, t in inner.items() if k)
            found.update((inner[key].key, what) for key, what in nested.items())
        else:
            found.update(dict.fromkeys((t.key for t in members), f"{word} state"))
    found.update(dict.fromkeys(_optimizer_keys([t.key for t in unknown]), OPTIMIZER))
    return found


@lru_cache(maxsize=4096)
def is_state_word(segment: str) -> bool:
    """Return whether a dict of this name holds training state."""
    return _is_optimizer(segment) or _TRAINER_WORD.fullmatch(segment) is not None


@lru_cache(maxsize=4096)
def _is_optimizer(segment: str) -> bool:
    return _OPTIMIZER_WORD.fullmatch(segment) is not None


def _outer_segments(tensor: StoredTensor) -> Sequence[str]:
    """Return the names of the dicts that a tensor was saved in, or the first of its key."""
    if tensor.path is not None and len(tensor.path) > 1:
        return tensor.path[:-1]
    first, _, rest = tensor.key.partition(".")
    return (first, rest.partition(".")[0]) if first in _CONTAINERS else (first,)


def _optimizer_keys(keys: Collection[str]) -> set[str]:
    found: set[str] = set()
    parents: set[str] = set()
    states: set[str] = set()
    for key in keys:
        segments = key.split(".")
        place = _moment_at(segments)
        if place is None:
            continue
        found.add(key)
        parents.add(".".join(segments[:place]))
        if "state" in segments[:place]:
            last = place - 1 - segments[:place][::-1].index("state")
            states.add(".".join(segments[: last + 1]) + ".")
    if parents:
        found.update(key for key in keys if key.rpartition(".")[0] in parents)
    if dicts := tuple(_dicts_of(states, keys, found)):
        found.update(key for key in keys if key.startswith(dicts))
    return found


def _moment_at(segments: list[str]) -> int | None:
    """Return where in a key a moment's name is, if anywhere but in front."""
    for place in range(len(segments) - 1, 0, -1):
        if _is_moment(segments[place]):
            return place
    is_under_parameter = len(segments) > 2 and segments[-2] in _PARAMETER
    return len(segments) - 1 if is_under_parameter and segments[-1] in _UNDER_PARAMETER else None


@lru_cache(maxsize=4096)
def _is_moment(segment: str) -> bool:
    return _MOMENT.fullmatch(segment) is not None


def _dicts_of(states: Iterable[str], keys: Collection[str], moments: set[str]) -> Iterator[str]:
    """Return the prefixes of optimizers' dicts, each of which has a dict `state` of moments."""
    wanted = {state.count("."): set[str]() for state in states}
    for state in states:
        wanted[state.count(".")].add(state)
    total: Counter[str] = Counter()
    inside: Counter[str] = Counter()
    for key in keys:
        segments = key.split(".")
        for depth, prefixes in wanted.items():
            prefix = ".".join(segments[:depth]) + "."
            if prefix in prefixes:
                total[prefix] += 1
                inside[prefix] += key in moments
    for prefix, count in total.items():
        if inside[prefix] >= _NEARLY_ALL * count:
            yield prefix.removesuffix("state.") or prefix
