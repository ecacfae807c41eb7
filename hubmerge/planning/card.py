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
from hubmerge.hf_format.assets import Assets
from hubmerge.hf_format.filenames import ADAPTER_CONFIG
from hubmerge.names.peft_tuners import TUNERS
from hubmerge.names.reference import REPO_ID, is_on_hub
from hubmerge.planning.card_usage import task_of, usage
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
    """What the user says about the model; None for what the user does not say.

    Attributes:
        text: a card of the user's own: its text stays, missing metadata is filled in.
    """

    base_model: str | None = None
    license: str | None = None
    text: str | None = None


def make_card(plan: Plan, assets: Assets, options: CardOptions, repo_id: str | None) -> str:
    """Return the text of the card.

    Args:
        repo_id: where it is published; None for a local folder.

    Raises:
        UsageError: the metadata of the user's own card is not valid YAML.
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
    """Return what is published beside the weights, by name, in the order in which it is written."""
    small = {asset.name: asset.read() for asset in assets.files}
    small[CARD] = make_card(plan, assets, options, repo_id).encode()
    if plan.index is not None:
        small[plan.index_name] = plan.index
    return small


def repository_named_in(path: Path) -> str | None:
    """Return the repository that a card of ours loads; None if there is no such card."""
    try:
        text = path.read_bytes().decode()
    except (OSError, ValueError):
        return None
    named = re.search(r'\.from_pretrained\("([^"]+)"', text)
    return named[1] if named and is_ours(text) and REPO_ID.fullmatch(named[1]) else None


def same_card(left: bytes, right: bytes) -> bool:
    """Return whether two cards differ only in where and when they were written."""
    return _VOLATILE_LINES.sub(b"", left) == _VOLATILE_LINES.sub(b"", right)


def is_ours(text: str) -> bool:
    """Return whether hubmerge wrote this card, and nobody has claimed it since."""
    return MARK in text


@dataclass(frozen=True, slots=True)
class _About:
    """What the card says of the model.

    Attributes:
        class_name: loads it.
        config: the model's, or the adapter's.
        metadata: the card's own.
    """

    library: str
    class_name: str
    config: dict[str, Any]
    files: frozenset[str]
    metadata: dict[str, Any]


def _about(plan: Plan, assets: Assets, options: CardOptions) -> _About:
    config = assets.config or {}
    tags = ["hubmerge"]
    if plan.is_adapter:
        found = assets.get(ADAPTER_CONFIG)
        config = json.loads(found.read()) if found else {}
        tags += ["lora"] if _kind(config) == "LoRA" else []
    library = "peft" if plan.is_adapter else assets.library
    class_name, task = task_of(library, config)
    metadata: dict[str, Any] = {
        "library_name": library,
        "tags": tags,
    }
    base_model = options.base_model or _base_model(config)
    if base_model and is_on_hub(base_model):
        metadata["base_model"] = base_model
        metadata["base_model_relation"] = "adapter" if plan.is_adapter else "finetune"
    if options.license:
        metadata["license"] = options.license
    if task is not None:
        metadata["pipeline_tag"] = task
    return _About(library, class_name, config, assets.names, metadata)


def _base_model(config: dict[str, Any]) -> str | None:
    """Return the base model that the config names, a Hub id or a path."""
    name = config.get("base_model_name_or_path") or config.get("_name_or_path")
    return name if isinstance(name, str) else None


def _fill_in(text: str, metadata: dict[str, Any]) -> str:
    """Return the user's card with missing metadata added and everything else unchanged."""
    from huggingface_hub import ModelCard

    header = _HEADER.match(text)
    try:
        # Without a header it would be said on stderr that there is none.
        card: ModelCard = ModelCard(text if header else f"---\n{{}}\n---\n{text}")
    except (ValueError, YAMLError) as error:
        raise UsageError(
            f"the model card's metadata cannot be read: {' '.join(str(error).split())}",
            "Correct the block between the two lines of --- at its top.",
        ) from None
    missing = {name: value for name, value in metadata.items() if card.data.get(name) is None}
    if not missing:
        return text
    for name, value in missing.items():
        card.data[name] = value
    body = text[header.end() :] if header else "\n\n" + text
    return f"---\n{card.data.to_yaml()}\n---{body}"


def _kind(config: dict[str, Any]) -> str:
    """Return the kind of an adapter, as PEFT's documentation spells it."""
    kind = str(config.get("peft_type", "LORA")).upper()
    spelled = {"LORA": "LoRA", "ADALORA": "AdaLoRA", "VERA": "VeRA", "LOHA": "LoHa", "LOKR": "LoKr"}
    return spelled.get(kind, kind.replace("_", " ") if kind in TUNERS else "PEFT")


def _body(plan: Plan, about: _About, repo_id: str | None) -> str:
    name = repo_id.split("/")[-1] if repo_id else "This model"
    sections = [
        MARK,
        f"# {name}",
        _summary(plan, about),
        "## How to load it",
        usage(
            about.library,
            about.class_name,
            about.config,
            about.files,
            repo_id or "path/to/this/folder",
        ),
        "## Where it comes from",
        _provenance(plan, repo_id),
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


def _provenance(plan: Plan, repo_id: str | None) -> str:
    rows = [("Checkpoint", f"PyTorch distributed checkpoint ({plan.layout})")]
    step = step_of(plan.checkpoint.folder.absolute())
    if step is not None:
        rows.append(("Step", f"{step:,}"))
    rows.append(("Weights", plan.main_dtype or "as stored"))
    rows.append(("Converted by", f"hubmerge {version('hubmerge')}"))
    if repo_id is not None:
        check = f"`hubmerge verify --load-dir CHECKPOINT --repo-id {repo_id}`"
        rows.append(("Compare with the checkpoint", check))
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
