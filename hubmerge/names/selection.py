"""Which stored tensors are the model's: state dropped, its dict found, other models left out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import replace
from math import prod

from hubmerge.checkpoint.schema import Checkpoint, StoredTensor
from hubmerge.errors import NoModelWeightsError, UsageError
from hubmerge.formatting import format_list
from hubmerge.hf_format.dtypes import BY_NAME
from hubmerge.names.adapter import may_hold_adapter
from hubmerge.names.draft import Draft
from hubmerge.names.layouts import describe_root, is_model_word, saved_paths
from hubmerge.names.options import NamingOptions, matches_any
from hubmerge.names.prefixes import best_rule, unwrap
from hubmerge.names.rivals import Known, Rival, choose, takes_copy
from hubmerge.names.structure import (
    Shapes,
    are_alike,
    by_first_segment,
    find_copies,
    find_inner_copy,
    find_rivals,
    has_layers,
    have_same_shapes,
    is_ema,
    is_whole_model,
)
from hubmerge.names.training_state import OPTIMIZER, is_state_word, training_state
from hubmerge.names.views import TensorView

# A number of one element that models have, and no trainer's counter.
_MODEL_COUNTER = "num_batches_tracked"

_EMPTY = "empty"
_EXCLUDED = "--exclude"

# The first segments of a key, in which a dict or a module may be named as an average.
_OUTER = 3


def choose_tensors(checkpoint: Checkpoint, options: NamingOptions, known: Known) -> Draft:
    """Return the tensors that may be the model's, by key without the dicts around them.

    Raises:
        NoModelWeightsError: there are none.
        UsageError: there are several models, or not the one that was asked for.
    """
    draft = Draft()
    tensors = _without_state(draft, checkpoint, options, known)
    if options.model_key is not None:
        prefix = options.model_key + "."
        draft.why.append(f"--model-key {options.model_key}")
        draft.tensors = {t.key.removeprefix(prefix): TensorView.whole(t) for t in tensors}
    else:
        paths = saved_paths(tensors)
        root, members = _find_root(draft, tensors, paths, options, known)
        draft.why.append(describe_root(root))
        prefix = ".".join((*root, ""))
        draft.tensors = {
            t.key.removeprefix(prefix) if root else t.key: TensorView.whole(t) for t in members
        }
    if not draft.tensors:
        raise _no_weights(checkpoint, options)
    return draft


def leave_other_models(draft: Draft, options: NamingOptions, known: Known) -> None:
    """Drop counters, and all models but one, from a draft whose names are unwrapped.

    Raises:
        UsageError: there are several models, and nothing tells which is meant.
    """
    for name, tensor in list(draft.tensors.items()):
        if _is_counter(name, tensor) and name not in known:
            draft.leave_out(name, "not a weight")
    if options.include:
        return
    shapes = draft.shapes
    prefixes = find_copies(shapes) or find_rivals(shapes)
    if prefixes and not _are_one_model(shapes, prefixes, known):
        rivals = {
            prefix: Rival(
                _raw_prefix(draft, prefix),
                {name[len(prefix) :]: shapes[name] for name in shapes if name.startswith(prefix)},
            )
            for prefix in prefixes
        }
        chosen, warning = choose(list(rivals.values()), known, ema=options.ema)
        draft.warnings.append(warning)
        for prefix, rival in rivals.items():
            if rival is not chosen:
                _drop_all(draft, prefix, f"not of '{chosen.key}'")
    elif not prefixes:
        _leave_inner_copy(draft, options, known)
    _drop_nameless_averages(draft)
    is_average = all(map(_is_of_average, draft.tensors.values()))
    if options.ema and not is_average:
        raise UsageError(
            "--ema: the checkpoint holds no EMA copy with the names of the model",
            "Leave --ema out, or name the dict that holds the copy with --model-key.",
        )
    if is_average and not options.ema and options.model_key is None:
        draft.warnings.append("only an EMA copy of the model is stored, and is published")


def _without_state(
    draft: Draft, checkpoint: Checkpoint, options: NamingOptions, known: Known
) -> list[StoredTensor]:
    """Drop what the user leaves out, what is a trainer's state, and what is empty."""
    prefix = f"{options.model_key}." if options.model_key is not None else ""
    inside = [t for t in checkpoint.tensors.values() if t.key.startswith(prefix)]
    # In the dict that a user names, only what is in it counts, not what it is called.
    seen = [replace(t, key=t.key[len(prefix) :], path=None) for t in inside] if prefix else inside
    state = {prefix + key: what for key, what in training_state(seen).items()}
    tensors: list[StoredTensor] = []
    empty: list[str] = []
    excluded: list[str] = []
    for tensor in checkpoint.tensors.values():
        reason = _reason_to_drop(tensor, options, prefix, state)
        if reason:
            draft.drop(tensor, reason)
        else:
            tensors.append(tensor)
        if reason == _EMPTY:
            empty.append(tensor.key)
        elif reason == _EXCLUDED:
            excluded.append(tensor.key)
    if may_hold_adapter(excluded) and not may_hold_adapter([t.key for t in tensors]):
        draft.warnings.append(
            "--exclude leaves out the adapter (LoRA and the like), which is what was trained: the "
            "rest is the base model as it was"
        )
    if empty and not known:
        draft.warnings.append(
            "stored empty, with shape (0,), and counted as absent: " + format_list(empty)
        )
    return tensors


