"""The model card: README.md with the metadata that the Hub reads, and how to load the model.

The text depends on the plan and the options alone, so that a rerun makes the same bytes.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from importlib.metadata import version
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from yaml import YAMLError

from hubmerge.checkpoint.locate import step_of
from hubmerge.errors import UsageError
from hubmerge.formatting import human_bytes
from hubmerge.hf_format.asset_names import is_tokenizer
from hubmerge.hf_format.assets import Assets
from hubmerge.hf_format.filenames import ADAPTER_CONFIG, INDEX_NAME
from hubmerge.names.peft_tuners import TUNERS
from hubmerge.names.reference import REPO_ID, is_on_hub
from hubmerge.planning.plan import Plan

if TYPE_CHECKING:
    from huggingface_hub import ModelCard

# Marks a card that hubmerge wrote and may write again; a person's card is never replaced.
MARK = "<!-- Written by hubmerge; remove this line to keep your own changes. -->"
CARD = "README.md"

_HEADER = re.compile(r"\ufeff?\s*---[ \t]*\r?\n.*?\n---[ \t]*(?=\r?\n|$)", re.DOTALL)
# The lines of a card that depend on the checkpoint's path, or on who wrote it.
_VOLATILE_LINES = re.compile(rb"^- (?:Checkpoint|Step|Converted by): .*\n", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class CardOptions:
    """What the user says about the model; None where the user does not.

    Attributes:
        text: a card of the user's own: its text stays, missing metadata is filled in.
    """

    base_model: str | None = None
    license: str | None = None
    text: str | None = None


def make_card(plan: Plan, assets: Assets, options: CardOptions, repo_id: str | None) -> str:
    """The card's whole text.

    Args:
        repo_id: where it is published; None in a local folder.

    Raises:
        UsageError: the user's own card has metadata that is no YAML.
    """
    from huggingface_hub import ModelCardData

    about = _about(plan, assets, options)
    if options.text is not None:
        return _fill_in(options.text, about.metadata)
    body = _body(plan, about, repo_id)
    header = ModelCardData(**about.metadata).to_yaml()
    return f"---\n{header}\n---\n\n{body}"


def small_files(
    plan: Plan, assets: Assets, options: CardOptions, repo_id: str | None
) -> dict[str, bytes]:
    """All that is published beside the weights, by name, in the order in which it is written."""
    small = {asset.name: asset.read() for asset in assets.files}
    small[CARD] = make_card(plan, assets, options, repo_id).encode()
    if plan.index is not None:
        small[INDEX_NAME] = plan.index
    return small


def repository_named_in(path: Path) -> str | None:
    """The repository that a card of ours tells to load; None where there is no such card."""
    try:
        text = path.read_bytes().decode()
    except (OSError, ValueError):
        return None
    named = re.search(r'\.from_pretrained\("([^"]+)"', text)
    return named[1] if named and is_ours(text) and REPO_ID.fullmatch(named[1]) else None


def same_card(left: bytes, right: bytes) -> bool:
    """Are two cards the same, but for where and when they were written?"""
    return _VOLATILE_LINES.sub(b"", left) == _VOLATILE_LINES.sub(b"", right)


def is_ours(text: str) -> bool:
    """Did hubmerge write this card, with nobody claiming it since?"""
    return MARK in text


@dataclass(frozen=True, slots=True)
class _About:
    """What the card says of the model.

    Attributes:
        auto_class: loads it.
        config: the model's, or the adapter's.
        metadata: the card's own.
    """

    auto_class: str
    config: dict[str, Any]
    files: frozenset[str]
    metadata: dict[str, Any]


def _about(plan: Plan, assets: Assets, options: CardOptions) -> _About:
    config = assets.config or {}
    tags = ["hubmerge"]
    if plan.is_adapter:
        found = [asset for asset in assets.files if asset.name == ADAPTER_CONFIG]
        config = json.loads(found[0].read()) if found else {}
        tags += ["lora"] if _kind(config) == "LoRA" else []
    base_model = options.base_model or _base_model(config)
    auto_class = _adapter_class(config) if plan.is_adapter else _auto_class(config)
    metadata: dict[str, Any] = {
        "library_name": "peft" if plan.is_adapter else "transformers",
        "tags": tags,
    }
    if base_model and is_on_hub(base_model):
        metadata["base_model"] = base_model
        if plan.is_adapter:
            metadata["base_model_relation"] = "adapter"
    if options.license:
        metadata["license"] = options.license
    if auto_class.endswith("ForCausalLM"):
        metadata["pipeline_tag"] = "text-generation"
    return _About(auto_class, config, frozenset(asset.name for asset in assets.files), metadata)


def _base_model(config: dict[str, Any]) -> str | None:
    """What the config says that it was trained from, be it a Hub id or a path."""
    name = config.get("base_model_name_or_path") or config.get("_name_or_path")
    return name if isinstance(name, str) else None


def _fill_in(text: str, metadata: dict[str, Any]) -> str:
    """The user's card, its own metadata and every byte below it kept."""
    from huggingface_hub import ModelCard

    header = _HEADER.match(text)
    try:
        # Without a header it would be said on stderr that there is none.
        card: ModelCard = ModelCard(text if header else f"---\n{{}}\n---\n{text}")
    except (ValueError, YAMLError) as error:
        raise UsageError(
            f"the model card's metadata cannot be read: {' '.join(str(error).split())}",
            "Mend the block between the two lines of --- at its top.",
        ) from None
    missing = {name: value for name, value in metadata.items() if card.data.get(name) is None}
    if not missing:
        return text
    for name, value in missing.items():
        card.data[name] = value
    body = text[header.end() :] if header else "\n\n" + text
    return f"---\n{card.data.to_yaml()}\n---{body}"


