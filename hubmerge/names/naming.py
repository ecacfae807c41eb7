"""From checkpoint keys to the model's tensors: every decision about names, in order.

1. what is no weight is dropped (`training_state`), the dict with the model found (`layouts`)
2. wrappers stripped (`prefixes`), all models but one left out (`structure`, `rivals`)
3. an adapter's names (`adapter`), torchtitan's (`torchtitan`); packed weights refused (`packed`)
4. the prefix that the base model or the architecture knows best, or that leads to a model's names
5. tied duplicates dropped (`tied`)
6. the Hub's layout (`experts`), and what keeps its precision (`precision`)
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

from hubmerge.checkpoint.schema import Checkpoint
from hubmerge.errors import NoModelWeightsError, UsageError
from hubmerge.hf_format.assets import Module
from hubmerge.hf_format.filenames import ADAPTER_NAME
from hubmerge.names import adapter, left_out, prime_rl, torchtitan
from hubmerge.names.adapter import NO_ADAPTER, AdapterSpec
from hubmerge.names.architecture import Architecture
from hubmerge.names.draft import Draft
from hubmerge.names.experts import to_hub_layout
from hubmerge.names.foreign_names import foreign_names
from hubmerge.names.left_out import AllZero
from hubmerge.names.module_names import HEADS
from hubmerge.names.options import DEFAULT_NAMING, NamingOptions, parse_rename
from hubmerge.names.packed import refuse_packed
from hubmerge.names.precision import Precision
from hubmerge.names.prefixes import PrefixRule, best_rule, unwrap
from hubmerge.names.reference import Reference, assign_files, differences
from hubmerge.names.rivals import Known
from hubmerge.names.selection import choose_tensors, leave_other_models
from hubmerge.names.sentence_modules import take_modules
from hubmerge.names.structure import own_prefix
from hubmerge.names.tied import SameElements, drop_tied
from hubmerge.names.translation import translate, with_text_prefix
from hubmerge.names.weights import Naming, Weight


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
        modules: those of a sentence-transformers model.
    """

    config: Mapping[str, Any] | None = None
    architecture: Architecture | None = None
    reference: Reference | None = None
    same: SameElements | None = None
    is_all_zero: AllZero | None = None
    adapter: AdapterSpec = NO_ADAPTER
    modules: tuple[Module, ...] = ()

    def known_names(self) -> Known:
        """Return the names that the model's tensors can have, in memory or on the Hub."""
        names: dict[str, tuple[int, ...] | None] = {}
        if self.reference is not None:
            names |= dict.fromkeys(self.reference.files)
        if self.architecture is not None:
            names |= {**self.architecture.hub_shapes, **self.architecture.names}
        return names


def name_weights(
    checkpoint: Checkpoint,
    options: NamingOptions = DEFAULT_NAMING,
    truth: ModelSpec | None = None,
    dtype: str = "auto",
    *,
    dtype_is_given: bool = True,
) -> Naming:
    """Decide the name of every stored tensor, or why it is dropped.

    Args:
        dtype: what floating tensors become, unless something says otherwise of one.
        dtype_is_given: whether the user chose it, see `Precision`.

    Raises:
        NoModelWeightsError: nothing in the checkpoint is part of a model.
        CheckpointError: names collide, or tied tensors differ.
        UsageError: an option does not fit this checkpoint.
    """
    truth = truth or ModelSpec()
    known = truth.known_names()
    draft = choose_tensors(checkpoint, options, known)
    draft.rename({name: unwrap(name) for name in draft.tensors}, "")
    leave_other_models(draft, options, known)
    modules = [] if adapter.has_adapter(draft.tensors) else take_modules(draft, truth.modules)
    own_names = own_prefix(draft.shapes)  # before the user renames them
    draft.rename(_renamed(draft.tensors, options), "")
    translated = _translate(draft, truth)
    is_adapter = adapter.has_adapter(draft.tensors)
    if options.mode == "lora" and not is_adapter:
        raise NoModelWeightsError("--mode lora: there is no adapter in this checkpoint")
    if is_adapter and options.mode != "full":
        tied = frozenset(truth.architecture.ties if truth.architecture else ())
        naming = _name_adapter(draft, options, replace(truth.adapter, tied=tied))
    else:
        if is_adapter:
            draft.rename({name: adapter.base_name(name) for name in draft.tensors}, "adapter")
            draft.warnings.append(
                "--mode full: the adapter is left out, not merged into the weights"
            )
        refuse_packed(draft.tensors, is_peft=is_adapter)
        if not translated:
            _strip_prefix(draft, known, own_names, options)
        precision = Precision(
            dtype,
            options,
            truth.architecture,
            truth.reference,
            stored=draft.sources,
            is_given=dtype_is_given,
        )
        naming = _name_model(draft, options, truth, precision, modules)
    naming.warnings.extend(left_out.warnings_for(draft.lost, truth.is_all_zero))
    return naming


