"""From a trainer's own model definition to transformers' names and shapes, by a table.

Some trainers do not train transformers' classes: they save other names, other orders of rows, and
experts in other stacks. A `Table` has a rule for each tensor of transformers, by its name in
memory: what it is called in the trainer's state dict, and how it is made if that takes more than a
new name. To add a model, add a table to the trainer's module.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from hubmerge.errors import CheckpointError
from hubmerge.formatting import format_list
from hubmerge.names.views import TensorView

Config = Mapping[str, Any]
Build = Callable[..., TensorView]

_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")

_LORA = re.compile(r"(.+)\.lora_([ab])\.weight")


def unchanged(view: TensorView, _config: Config) -> TensorView:
    """Build a tensor that differs in its name alone."""
    return view


@dataclass(frozen=True, eq=False)
class Rule:
    """How one tensor of the model is made.

    Attributes:
        target: its name in transformers, ``{}`` for the number of the layer.
        sources: the trainer's names of what it is made of, in the order that `build` takes them.
        build: makes it of the views of its sources and the config.
    """

    target: str
    sources: tuple[str, ...]
    build: Build = unchanged


@dataclass(frozen=True)
class Table:
    """The names of one model.

    Attributes:
        label: whose and which, for messages.
        rules: for each tensor of the model.
        counters: the trainer's names of what is counted or computed, not trained.
        without_place: the trainer's names of what may be trained, but transformers' model lacks.
        is_partial: other names are transformers' own, and stay as they are.
        text_prefix: what the rules' names of the language model begin with.
    """

    label: str
    rules: tuple[Rule, ...]
    counters: frozenset[str] = frozenset()
    without_place: frozenset[str] = frozenset()
    is_partial: bool = False
    text_prefix: str = "model."


class Translated(NamedTuple):
    """What a table makes of a state dict.

    Attributes:
        views: the model's tensors by transformers' names in memory.
        counters, without_place: names that are left out, see `Table`.
    """

    views: dict[str, TensorView]
    counters: list[str]
    without_place: list[str]


def rules(names: Mapping[str, str], prefix: str = "", inside: str = "") -> tuple[Rule, ...]:
    """Return rules that rename: transformers' names to the trainer's.

    Args:
        prefix, inside: stand before each name of transformers and of the trainer.
    """
    return tuple(Rule(prefix + new, (inside + old,)) for new, old in names.items())


def translate(views: Mapping[str, TensorView], table: Table, config: Config) -> Translated:
    """Make the model's tensors of a trainer's.

    LoRA matrices (``NAME.lora_a.weight``) get the names of PEFT; the rows of the second are those
    of the weight that they are added to, and are reordered as its rows are.

    Raises:
        CheckpointError: a name is in no rule, or one of several sources is missing.
    """
    by_source = {source: rule for rule in table.rules for source in rule.sources}
    result = Translated({}, [], [])
    groups: dict[tuple[Rule, str], dict[str, TensorView]] = {}
    unknown = []
    for name, view in views.items():
        template, number = _template(name)
        lora = _LORA.fullmatch(template)
        if template in table.counters:
            result.counters.append(name)
        elif template in table.without_place:
            result.without_place.append(name)
        elif template in by_source:
            groups.setdefault((by_source[template], number), {})[template] = view
        elif lora is not None and f"{lora[1]}.weight" in by_source:
            rule = by_source[f"{lora[1]}.weight"]
            new, built = _lora(rule, lora[2], view, config, name)
            result.views[new.replace("{}", number)] = built
        elif table.is_partial:
            result.views[name] = view
        else:
            unknown.append(name)
    if unknown:
        raise CheckpointError(
            f"an unknown generation of {table.label}: no rule for {format_list(unknown, 5)}",
            "Rename these with --rename to names that it knows, or report the trainer's version.",
        )
    for (rule, number), sources in groups.items():
        _check_complete(rule, number, sources, table)
        built = rule.build(*(sources[name] for name in rule.sources), config)
        result.views[rule.target.replace("{}", number)] = built
    return result


def _template(name: str) -> tuple[str, str]:
    """Split a name into one with ``{}`` for the first number in it, and that number."""
    match = _NUMBER.search(name)
    if match is None:
        return name, ""
    return f"{name[: match.start()]}{{}}{name[match.end() :]}", match[0]


def _lora(
    rule: Rule, matrix: str, view: TensorView, config: Config, name: str
) -> tuple[str, TensorView]:
    """Return PEFT's name for a LoRA matrix, and the matrix."""
    if len(rule.sources) > 1:
        raise CheckpointError(
            f"{name!r} is an adapter of a part of {rule.target!r}, which no PEFT adapter can hold",
            "Merge the adapter in the trainer, and convert the merged model.",
        )
    stem = rule.target.removesuffix(".weight")
    if matrix == "a":
        return f"{stem}.lora_A.weight", view
    return f"{stem}.lora_B.weight", rule.build(view, config)


