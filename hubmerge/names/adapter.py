"""PEFT's names: which tensors of a run are the adapter's, and what its file calls them.

`adapter_config.json` says what belongs to an adapter: the tuner's own parameters, biases, modules
that were trained whole, rows of an embedding. PEFT's `get_peft_model_state_dict` asks the model;
here the names answer, so that neither PEFT nor the base model is needed.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple

from hubmerge.errors import CheckpointError
from hubmerge.formatting import format_list
from hubmerge.names.peft_tuners import (
    ANY_TUNER,
    TUNERS,
    UNSUPPORTED,
    Marks,
    has_unsupported_mark,
)
from hubmerge.names.views import TensorView
from hubmerge.names.weights import Weight

# What PEFT puts around the model: the tuner, and in it the base model.
_TUNER = "base_model."
ROOT = "base_model.model."

# PEFT saves the base weight of an embedding that is targeted if it has one of these names.
_TARGETED_EMBEDDINGS = ("embed_tokens", "lm_head")

# What models call their head and their embedding; PEFT saves resized ones with any adapter.
_HEADS = frozenset({"lm_head", "embed_out", "output", "output_layer"})
_EMBEDDINGS = _HEADS | {"embed_tokens", "wte", "word_embeddings", "embed_in", "tok_embeddings"}

# What PEFT trains whole for a task, whether the config says so or not.
_TASK_MODULES = {
    "SEQ_CLS": ("classifier", "score"),
    "TOKEN_CLS": ("classifier", "score"),
    "QUESTION_ANS": ("qa_outputs",),
}

_TRAINED_WHOLE = re.compile(r"(.*)\.modules_to_save\.([^.]+)\.(.+)")
_TOKENS = re.compile(r"(.*)\.token_adapter\.trainable_tokens_delta(?:\.([^.]+))?")
_BASE_LAYER = re.compile(r".*?([^.]+)(?:\.base_layer)+\.(?:weight|bias)")

# Adapters that PEFT refuses to load without what all layers share, unless told to make it anew.
_NEED_SHARED = frozenset({"VERA", "PVERA"})

_MAX_LISTED = 5

_OF_BASE = "base model's weight, not the adapter's"
_UNNAMED = "not the adapter's by adapter_config.json"
_COPY = "copy of a tensor that all layers of the adapter share"


@dataclass(frozen=True)
class AdapterConfig:
    """What an `adapter_config.json` says of names; values of another type say nothing.

    Attributes:
        values: all that it says.
    """

    values: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def peft_type(self) -> str:
        return str(self.values.get("peft_type", "")).upper()

    @cached_property
    def bias(self) -> str:
        return str(self.values.get("bias", "none"))

    @cached_property
    def modules_to_save(self) -> tuple[str, ...]:
        """How the names of the modules end that were trained whole."""
        by_task = _TASK_MODULES.get(str(self.values.get("task_type")), ())
        return (*_texts(self.values.get("modules_to_save")), *by_task)

    @cached_property
    def token_indices(self) -> list[int]:
        """The tokens whose rows of an embedding are trained."""
        indices = self.values.get("trainable_token_indices") or self.values.get("token_indices")
        rows = indices.values() if isinstance(indices, dict) else [indices]
        return [i for row in rows if isinstance(row, list) for i in row if type(i) is int]

    def trains_tokens_of(self, layer: str, is_tied: bool) -> bool:
        """Return whether rows of this layer are trained, and not only those of its embedding."""
        indices = self.values.get("trainable_token_indices")
        if not isinstance(indices, dict):
            return layer.rpartition(".")[2] not in _HEADS
        own = [rows for name, rows in indices.items() if layer.endswith(name)]
        others = [rows for name, rows in indices.items() if not layer.endswith(name)]
        return bool(own) and not (is_tied and own[0] in others)

    def saves_base_of(self, module: str) -> bool:
        """Return whether PEFT saves the base weight of an embedding with the adapter of it."""
        trains_tokens = self.values.get("trainable_token_indices") is not None
        if trains_tokens or self.peft_type == "TRAINABLE_TOKENS":
            return False
        targets = self.values.get("target_modules")
        if isinstance(targets, str):  # a regex: that the module has an adapter is the answer to it
            return targets.lower() != "all-linear" and module in _TARGETED_EMBEDDINGS
        is_any_targeted = any(name in _TARGETED_EMBEDDINGS for name in _texts(targets))
        return is_any_targeted and module in _EMBEDDINGS

    def kept_ranks(self, layer: str) -> list[int] | None:
        """Return which ranks AdaLoRA has left to a layer; None if it says nothing of that one."""
        pattern = self.values.get("rank_pattern")
        if self.peft_type != "ADALORA" or not isinstance(pattern, dict):
            return None
        for name, kept in pattern.items():
            if f"{name}.".startswith(f"{layer}.lora_E.") and isinstance(kept, list):
                return [number for number, is_kept in enumerate(kept) if is_kept]
        return None


def _texts(value: object) -> tuple[str, ...]:
    return tuple(text for text in value if isinstance(text, str)) if isinstance(value, list) else ()


@dataclass(frozen=True)
class AdapterSpec:
    """What is known of the adapter beside the checkpoint.

    Attributes:
        config: its config; None if there is none.
        base_rows: rows of the base model's embedding; None if its config is not at hand.
        tied: names of the base model's weights that are another's, as a head is the embedding's.
    """

    config: AdapterConfig | None = None
    base_rows: int | None = None
    tied: frozenset[str] = frozenset()


NO_ADAPTER = AdapterSpec()


class Selection(NamedTuple):
    """The adapter's tensors.

    Attributes:
        stored: the stored name of each name in the adapter's file.
        left_out: why each other stored name is not among them.
        unexplained: stored names for which neither the config nor PEFT's own names account, in a
            checkpoint that does not hold the base model.
    """

    stored: dict[str, str]
    left_out: dict[str, str]
    unexplained: list[str]


def has_adapter(names: Collection[str]) -> bool:
    """Return whether one of these is the name of a tensor of a PEFT adapter."""
    return any(ANY_TUNER.find(name) or has_unsupported_mark(name) for name in names)


def may_hold_adapter(keys: Collection[str]) -> bool:
    """Return whether an adapter's config is to be looked for, be its names PEFT's or not."""
    return has_adapter(keys) or any(".lora_" in key for key in keys)


def select(tensors: Mapping[str, TensorView], spec: AdapterSpec) -> Selection:
    """Select the adapter's tensors, as PEFT's `get_peft_model_state_dict` does.

    Raises:
        CheckpointError: there are several adapters, half of one, or one of a kind that hubmerge
            cannot publish.
    """
    _check_supported(tensors, spec.config)
    names = _Names(spec.config or AdapterConfig(), spec.tied)
    for name in tensors:
        names.add(name)
    if len(names.adapters) > 1:
        raise CheckpointError(
            f"the checkpoint holds several adapters: {', '.join(sorted(names.adapters))}",
            r"Choose one with --include, as in --include '\.NAME(\.|$)'.",
        )
    if not names.layers:
        raise CheckpointError(
            f"adapter_config.json is {names.kind}'s, and the checkpoint has no tensor of that kind",
            "Give the config of this run with --adapter-config-path.",
        )
    holds_base = any(map(names.is_base_weight, names.others))
    unexplained = []
    for full, name in names.others.items():
        is_resized = spec.base_rows is not None and tensors[name].shape[:1] != (spec.base_rows,)
        # Names without an adapter's name were chosen by PEFT, which may have been told to.
        is_chosen = not holds_base and not names.adapters
        is_kept = _is_embedding(full) and (is_resized or is_chosen)
        is_alias = full.removeprefix(ROOT) in spec.tied
        if not holds_base and not is_alias and not (is_kept and spec.config):
            unexplained.append(name)
            is_kept = spec.config is None
        if is_kept:
            names.own.append((full, name))
        else:
            names.left_out[name] = _OF_BASE if holds_base or is_alias else _UNNAMED
    stored = _by_name(names.own)
    _check_pairs(stored)
    _check_shared(stored, names.kind, spec.config)
    return Selection(stored, names.left_out, unexplained)


class _Names:
    """The names of a checkpoint, sorted as they are added.

    Attributes:
        own: the adapter's: the name in its file, and the name in the checkpoint.
        left_out: those that are part of PEFT's model and not of its files, with the reason.
        others: all other names, by the name below PEFT's root.
        adapters: the names of adapters, as PEFT has them in memory.
        layers: the names of layers that have an adapter.
    """

    def __init__(self, config: AdapterConfig, tied: Collection[str]) -> None:
        self._config = config
        self._tied_layers = {name.rpartition(".")[0] for name in tied}
        tuner = TUNERS.get(config.peft_type)
        tuners = [tuner] if tuner else list(TUNERS.values())
        self._marks = Marks(tuners)
        self._in_layers = {name for tuner in tuners for name in tuner.attributes}
        self.kind = config.peft_type
        self.layers: set[str] = set()
        self.own: list[tuple[str, str]] = []
        self.left_out: dict[str, str] = {}
        self.others: dict[str, str] = {}
        self.adapters: set[str] = set()

    def add(self, name: str) -> None:
        full = self._rooted(name)
        found = list(self._published(full))
        for published, adapter in found:
            if adapter is not None:
                self.adapters.add(adapter)
            if published:
                self.own.append((published, name))
            else:
                self.left_out[name] = _COPY
        if not found:
            self.others[full] = name

    def is_base_weight(self, full: str) -> bool:
        """Return whether a name that is not the adapter's shows that the base model is there."""
        layer, _, leaf = full.rpartition(".")
        is_wrapped = ".original_module." in full or (".base_layer." in full and leaf != "bias")
        return is_wrapped or (leaf == "weight" and layer in self.layers)

    def _rooted(self, name: str) -> str:
        """The name below PEFT's root, which a trainer may put under another or leave out."""
        if ROOT in name:
            return name[name.index(ROOT) :]
        mark = self._marks.find(name)
        if mark is not None and f".{mark.layer}.".endswith(f".{_TUNER}"):
            return _TUNER + name[len(mark.layer) + 1 :]
        return ROOT + name

    def _published(self, full: str) -> Iterator[tuple[str, str | None]]:
        """What the adapter's file calls a tensor, and the adapter; "" for what it leaves out."""
        if match := _TRAINED_WHOLE.fullmatch(full):
            yield _without_adapter(f"{match[1]}.{match[3]}", match[2]), match[2]
            if self._config.bias == "all" and full.endswith(".bias"):
                yield _without_adapter(full, match[2]), match[2]  # as PEFT does
        elif match := _TOKENS.fullmatch(full):
            layer = match[1].removeprefix(ROOT)
            is_tied = not self._config.trains_tokens_of(layer, layer in self._tied_layers)
            yield "" if is_tied else f"{match[1]}.token_adapter.trainable_tokens_delta", match[2]
        elif mark := self._marks.find(full):
            self.layers.add(mark.layer)
            is_copy = mark.attribute not in self._in_layers and mark.layer + "." != _TUNER
            yield "" if is_copy else mark.name, mark.adapter
        elif self._is_trained_bias(full) or self._is_trained_whole(full) or self._is_base(full):
            yield full, None

    def _is_trained_bias(self, full: str) -> bool:
        ends = {"none": "\0", "all": ".bias"}.get(self._config.bias, ".base_layer.bias")
        return full.endswith(ends)

    def _is_base(self, full: str) -> bool:
        """Return whether this is a base weight that PEFT saves with the adapter."""
        match = _BASE_LAYER.fullmatch(full)
        return match is not None and self._config.saves_base_of(match[1])

    def _is_trained_whole(self, full: str) -> bool:
        """Return whether this is part of a module to save, by the name that files give it."""
        if ".base_layer." in full or ".original_module." in full:
            return False
        modules = full.split(".")[:-1]
        wanted = self._config.modules_to_save
        return any(".".join(modules[:i]).endswith(wanted) for i in range(len(modules), 1, -1))


