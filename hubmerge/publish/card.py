"""The model card: README.md with the metadata that the Hub reads, and how to load the model.

The text depends on the plan and the options alone, so that a rerun makes the same bytes.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib.metadata import version
from math import prod
from typing import TYPE_CHECKING, Any

from hubmerge.plan import Plan
from hubmerge.report import human_bytes

if TYPE_CHECKING:
    from huggingface_hub import ModelCard

# Marks a card that hubmerge wrote and may write again; a person's card is never replaced.
MARK = "<!-- Written by hubmerge; remove this line to keep your own changes. -->"
CARD = "README.md"

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_STEP = re.compile(r"(?:global_step|checkpoint|step|ckpt-step|epoch_\d+_step)[_-]?(\d+)")


@dataclass(frozen=True, slots=True)
class CardOptions:
    """What the user says about the model; None where the user does not.

    Attributes:
        text: a card of the user's own: its text stays, missing metadata is filled in.
    """

    base_model: str | None = None
    license: str | None = None
    text: str | None = None


def make_card(
    plan: Plan, config: dict[str, Any] | None, options: CardOptions, repo_id: str | None
) -> str:
    """The card's whole text.

    Args:
        repo_id: where it is published; None in a local folder.
    """
    metadata = _metadata(config, options)
    if options.text is not None:
        return _fill_in(options.text, metadata)
    from huggingface_hub import ModelCard, ModelCardData

    body = _body(plan, config or {}, metadata, repo_id)
    card: ModelCard = ModelCard(f"---\n{ModelCardData(**metadata).to_yaml()}\n---\n\n{body}")
    return str(card)


def is_ours(text: str) -> bool:
    """Did hubmerge write this card, with nobody claiming it since?"""
    return MARK in text


def _metadata(config: dict[str, Any] | None, options: CardOptions) -> dict[str, Any]:
    metadata: dict[str, Any] = {"library_name": "transformers", "tags": ["hubmerge"]}
    base_model = options.base_model or _base_model(config or {})
    if base_model:
        metadata["base_model"] = base_model
    if options.license:
        metadata["license"] = options.license
    if _auto_class(config or {}) == "AutoModelForCausalLM":
        metadata["pipeline_tag"] = "text-generation"
    return metadata


def _base_model(config: dict[str, Any]) -> str | None:
    """The config's `_name_or_path` where it is a Hub id and no path of somebody's machine."""
    name = config.get("_name_or_path")
    return name if isinstance(name, str) and _HUB_ID.fullmatch(name) else None


def _fill_in(text: str, metadata: dict[str, Any]) -> str:
    from huggingface_hub import ModelCard

    card: ModelCard = ModelCard(text)
    for name, value in metadata.items():
        if card.data.get(name) is None:
            card.data[name] = value
    return str(card)


def _auto_class(config: dict[str, Any]) -> str:
    names = config.get("architectures")
    name = str(names[0]) if isinstance(names, list) and names else ""
    if "ForConditionalGeneration" in name and "vision_config" in config:
        return "AutoModelForImageTextToText"
    for task in ("CausalLM", "SequenceClassification", "TokenClassification", "MaskedLM"):
        if name.endswith(f"For{task}"):
            return f"AutoModelFor{task}"
    return "AutoModelForCausalLM" if name.endswith("LMHeadModel") else "AutoModel"


def _body(plan: Plan, config: dict[str, Any], metadata: dict[str, Any], repo_id: str | None) -> str:
    name = repo_id.split("/")[-1] if repo_id else "This model"
    base = metadata.get("base_model")
    sections = [
        MARK,
        f"# {name}",
        _summary(plan, config, base),
        "## How to load it",
        _usage(config, repo_id),
        "## Where it comes from",
        _provenance(plan),
        "## Parameters",
        _table(("dtype", "parameters", "size"), _dtype_rows(plan)),
        "## Files",
        _table(
            ("file", "tensors", "size"),
            [(s.filename, f"{len(s.tensors):,}", human_bytes(s.size_bytes)) for s in plan.shards],
        ),
    ]
    return "\n\n".join(sections) + "\n"


def _summary(plan: Plan, config: dict[str, Any], base: Any) -> str:
    names = config.get("architectures")
    kind = f"`{names[0]}`" if isinstance(names, list) and names else "model"
    text = f"A {kind} with {plan.total_parameters:,} parameters"
    if isinstance(base, str):
        text += f", trained from [{base}](https://huggingface.co/{base})"
    return text + "."


def _usage(config: dict[str, Any], repo_id: str | None) -> str:
    auto_class = _auto_class(config)
    place = repo_id or "path/to/this/folder"
    loader = "AutoProcessor" if auto_class == "AutoModelForImageTextToText" else "AutoTokenizer"
    variable = "processor" if loader == "AutoProcessor" else "tokenizer"
    return (
        "```python\n"
        f"from transformers import {auto_class}, {loader}\n\n"
        f'model = {auto_class}.from_pretrained("{place}")\n'
        f'{variable} = {loader}.from_pretrained("{place}")\n'
        "```"
    )


def _provenance(plan: Plan) -> str:
    rows = [("Checkpoint", f"PyTorch distributed checkpoint ({plan.layout})")]
    step = training_step(plan)
    if step is not None:
        rows.append(("Step", f"{step:,}"))
    rows.append(("Weights", plan.main_dtype or "as stored"))
    rows.append(("Converted by", f"hubmerge {version('hubmerge')}, torch {version('torch')}"))
    return "\n".join(f"- {label}: {text}" for label, text in rows)


def training_step(plan: Plan) -> int | None:
    """The step, from the names of the checkpoint's folders; None where none says."""
    for part in reversed(plan.checkpoint.folder.parts):
        match = _STEP.fullmatch(part)
        if match:
            return int(match[1])
    return None


def _dtype_rows(plan: Plan) -> list[tuple[str, str, str]]:
    counts: dict[str, tuple[int, int]] = {}
    for shard in plan.shards:
        for tensor in shard.tensors:
            parameters, size = counts.get(tensor.dtype.name, (0, 0))
            counts[tensor.dtype.name] = (
                parameters + prod(tensor.shape),
                size + tensor.size_bytes,
            )
    return [(name, f"{n:,}", human_bytes(size)) for name, (n, size) in counts.items()]


def _table(
    header: tuple[str, ...], rows: list[tuple[str, ...]] | list[tuple[str, str, str]]
) -> str:
    lines = [header, tuple("---" for _ in header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