def _check_complete(rule: Rule, number: str, found: Iterable[str], table: Table) -> None:
    missing = [name.replace("{}", number) for name in rule.sources if name not in set(found)]
    if missing:
        raise CheckpointError(
            f"{rule.target.replace('{}', number)!r} is made of several of {table.label}'s tensors, "
            f"and the checkpoint lacks {format_list(missing)}",
            "The save was incomplete, or --include and --exclude left them out.",
        )


# What names of the language model begin with: alone, and in a model of several modalities.
_TEXT_PREFIXES = ("model.", "model.language_model.", "language_model.model.")


def with_text_prefix(
    views: Mapping[str, TensorView], prefix: str, known: Collection[str]
) -> dict[str, TensorView]:
    """Return the views with the language model's names as the architecture has them.

    Args:
        prefix: what those names begin with now.
        known: names of the architecture; with none, nothing changes.
    """
    wanted = next((p for p in _TEXT_PREFIXES if f"{p}embed_tokens.weight" in known), prefix)
    head = wanted.removesuffix("model.") if wanted.startswith("language_model.") else ""
    result = {}
    for name, view in views.items():
        if name.startswith(prefix) and wanted != prefix:
            result[wanted + name.removeprefix(prefix)] = view
        else:
            result[head + name if name.startswith("lm_head.") else name] = view
    return result


# How tensors are made.


def joined(dim: int) -> Build:
    """Return how to join the sources, one after another along `dim`."""

    def build(*arguments: Any) -> TensorView:
        return TensorView.cat(arguments[:-1], dim)

    return build


def transposed(view: TensorView, _config: Config) -> TensorView:
    """Build a tensor whose last two dimensions are swapped."""
    return view.transpose(-2, -1)


def joined_transposed(*arguments: Any) -> TensorView:
    """Build a tensor of sources that are transposed, then joined along the last dimension."""
    return TensorView.cat([view.transpose(-2, -1) for view in arguments[:-1]], -1)


def merged(first: int) -> Build:
    """Return how to make one dimension of dimension `first` and the next."""

    def build(view: TensorView, _config: Config) -> TensorView:
        return view.flatten(first, first + 1)

    return build


def without_leading(view: TensorView, _config: Config) -> TensorView:
    """Build a matrix from a stack of one."""
    return view.select(0, 0) if view.ndim > 2 and view.shape[0] == 1 else view


def rotary_halves(heads_key: str) -> Build:
    """Return how to reorder rows: rotary pairs that are neighbours become two halves of a head.

    Of each head the even rows, then the odd ones: Meta's order to transformers'.

    Args:
        heads_key: what the config calls the number of heads.
    """

    def build(view: TensorView, config: Config) -> TensorView:
        heads = config.get(heads_key) or config.get("num_attention_heads")
        if not isinstance(heads, int) or heads < 1 or view.shape[0] % (2 * heads):
            raise CheckpointError(
                f"{view.key!r} has {view.shape[0]} rows, which are not {heads} heads "
                f"({heads_key} in config.json)",
                "Give the config.json of this checkpoint's model.",
            )
        pairs = view.reshape((heads, -1, 2, *view.shape[1:]))
        return pairs.transpose(1, 2).reshape(view.shape)

    return build