def _by_name(own: list[tuple[str, str]]) -> dict[str, str]:
    """The stored name by the published one; raises CheckpointError if two have the same."""
    stored: dict[str, str] = {}
    for published, name in own:
        if published in stored:
            raise CheckpointError(
                f"{stored[published]!r} and {name!r} would both be called {published!r}",
                "The checkpoint holds more than one adapter: choose with --model-key or --include; "
                "see `hubmerge inspect`.",
            )
        stored[published] = name
    return stored


def _without_adapter(name: str, adapter: str) -> str:
    """The name without the adapter's, which is its last part or the last but one."""
    if name.endswith(f".{adapter}"):
        return name.removesuffix(f".{adapter}")
    stem, _, leaf = name.rpartition(".")
    return f"{stem.removesuffix(f'.{adapter}')}.{leaf}"


def _is_embedding(full: str) -> bool:
    module, _, leaf = full.rpartition(".")
    return leaf == "weight" and module.rpartition(".")[2] in _EMBEDDINGS


def _check_supported(names: Collection[str], config: AdapterConfig | None) -> None:
    """Raise CheckpointError for adapters that cannot be published."""
    kind = config.peft_type if config is not None else ""
    if kind not in UNSUPPORTED and any(map(ANY_TUNER.find, names)):
        return
    raise CheckpointError(
        f"{kind or 'the adapter'}: hubmerge cannot publish an adapter of this kind",
        "Publish it with save_pretrained of the PeftModel.",
    )


