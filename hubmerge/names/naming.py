"""From checkpoint keys to the model's tensors: every decision about names, in order.

1. which keys are the model's (`layouts`, or the user's regexes)
2. wrappers stripped (`prefixes`); an adapter's names (`adapter`), torchtitan's (`titan`)
3. the prefix that the base model or the architecture knows best (`prefixes.best_rule`)
4. tied duplicates dropped (`tied`)
5. the Hub's layout (`experts`), and what keeps its precision (`precision`)
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from hubmerge.checkpoint.schema import Checkpoint, StoredTensor
from hubmerge.errors import CheckpointError, NoModelWeightsError
from hubmerge.hf_format.dtypes import BY_NAME
from hubmerge.hf_format.filenames import ADAPTER_NAME
from hubmerge.names import adapter, left_out, torchtitan
from hubmerge.names.adapter import NO_ADAPTER, AdapterSpec
from hubmerge.names.architecture import Architecture
from hubmerge.names.experts import to_hub_layout
from hubmerge.names.layouts import find_root, is_not_model, is_under, top_key
from hubmerge.names.left_out import AllZero
from hubmerge.names.options import DEFAULT_NAMING, NamingOptions, matches_any, parse_rename
from hubmerge.names.precision import Precision
from hubmerge.names.prefixes import best_rule, default_prefix, unwrap
from hubmerge.names.reference import Reference, assign_files, differences
from hubmerge.names.tied import SameElements, drop_tied
from hubmerge.names.views import TensorView
from hubmerge.names.weights import Dropped, Naming, Weight


@dataclass(frozen=True)
class ModelSpec:
    """What is known of the model beside the checkpoint; each part may be missing.

    Attributes:
        config: the parsed config.json.
        architecture: what transformers makes of it.
        reference: the base model.
        same: compares two stored tensors byte for byte.
        adapter: what is known of the adapter, if there is one.
        is_all_zero: returns whether a stored tensor holds nothing but zeros.
    """

    config: Mapping[str, Any] | None = None
    architecture: Architecture | None = None
    reference: Reference | None = None
    same: SameElements | None = None
    is_all_zero: AllZero | None = None
    adapter: AdapterSpec = NO_ADAPTER

    def known_names(self) -> set[str]:
        """All names that a tensor of this model can have, in memory or on the Hub."""
        names: set[str] = set()
        if self.architecture is not None:
            names.update(self.architecture.names, self.architecture.hub_shapes)
        if self.reference is not None:
            names.update(self.reference.files)
        return names


@dataclass
class _Draft:
    """The decision as it grows: tensors by the name reached so far.

    Attributes:
        lost: tensors that are dropped although they may have been trained, and why.
    """

    tensors: dict[str, StoredTensor]
    dropped: list[Dropped]
    why: list[str]
    warnings: list[str]
    lost: list[tuple[StoredTensor, str]] = field(default_factory=list)

    def rename(self, names: Mapping[str, str | None], reason: str) -> None:
        """Give each tensor its new name; None drops it for `reason`."""
        renamed: dict[str, StoredTensor] = {}
        for name, tensor in self.tensors.items():
            new = names[name]
            if new is None:
                self.drop(tensor, reason)
            elif new in renamed:
                raise CheckpointError(
                    f"{renamed[new].key!r} and {tensor.key!r} would both be called {new!r}",
                    "The checkpoint holds more than one model: choose with --model-key, --include "
                    "or --exclude; see `hubmerge inspect`.",
                )
            else:
                renamed[new] = tensor
        self.tensors = renamed

    def drop(self, tensor: StoredTensor, reason: str, *, may_be_trained: bool = False) -> None:
        """Leave a tensor out; one that may be trained is warned about unless it is all zero."""
        self.dropped.append(Dropped(tensor.key, reason, tensor.size_bytes))
        if may_be_trained:
            self.lost.append((tensor, reason))


def name_weights(
    checkpoint: Checkpoint,
    options: NamingOptions = DEFAULT_NAMING,
    truth: ModelSpec | None = None,
    dtype: str = "auto",
) -> Naming:
    """Decide the name of every stored tensor, or why it is dropped.

    Args:
        dtype: what floating tensors become, where nothing says otherwise of one.

    Raises:
        NoModelWeightsError: nothing in the checkpoint is part of a model.
        CheckpointError: names collide, or tied tensors differ.
        UsageError: an option does not fit this checkpoint.
    """
    truth = truth or ModelSpec()
    draft = _choose(checkpoint, options)
    draft.rename({name: unwrap(name) for name in draft.tensors}, "")
    is_adapter = adapter.has_adapter(draft.tensors)
    if options.mode == "lora" and not is_adapter:
        raise NoModelWeightsError("--mode lora: there is no adapter in this checkpoint")
    if is_adapter and options.mode != "full":
        return _name_adapter(draft, options, truth.adapter)
    if is_adapter:
        draft.rename({name: adapter.base_name(name) for name in draft.tensors}, "adapter")
        draft.warnings.append("--mode full: the adapter is left out, not merged into the weights")
    return _name_model(draft, options, truth, dtype)


def holds_model(checkpoint: Checkpoint) -> bool:
    """Return whether any tensor of the checkpoint may be a model's weight."""
    try:
        _choose(checkpoint, DEFAULT_NAMING)
    except NoModelWeightsError:
        return False
    return True