def holds_model(checkpoint: Checkpoint) -> bool:
    """Return whether any tensor of the checkpoint may be a model's weight."""
    try:
        choose_tensors(checkpoint, DEFAULT_NAMING, {})
    except NoModelWeightsError:
        return False
    except UsageError:
        pass  # it holds several models
    return True


def _name_adapter(draft: Draft, options: NamingOptions, spec: AdapterSpec) -> Naming:
    selection = adapter.select(draft.tensors, spec)
    for name, reason in selection.left_out.items():
        draft.leave_out(name, reason)
    draft.why.append(adapter.describe(spec.config))
    draft.warnings += adapter.warnings_for(selection, spec.config)
    weights = [
        adapter.make_weight(name, draft.tensors[stored], spec.config)
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


def _name_model(
    draft: Draft,
    options: NamingOptions,
    truth: ModelSpec,
    precision: Precision,
    others: list[Weight],
) -> Naming:
    stored = draft.tensors
    if truth.same is not None:
        draft.dropped += drop_tied(
            stored, truth.config, truth.architecture, truth.reference, truth.same
        )
    layout = to_hub_layout(stored, options.experts, truth.architecture, truth.reference)
    weights = []
    for name, (name_in_memory, view) in layout.views.items():
        kept = precision.dtype(name, name_in_memory, view.sources[0])
        weights.append(Weight(name, view, kept))
    for name in layout.ignored:
        draft.drop(
            stored[name].sources[0], "computed from the config: save_pretrained leaves it out"
        )
    warnings = [*draft.warnings, *layout.warnings, *precision.warnings()]
    files = None
    if truth.reference is not None:
        different = differences((w.name for w in weights), truth.reference.files)
        if different:
            warnings.append(f"against the base model {truth.reference.label}: {different}")
        if options.like_base_shards:
            files = assign_files((w.name for w in weights), truth.reference)
    weights += others
    notes = precision.notes()
    return Naming(weights, draft.dropped, "; ".join(draft.why), warnings, files, notes)


def _strip_prefix(draft: Draft, known: Known, own: str, options: NamingOptions) -> None:
    """Bring the names to the model's own.

    Args:
        own: the prefix to strip if nothing is known of the names.
    """
    names = list(draft.tensors)
    rule, score = best_rule(names, known)
    if score:
        draft.why.append(f"{rule}: {score} of {len(names)} names are then the model's")
    else:
        rule = PrefixRule(own)
        if rule.stripped:
            draft.why.append(str(rule))
    if rule.stripped and not options.include:
        for name in names:
            # A head is not left out: if the model has none, it is not that of the config.
            is_head = name.partition(".")[0] in HEADS
            if not (name.startswith(rule.stripped) or name in known or is_head):
                reason = f"outside '{rule.stripped}'"
                draft.leave_out(name, reason, may_be_trained=True)
    draft.rename({name: rule(name) for name in draft.tensors}, "")
    if not known:
        _warn_of_strange_names(draft)
        draft.warnings.extend(foreign_names(draft.tensors))


def _warn_of_strange_names(draft: Draft) -> None:
    """Warn of names that only a config could tell to be right."""
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
    """Return each name after the user's rules."""
    rules = [parse_rename(rule) for rule in options.rename]
    result: dict[str, str | None] = {}
    for name in names:
        new = name
        for pattern, replacement in rules:
            new = pattern.sub(replacement, new)
        result[name] = new
    return result


def _translate(draft: Draft, truth: ModelSpec) -> bool:
    """Bring a trainer's own names and shapes to transformers'; return whether there were any."""
    config, names = truth.config or {}, draft.tensors
    if torchtitan.is_torchtitan(names):
        table = torchtitan.table_for(truth.config, names)
        draft.rename(torchtitan.modern_names(names, config), "")
    elif (found := prime_rl.table_for(truth.config, names)) is not None:
        table = found
    else:
        return False
    done = translate(draft.tensors, table, config)
    for name in done.counters:
        draft.leave_out(name, f"state of {table.label}")
    for name in done.without_place:
        draft.leave_out(name, f"state of {table.label}", may_be_trained=True)
    draft.tensors = with_text_prefix(done.views, table.text_prefix, truth.known_names())
    draft.why.append(f"{table.label} names")
    return True