def _check_pairs(names: Collection[str]) -> None:
    """Raise CheckpointError if one of a pair of matrices is missing: the update would be zero."""
    for name in names:
        mark = ANY_TUNER.find(name)
        if mark is None or mark.leaf == "bias":
            continue
        for one, other in (("_A", "_B"), ("_B", "_A")):
            attribute = mark.attribute.removesuffix(one) + other
            if mark.attribute in (f"lora{one}", f"lora_embedding{one}") and (
                mark._replace(attribute=attribute).name not in names
            ):
                raise CheckpointError(
                    f"the adapter has {name!r} but no {attribute} for it: its update would be zero",
                    "The save was incomplete, or --include and --exclude left it out.",
                )


def _check_shared(names: Collection[str], kind: str, config: AdapterConfig | None) -> None:
    """Raise CheckpointError if projections are missing without which PEFT refuses the adapter."""
    if kind not in _NEED_SHARED or config is None or not config.values.get("save_projection", True):
        return
    missing = [n for n in TUNERS[kind].shared if _TUNER + n not in names]
    if missing:
        raise CheckpointError(
            f"the adapter has no {format_list([_TUNER + name for name in missing])}, and PEFT "
            "does not load it without: its config does not say save_projection=false",
            "Give a config with that as --adapter-config-path: PEFT then makes them anew from "
            "projection_prng_key, the same if that key is the run's.",
        )