def _choose(checkpoint: Checkpoint, options: NamingOptions) -> _Draft:
    """The tensors that may be the model's, by key without the root; the others with the reason."""
    draft = _Draft({}, [], [], [])
    tensors = [t for t in checkpoint.tensors.values() if "_extra_state" not in t.key.split(".")]
    root, why = find_root(tensors)
    if options.model_key is not None:
        root, why = tuple(options.model_key.split(".")), f"--model-key {options.model_key}"
    draft.why.append(why)
    if not root:
        _warn_of_several_dicts(draft, tensors)
    strip = ".".join((*root, ""))
    for tensor in checkpoint.tensors.values():
        reason = _not_model(tensor, root, options)
        if reason:
            draft.drop(tensor, reason)
        else:
            draft.tensors[tensor.key.removeprefix(strip) if root else tensor.key] = tensor
    if not draft.tensors:
        raise _no_weights(checkpoint)
    return draft


def _warn_of_several_dicts(draft: _Draft, tensors: list[StoredTensor]) -> None:
    dicts = sorted({top_key(t) for t in tensors if t.path is not None and len(t.path) > 1})
    dicts = [top for top in dicts if not is_not_model(top)]
    if len(dicts) > 1:
        draft.warnings.append(
            f"several dicts were saved, and are taken for parts of one model: {', '.join(dicts)}; "
            "if one of them is the model, name it with --model-key"
        )


def _not_model(tensor: StoredTensor, root: tuple[str, ...], options: NamingOptions) -> str:
    """Why a tensor is none of the model's; "" where it may be one."""
    top = top_key(tensor)
    reason = ""
    if "_extra_state" in tensor.key.split("."):
        reason = "extra state"
    elif matches_any(options.exclude, tensor.key):
        reason = "--exclude"
    elif options.include:
        reason = "" if matches_any(options.include, tensor.key) else "not in --include"
    elif options.model_key is None and is_not_model(top):
        reason = f"{top} state"
    elif root and not is_under(tensor, root):
        reason = f"not under '{'.'.join(root)}'"
    elif not root and "." not in tensor.key and not _is_float(tensor):
        reason = "not a weight"
    return reason


def _is_float(tensor: StoredTensor) -> bool:
    dtype = BY_NAME.get(tensor.dtype)
    return dtype is not None and dtype.kind == "float"


def _name_adapter(draft: _Draft, options: NamingOptions, spec: AdapterSpec) -> Naming:
    selection = adapter.select(draft.tensors, spec)
    for name, reason in selection.left_out.items():
        draft.drop(draft.tensors[name], reason)
    draft.why.append(adapter.describe(spec.config))
    draft.warnings += adapter.warnings_for(selection, spec.config)
    new_names = _renamed(selection.stored, options)
    weights = [
        adapter.make_weight(new_names[name] or name, draft.tensors[stored], spec.config)
        for name, stored in selection.stored.items()
    ]
    weights = [_with_kept_dtype(weight, options) for weight in weights]
    files = {weight.name: ADAPTER_NAME for weight in weights}
    return Naming(weights, draft.dropped, "; ".join(draft.why), draft.warnings, files)


def _with_kept_dtype(weight: Weight, options: NamingOptions) -> Weight:
    return replace(
        weight,
        dtype=Precision("auto", options, None, None).dtype(
            weight.name, weight.name, weight.sources[0]
        ),
    )