def _reason_to_drop(
    tensor: StoredTensor, options: NamingOptions, prefix: str, state: Mapping[str, str]
) -> str:
    """Return why a tensor is none of the model's; "" if it may be one."""
    what = state.get(tensor.key, "")
    if options.exclude and matches_any(options.exclude, tensor.key):
        return _EXCLUDED
    if not tensor.key.startswith(prefix):
        return f"not under '{prefix[:-1]}'"
    if options.include and what not in (OPTIMIZER, "extra state"):
        what = "" if matches_any(options.include, tensor.key) else "not in --include"
    return what or (_EMPTY if tensor.shape == (0,) else "")


def _find_root(
    draft: Draft,
    tensors: list[StoredTensor],
    paths: Mapping[str, tuple[str, ...]],
    options: NamingOptions,
    known: Known,
) -> tuple[tuple[str, ...], list[StoredTensor]]:
    """Descend into the dicts of the saved state as long as one of them is the model's."""
    root: tuple[str, ...] = ()
    while True:
        dicts: dict[str, list[StoredTensor]] = {}
        loose: list[StoredTensor] = []
        for tensor in tensors:
            path = paths[tensor.key]
            inner = dicts.setdefault(path[len(root)], []) if len(path) > len(root) + 1 else loose
            inner.append(tensor)
        if not dicts or any(len(tensor.shape) > 1 and _is_float(tensor) for tensor in loose):
            return root, tensors
        if options.include and (loose or len(dicts) > 1):  # all that the user wants is taken
            named = [name for name in dicts if is_model_word(name)]
            return (*root, *named) if len(named) == 1 else root, tensors
        if len(dicts) == 1:
            chosen, rivals = next(iter(dicts)), set[str]()
        elif root and not any("." in paths[tensor.key][-1] for tensor in tensors):
            return root, tensors  # modules, each a dict of its own
        else:
            chosen, rivals = _choose_dict(draft, root, dicts, options, known)
        if not chosen:
            return root, tensors
        root = (*root, chosen)
        reason = f"not under '{'.'.join(root)}'"
        for tensor in loose:
            draft.drop(tensor, reason, may_be_trained=True)
        for name in dicts.keys() - {chosen}:
            for tensor in dicts[name]:
                draft.drop(tensor, reason, may_be_trained=name not in rivals)
        tensors = dicts[chosen]


def _choose_dict(
    draft: Draft,
    root: tuple[str, ...],
    dicts: Mapping[str, list[StoredTensor]],
    options: NamingOptions,
    known: Known,
) -> tuple[str, set[str]]:
    """Choose the dict that holds the model.

    Returns:
        Its name, or "" if all together are the model; and those that hold a model too.
    """
    shapes = {
        name: {
            tensor.key.removeprefix(".".join((*root, name, ""))): tensor.shape for tensor in members
        }
        for name, members in dicts.items()
    }
    named = [name for name in dicts if is_model_word(name)]
    main = named[0] if len(named) == 1 else None
    found = _models_among(shapes, main)
    if len(found) > 1:
        rivals = {name: Rival(".".join((*root, name)), shapes[name]) for name in found}
        preferred = rivals[main] if main in rivals and not options.ema else None
        chosen, warning = choose(list(rivals.values()), known, ema=options.ema, preferred=preferred)
        draft.warnings.append(warning)
        return chosen.key.rpartition(".")[2], set(found)
    if main is None:
        draft.warnings.append(
            "several dicts were saved, and are taken for parts of one model: "
            f"{', '.join(sorted(dicts))}; if one of them is the model, name it with --model-key"
        )
    return main or "", set()


def _models_among(shapes: Mapping[str, Shapes], main: str | None) -> list[str]:
    """Return the dicts that hold a model each: copies of one, or whole models."""
    averages = [name for name in shapes if is_ema(name)]
    layered = [
        name for name in shapes if name in averages or has_layers(shapes[name], shapes[name])
    ]
    largest = max(shapes, key=lambda name: (name not in averages, len(shapes[name])))
    first = main or largest
    alike = [n for n in layered if n == first or are_alike(shapes[n], shapes[first])]
    found = dict.fromkeys([first, *alike, *averages])
    if len(found) == 1:
        found = dict.fromkeys(n for n in layered if n == main or is_whole_model(shapes[n], ""))
    return list(found)