def describe(config: AdapterConfig | None) -> str:
    """What the adapter is, in a few words."""
    return f"{config.peft_type if config else 'LoRA or other'} adapter of PEFT"


def warnings_for(selection: Selection, config: AdapterConfig | None) -> Iterator[str]:
    """Yield what of the checkpoint may belong to the adapter, or not, unknown to hubmerge."""
    names = selection.unexplained
    several = f"{len(names)} tensor{'s' * (len(names) > 1)} ({format_list(names[:_MAX_LISTED])})"
    if config is None:
        told = f"; {several} without a mark of PEFT are taken for trained" if names else ""
        yield (
            "no adapter_config.json: the adapter's tensors are chosen by their names, by which "
            "trained biases, embeddings and modules_to_save can be missed and frozen buffers "
            f"taken{told}"
        )
    elif names:
        yield (
            f"left out {several}: adapter_config.json does not name what they belong to; what of "
            "it was trained can be added to modules_to_save there"
        )


def make_weight(name: str, tensor: TensorView, config: AdapterConfig | None) -> Weight:
    """Make the adapter's tensor; one of AdaLoRA has the ranks that its config keeps."""
    weight = Weight(name, tensor)
    mark = ANY_TUNER.find(name.removeprefix(ROOT))
    axis = {"lora_A": 0, "lora_E": 0, "lora_B": 1}.get(mark.attribute) if mark else None
    if config is None or mark is None or axis is None or len(tensor.shape) != 2:
        return weight
    ranks = config.kept_ranks(mark.layer)
    if ranks is None or any(rank >= tensor.shape[axis] for rank in ranks):
        return weight  # PEFT has cut it already
    view = weight.view.take(axis, ranks) if ranks else weight.view.narrow(axis, 0, 0)
    return replace(weight, view=view)


def base_name(name: str) -> str | None:
    """The model's own name for a weight of a PEFT model; None for the adapter's."""
    if ANY_TUNER.find(name) or _TOKENS.fullmatch(name) or ".original_module." in name:
        return None
    name = name[name.find(ROOT) + len(ROOT) :] if ROOT in name else name
    name = re.sub(r"\.modules_to_save\.[^.]+\.", ".", name)
    return re.sub(r"(?:\.token_adapter)?(?:\.base_layer)+\.", ".", name)