def _kind(config: dict[str, Any]) -> str:
    """The kind of an adapter, as PEFT's documentation spells it."""
    kind = str(config.get("peft_type", "LORA")).upper()
    spelled = {"LORA": "LoRA", "ADALORA": "AdaLoRA", "VERA": "VeRA", "LOHA": "LoHa", "LOKR": "LoKr"}
    return spelled.get(kind, kind.replace("_", " ") if kind in TUNERS else "PEFT")


def _adapter_class(config: dict[str, Any]) -> str:
    """PEFT's class for the task that the adapter's config names."""
    tasks = {
        "CAUSAL_LM": "AutoPeftModelForCausalLM",
        "SEQ_CLS": "AutoPeftModelForSequenceClassification",
        "SEQ_2_SEQ_LM": "AutoPeftModelForSeq2SeqLM",
        "TOKEN_CLS": "AutoPeftModelForTokenClassification",
        "QUESTION_ANS": "AutoPeftModelForQuestionAnswering",
        "FEATURE_EXTRACTION": "AutoPeftModelForFeatureExtraction",
    }
    return tasks.get(str(config.get("task_type")), "AutoPeftModel")


def _auto_class(config: dict[str, Any]) -> str:
    names = config.get("architectures")
    name = str(names[0]) if isinstance(names, list) and names else ""
    if "ForConditionalGeneration" in name:
        return (
            "AutoModelForImageTextToText" if "vision_config" in config else "AutoModelForSeq2SeqLM"
        )
    for task in ("CausalLM", "SequenceClassification", "TokenClassification", "MaskedLM"):
        if name.endswith(f"For{task}"):
            return f"AutoModelFor{task}"
    return "AutoModelForCausalLM" if name.endswith("LMHeadModel") else "AutoModel"


def _body(plan: Plan, about: _About, repo_id: str | None) -> str:
    name = repo_id.split("/")[-1] if repo_id else "This model"
    sections = [
        MARK,
        f"# {name}",
        _summary(plan, about),
        "## How to load it",
        _usage(about, repo_id or "path/to/this/folder"),
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


def _summary(plan: Plan, about: _About) -> str:
    base = about.metadata.get("base_model")
    link = f"[{base}](https://huggingface.co/{base})"
    parameters = f"{plan.total_parameters:,} parameters"
    if plan.is_adapter:
        kind = _kind(about.config)
        article = "An" if kind[0] in "AIO" else "A"
        return f"{article} {kind} adapter with {parameters}" + (f" for {link}." if base else ".")
    names = about.config.get("architectures")
    kind = f"`{names[0]}`" if isinstance(names, list) and names else "model"
    return f"A {kind} with {parameters}" + (f", trained from {link}." if base else ".")


def _usage(about: _About, place: str) -> str:
    """Code that loads what is there: no tokenizer is loaded where there is none."""
    library = "peft" if about.auto_class.startswith("AutoPeft") else "transformers"
    code = ", trust_remote_code=True" if "auto_map" in about.config else ""
    imports, lines = [about.auto_class], []
    if about.files & {"processor_config.json", "preprocessor_config.json"}:
        imports.append("AutoProcessor")
        lines.append(f'processor = AutoProcessor.from_pretrained("{place}"{code})')
    elif is_tokenizer(about.files):
        imports.append("AutoTokenizer")
        lines.append(f'tokenizer = AutoTokenizer.from_pretrained("{place}"{code})')
    if library == "peft":
        head = [f"from peft import {about.auto_class}"]
        head += [f"from transformers import {name}" for name in imports[1:]]
    else:
        head = [f"from transformers import {', '.join(imports)}"]
    lines.insert(0, f'model = {about.auto_class}.from_pretrained("{place}"{code})')
    return "\n".join(["```python", *head, "", *lines, "```"])


def _provenance(plan: Plan) -> str:
    rows = [("Checkpoint", f"PyTorch distributed checkpoint ({plan.layout})")]
    step = step_of(plan.checkpoint.folder.absolute())
    if step is not None:
        rows.append(("Step", f"{step:,}"))
    rows.append(("Weights", plan.main_dtype or "as stored"))
    rows.append(("Converted by", f"hubmerge {version('hubmerge')}"))
    return "\n".join(f"- {label}: {text}" for label, text in rows)


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