def _are_one_model(shapes: Shapes, prefixes: Collection[str], known: Known) -> bool:
    """Return whether what looks like several models is known to be parts of one."""
    if not known:
        return False
    rule = best_rule(shapes, known)[0]
    hits = Counter(
        next((p for p in prefixes if name.startswith(p)), "")
        for name in shapes
        if rule(name) in known
    )
    sizes = Counter(next((p for p in prefixes if name.startswith(p)), "") for name in shapes)
    return all(2 * hits[prefix] > sizes[prefix] for prefix in prefixes)


def _leave_inner_copy(draft: Draft, options: NamingOptions, known: Known) -> None:
    """Drop a copy that lies among the model's own modules, or the model beside it.

    Raises:
        UsageError: nothing tells which is meant.
    """
    shapes = draft.shapes
    prefix = find_inner_copy(shapes)
    if prefix is None or _has_both(shapes, prefix, known):
        return
    inner = {name[len(prefix) :]: s for name, s in shapes.items() if name.startswith(prefix)}
    copy = Rival(_raw_prefix(draft, prefix), inner)
    is_copy, warning = takes_copy(copy, ema=options.ema)
    draft.warnings.append(warning)
    for name in shapes:
        if name.startswith(prefix) != is_copy:
            draft.leave_out(name, f"not of '{copy.key}'" if is_copy else f"of '{copy.key}'")


def _has_both(shapes: Shapes, prefix: str, known: Known) -> bool:
    """Return whether the known model has what is under a prefix as well as what is beside it."""
    if not known:
        return False
    rule = best_rule(shapes, known)[0]
    beside = {rule(name) for name in shapes if not name.startswith(prefix)}
    inner = {rule(name) for name in shapes if name.startswith(prefix)}
    return 2 * len((inner - beside) & known.keys()) > len(inner)


def _drop_nameless_averages(draft: Draft) -> None:
    """Drop EMA copies that number the parameters, or write their names otherwise."""
    shapes = draft.shapes
    groups = by_first_segment(shapes)
    for segment, names in groups.items():
        if not is_ema(segment) or len(groups) == 1:
            continue
        copy = {name: shapes[name] for name in names}
        rest = {name: shape for name, shape in shapes.items() if name not in copy}
        if have_same_shapes(copy, rest):
            draft.warnings.append(
                f"left out '{segment}', an EMA copy without all the names of the model"
            )
            _drop_all(draft, f"{segment}.", "EMA copy")


def _drop_all(draft: Draft, prefix: str, reason: str) -> None:
    for name in [name for name in draft.tensors if name.startswith(prefix)]:
        draft.leave_out(name, reason)


def _raw_prefix(draft: Draft, prefix: str) -> str:
    """Return what leads to the names with this prefix in the checkpoint, wrappers included."""
    tensor = next(t for name, t in draft.tensors.items() if name.startswith(prefix))
    segments = tensor.key.split(".")
    for start in range(len(segments)):
        for end in range(start + 1, len(segments)):
            if unwrap(".".join((*segments[start:end], "x"))) == f"{prefix}x":
                return ".".join(segments[:end])
    return prefix.removesuffix(".")


def _is_counter(name: str, tensor: TensorView) -> bool:
    # In a dict of the model's own, a trainer has put nothing; an average counts its updates.
    is_loose = "." not in name and (name == tensor.key or _is_of_average(tensor))
    is_one_number = is_loose and prod(tensor.shape) == 1 and not _is_float(tensor)
    return is_one_number and name != _MODEL_COUNTER


def _is_of_average(tensor: TensorView) -> bool:
    return any(map(is_ema, tensor.key.split(".")[:_OUTER]))


def _is_float(tensor: StoredTensor | TensorView) -> bool:
    dtype = BY_NAME.get(tensor.dtype)
    return dtype is not None and dtype.kind == "float"


def _no_weights(checkpoint: Checkpoint, options: NamingOptions) -> NoModelWeightsError:
    roots = Counter(key.partition(".")[0] for key in checkpoint.tensors)
    tensors = [root for root, _ in roots.most_common()]
    roots.update(key.partition(".")[0] for key in checkpoint.objects)
    found = ", ".join(f"{root} ({count})" for root, count in roots.most_common(10)) or "none"
    if pickled := [root for root, _ in roots.most_common(10) if root not in tensors]:
        found += f"; only pickled objects are in: {', '.join(pickled)}"
    models = [root for root in tensors if not is_state_word(root)]
    example = f", as in --model-key {models[0]}" if models else ""
    hint = f"Name the dict that holds the model with --model-key{example}, if it is one of these"
    if options.model_key is not None:
        hint = f"Check --model-key {options.model_key} against these keys"
    return NoModelWeightsError(
        f"no model weights found; the top-level keys are: {found}",
        f"{hint}. The model may also be saved in another folder of this step; "
        "`hubmerge inspect` shows what this one holds.",
    )