def _name_model(draft: _Draft, options: NamingOptions, truth: ModelSpec, dtype: str) -> Naming:
    draft.rename(_renamed(draft.tensors, options), "")
    family = _rename_titan(draft, truth.config)
    if family is None:
        _strip_prefix(draft, truth.known_names())
    stored = {name: TensorView.whole(tensor) for name, tensor in draft.tensors.items()}
    if truth.same is not None:
        draft.dropped += drop_tied(
            stored, truth.config, truth.architecture, truth.reference, truth.same
        )
    if family is not None:
        config = truth.config or {}
        stored = {name: family.reordered(name, view, config) for name, view in stored.items()}
    layout = to_hub_layout(stored, options.experts, truth.architecture, truth.reference)
    precision = Precision(dtype, options, truth.architecture, truth.reference)
    weights = []
    for name, (name_in_memory, part) in layout.parts.items():
        kept = precision.dtype(name, name_in_memory, part.sources[0])
        weights.append(Weight(name, part, kept))
    lost = left_out.warnings_for(draft.lost, truth.is_all_zero)
    warnings = [*draft.warnings, *layout.warnings, *lost]
    files = None
    if truth.reference is not None:
        different = differences((w.name for w in weights), truth.reference.files)
        if different:
            warnings.append(f"against the base model {truth.reference.label}: {different}")
        if options.like_base_shards:
            files = assign_files((w.name for w in weights), truth.reference)
    return Naming(weights, draft.dropped, "; ".join(draft.why), warnings, files)


def _strip_prefix(draft: _Draft, known: Collection[str]) -> None:
    """Bring the names to the model's own, by what is known of them."""
    names = list(draft.tensors)
    if known:
        rule, what, score = best_rule(names, known)
        draft.why.append(f"{what}: {score} of {len(names)} names are then the model's")
    else:
        prefix = default_prefix(names)

        def rule(name: str) -> str:
            return name.removeprefix(prefix)

        if prefix:
            draft.why.append(f"the prefix {prefix!r} stripped")
    draft.rename({name: rule(name) for name in names}, "")
    if not known:
        _warn_of_strange_names(draft)


def _warn_of_strange_names(draft: _Draft) -> None:
    """Names of the usual kind need no word; of others, only a config could tell."""
    strange = [
        (name, tensor.key)
        for name, tensor in draft.tensors.items()
        if tensor.key.endswith(f".{name}") and not name.startswith(("model.", "lm_head."))
    ]
    if strange:
        name, key = strange[0]
        draft.warnings.append(
            f"stripped the prefix {key.removesuffix(name)!r} from {len(strange)} "
            f"key{'s' * (len(strange) > 1)} (for example {key!r}); check the names with --dry-run"
        )


def _renamed(names: Collection[str], options: NamingOptions) -> dict[str, str | None]:
    """Each name after the user's rules."""
    rules = [parse_rename(rule) for rule in options.rename]
    result: dict[str, str | None] = {}
    for name in names:
        new = name
        for pattern, replacement in rules:
            new = pattern.sub(replacement, new)
        result[name] = new
    return result


def _rename_titan(draft: _Draft, config: Mapping[str, Any] | None) -> torchtitan.Family | None:
    """transformers' names for torchtitan's, where the checkpoint has those."""
    if not torchtitan.is_titan(draft.tensors):
        return None
    label, family = torchtitan.family_of(config)
    names: dict[str, str | None] = {}
    for name in list(draft.tensors):
        new = family.name(name)
        if new is not None:
            names[name] = new
        elif name.endswith((*family.counters, *family.without_place)):
            may_be_trained = name.endswith(family.without_place)
            tensor = draft.tensors.pop(name)
            draft.drop(tensor, "torchtitan's own state", may_be_trained=may_be_trained)
        else:
            raise CheckpointError(
                f"{name!r} is no name of torchtitan's {label}",
                "Leave it out with --exclude if it is no weight.",
            )
    draft.rename(names, "")
    draft.why.append(f"torchtitan's {label} names")
    return family


def _no_weights(checkpoint: Checkpoint) -> NoModelWeightsError:
    roots = Counter(top_key(t) for t in checkpoint.tensors.values())
    tensors = [root for root, _ in roots.most_common()]
    roots.update(key.partition(".")[0] for key in checkpoint.objects)
    found = ", ".join(f"{root} ({count})" for root, count in roots.most_common(10)) or "none"
    if pickled := [root for root, _ in roots.most_common(10) if root not in tensors]:
        found += f"; only pickled objects are in: {', '.join(pickled)}"
    example = f", as in --model-key {tensors[0]}" if tensors else ""
    return NoModelWeightsError(
        f"no model weights found; the top-level keys are: {found}",
        f"Name the dict that holds the model with --model-key{example}. It may also be saved "
        "in another folder of this step; `hubmerge inspect` shows what this one holds.",
    )
