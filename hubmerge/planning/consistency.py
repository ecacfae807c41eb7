"""The published config, tokenizer and processor, compared with the planned weights.

What a run copies from its base model describes the base model. What can be put right without doubt
is edited in the published config, and said; what would make a repository that does not load is a
problem; the rest is a warning that names the field to change.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, NamedTuple

from hubmerge.errors import CheckpointError
from hubmerge.formatting import format_list
from hubmerge.hf_format.asset_names import (
    CONFIG,
    GENERATION_CONFIG,
    PROCESSORS,
    TOKENIZER_CONFIG,
    is_tokenizer,
    is_vocabulary,
)
from hubmerge.hf_format.assets import Assets, config_levels
from hubmerge.hf_format.json_text import entries, remove_entries, replace_values
from hubmerge.hf_format.quantization import StoredAs, is_quantization, is_without_weights, method_of
from hubmerge.hf_format.tokenizer_files import highest_token
from hubmerge.names.architecture import Architecture
from hubmerge.names.auto_classes import needs_processor, needs_tokenizer
from hubmerge.names.mtp import is_mtp, missing_layers, promised_mtp
from hubmerge.planning.plan import Plan, PlannedTensor

# What FSDP2 puts before the name of the class that it wraps.
_WRAPPED_CLASS = re.compile(r"FSDP(?=[A-Z])")

# Names of the table that token ids index, for a model that transformers does not know.
_EMBEDDINGS = (
    "embed_tokens.weight",
    "tok_embeddings.weight",
    "wte.weight",
    "word_embeddings.weight",
)
_VOCABULARY_FIELD = re.compile(r"(?:^|_)vocab(?:_|$)|(?:^|_)vocabulary_size$")
_TOKEN_FIELD = re.compile(r"(?:bos|eos|pad|decoder_start|forced_bos|forced_eos)_token_id$")

_OWN_MODULE = re.compile(r"sentence_transformers\.")
_TRAINED_MODULES = ("Dense", "LayerNorm", "LSTM", "CNN", "WeightedLayerPooling")


class Problem(NamedTuple):
    """Why the published repository could not be loaded, and what to change."""

    message: str
    hint: str


def reconcile(
    assets: Assets, plan: Plan, architecture: Architecture | None, *, must_load: bool
) -> Assets:
    """Bring the published files and the planned weights together.

    Args:
        assets: what is published beside the weights of a whole model.
        must_load: whether a repository that does not load is an error, or a warning.

    Returns:
        The assets, their config edited, with a note for each edit and a warning for each doubt.

    Raises:
        CheckpointError: the published repository would not load.
    """
    tensors = [tensor for shard in plan.model_shards for tensor in shard.tensors]
    assets = _without_planned(assets, plan)
    assets = _corrected(assets, tensors)
    problems = list(_problems(assets, tensors, architecture))
    if problems and must_load:
        raise CheckpointError(problems[0].message, problems[0].hint)
    warnings = [f"{problem.message}. {problem.hint}" for problem in problems]
    warnings += _warnings(assets, tensors, architecture)
    warnings += _broken_modules(assets, plan)
    return replace(assets, warnings=(*assets.warnings, *warnings))


def _without_planned(assets: Assets, plan: Plan) -> Assets:
    """Leave out the files of modules whose trained weights the checkpoint holds; say what stays."""
    planned = {shard.filename for shard in plan.shards}
    kept = tuple(asset for asset in assets.files if asset.name not in planned)
    notes = tuple(
        f"{asset.name} is taken from the assets folder: the checkpoint holds no weights for it"
        for asset in kept
        if asset.name.endswith("/model.safetensors")
    )
    return replace(assets, files=kept, notes=(*assets.notes, *notes))


def _corrected(assets: Assets, tensors: list[PlannedTensor]) -> Assets:
    """Put right in `config.json` what the tensors and transformers' names contradict."""
    asset = assets.get(CONFIG)
    if asset is None:
        return assets
    text = asset.read().decode()
    notes: list[str] = []
    stored = [StoredAs(tensor.name, tensor.dtype.name, len(tensor.shape)) for tensor in tensors]
    text = _without_quantization(text, stored, notes)
    text = _with_real_classes(text, notes)
    if not notes:
        return assets
    return replace(assets.with_config(text), notes=(*assets.notes, *notes))


def _without_quantization(text: str, stored: list[StoredAs], notes: list[str]) -> str:
    unfounded = {
        entry.path
        for entry in entries(text)
        if is_quantization(entry) and is_without_weights(entry.value, stored)
    }
    notes += [
        f"config.json says that the weights are quantized ({entry.name}: "
        f"{method_of(entry.value)}), and they are not: {entry.name} is left out of it"
        for entry in entries(text)
        if entry.path in unfounded
    ]
    return remove_entries(text, lambda entry: entry.path in unfounded) if unfounded else text


def _with_real_classes(text: str, notes: list[str]) -> str:
    """Write the class that was wrapped, as transformers knows it, for FSDP2's own."""
    for entry in entries(text):
        if entry.key != "architectures" or not isinstance(entry.value, list):
            continue
        for name in filter(_WRAPPED_CLASS.match, map(str, entry.value)):
            real = _WRAPPED_CLASS.sub("", name)
            notes.append(f"config.json names the class {name}, which is FSDP's; written as {real}")
    return replace_values(
        text,
        lambda entry: (
            re.sub(r'"FSDP(?=[A-Z])', '"', text[entry.value_start : entry.end])
            if entry.key == "architectures"
            else None
        ),
    )


def _problems(
    assets: Assets, tensors: list[PlannedTensor], architecture: Architecture | None
) -> Iterator[Problem]:
    """Why a loader would refuse the planned weights with this config."""
    config = assets.config or {}
    yield from _lone_thinker(config, tensors)
    yield from _resized(config, tensors, architecture)


def _lone_thinker(config: dict[str, Any], tensors: list[PlannedTensor]) -> Iterator[Problem]:
    """Qwen's Omni models consist of three; often only the one that reads and writes is trained."""
    if "thinker_config" not in config or config.get("enable_audio_output") is False:
        return
    if not any(t.name.startswith(("talker.", "token2wav.", "code2wav.")) for t in tensors):
        yield Problem(
            "this is the thinker alone, without talker and token2wav: it writes text, and "
            "config.json describes a model that also speaks",
            'Set "enable_audio_output": false in config.json to publish it as that.',
        )


def _resized(
    config: dict[str, Any], tensors: list[PlannedTensor], architecture: Architecture | None
) -> Iterator[Problem]:
    """Compare the rows of embeddings and heads with the sizes of vocabularies in the config."""
    fields = {
        path + key: value
        for path, level in config_levels(config)
        for key, value in level.items()
        if type(value) is int and _VOCABULARY_FIELD.search(key)
    }
    for tensor in sorted(tensors, key=_is_embedding, reverse=True):
        rows = _configured_rows(tensor, fields, architecture)
        named = [field for field, value in fields.items() if value == rows]
        if named and rows != tensor.shape[0]:
            values = ", ".join(f'"{field}": {tensor.shape[0]}' for field in named)
            yield Problem(
                f"{tensor.name} has {tensor.shape[0]:,} rows, and config.json says {rows:,} "
                f"({', '.join(named)}): the vocabulary was resized, "
                "or a file of the checkpoint is lost",
                f"Set {values} in config.json, and give the resized tokenizer.",
            )
            return  # the others were resized with it


def _configured_rows(
    tensor: PlannedTensor, fields: dict[str, int], architecture: Architecture | None
) -> int | None:
    """The rows that the config gives a tensor, if only they can differ; None if unknown."""
    if architecture is not None:
        shape = architecture.hub_shapes.get(tensor.name, ())
        return shape[0] if shape and shape[1:] == tensor.shape[1:] else None
    if not _is_embedding(tensor) or tensor.shape[0] in fields.values():
        return None
    return max(fields.values(), default=None)


def _is_embedding(tensor: PlannedTensor) -> bool:
    return tensor.name.endswith(_EMBEDDINGS) and len(tensor.shape) == 2


def _warnings(
    assets: Assets, tensors: list[PlannedTensor], architecture: Architecture | None
) -> Iterator[str]:
    """What in the published files will not do what it promises, one sentence each."""
    config = assets.config or {}
    yield from _missing_mtp(config, [tensor.name for tensor in tensors])
    yield from _contradicting_vocabulary(config, _embedding_rows(tensors, architecture))
    yield from _unknown_scales(config, tensors)
    yield from _beyond_embedding(assets, tensors, architecture)
    if assets.library in ("transformers", "sentence-transformers"):
        yield from _missing_tokenizer(assets, architecture)
    if architecture is not None:
        yield from _missing_processor(assets)


def _missing_mtp(config: dict[str, Any], names: list[str]) -> Iterator[str]:
    promises = promised_mtp(config)
    if promises and not any(is_mtp(name, promises) for name in names):
        fields = ", ".join(promise.field for promise in promises)
        yield (
            f"config.json promises layers for multi-token prediction (MTP) and the checkpoint has "
            f"none: the model works, speculative decoding with it does not; set {fields} to 0 in "
            "config.json, or add the base model's layers"
        )
    missing = missing_layers(names, promises)
    if missing:
        yield (
            f"config.json promises layers for multi-token prediction (MTP) that the checkpoint "
            f"lacks: {format_list(missing)}; speculative decoding with them does not work"
        )


def _contradicting_vocabulary(config: dict[str, Any], rows: int | None) -> Iterator[str]:
    """Compare the size that a model of several modalities gives twice."""
    text, outer = config.get("text_config"), config.get("vocab_size")
    inner = text.get("vocab_size") if isinstance(text, dict) else None
    if rows is not None and inner == rows and type(outer) is int and outer != rows:
        yield (
            f"config.json: vocab_size is {outer:,}, and text_config.vocab_size and the embedding "
            f'say {rows:,}: set "vocab_size": {rows} in config.json, or leave it out there'
        )


def _unknown_scales(config: dict[str, Any], tensors: list[PlannedTensor]) -> Iterator[str]:
    """8-bit floats mean nothing to a loader that is not told of them."""
    scaled = [tensor.name for tensor in tensors if tensor.dtype.kind == "scaled"]
    if scaled and not any(map(is_quantization, entries(json.dumps(config)))):
        yield (
            f"{len(scaled)} tensors are quantized ({format_list(scaled, 2)}), and config.json has "
            "no quantization_config: loaders would read them without their scales"
        )


def _beyond_embedding(
    assets: Assets, tensors: list[PlannedTensor], architecture: Architecture | None
) -> Iterator[str]:
    """Token ids that index no row: a text with such a token ends in an error of the index."""
    rows = _embedding_rows(tensors, architecture)
    if rows is None:
        return
    token = highest_token(assets)
    if token is not None and token.id >= rows:
        yield (
            f"the tokenizer's ids go up to {token.id:,} ({token.text!r}), and the embedding has "
            f"{rows:,} rows: texts with the tokens beyond them cannot be read; give the tokenizer "
            "that the model was trained with"
        )
    for name in (CONFIG, GENERATION_CONFIG):
        asset = assets.get(name)
        for path, level in config_levels(json.loads(asset.read()) if asset is not None else {}):
            for key, value in level.items():
                ids = value if isinstance(value, list) else [value]
                if _TOKEN_FIELD.match(key) and any(type(i) is int and i >= rows for i in ids):
                    yield f"{name}: {path}{key} is {value}, and the embedding has {rows:,} rows"


def _embedding_rows(tensors: list[PlannedTensor], architecture: Architecture | None) -> int | None:
    """The rows of the table that token ids index; None if there is none, or more than one."""
    if architecture is not None:
        try:
            table = architecture.model.get_input_embeddings()
        except (NotImplementedError, AttributeError):  # it takes images or sound
            return None
        rows = getattr(table, "num_embeddings", None)
        return rows if isinstance(rows, int) else None
    rows_found = {tensor.shape[0] for tensor in tensors if _is_embedding(tensor)}
    return rows_found.pop() if len(rows_found) == 1 else None


def _missing_tokenizer(assets: Assets, architecture: Architecture | None) -> Iterator[str]:
    if not is_tokenizer(assets.names):
        if architecture is None or needs_tokenizer(_model_type(assets)):
            yield "no tokenizer: AutoTokenizer and pipelines cannot be used with the result"
    elif not any(map(is_vocabulary, assets.names)):
        yield (
            f"no vocabulary beside {TOKENIZER_CONFIG}: AutoTokenizer can only be used with the "
            "result if its class needs none"
        )


def _broken_modules(assets: Assets, plan: Plan) -> Iterator[str]:
    """Find modules of sentence-transformers whose config or weights are absent."""
    names = assets.names | {shard.filename for shard in plan.shards}
    for module in assets.modules:
        kind = module.kind.rpartition(".")[2]
        if not module.folder or not _OWN_MODULE.match(module.kind) or kind == "Normalize":
            continue  # it needs no files, or nobody knows which
        has_weights = any(name.startswith(f"{module.folder}/model") for name in names)
        if not any(name.startswith(f"{module.folder}/") for name in assets.names):
            absent = "has no files in the assets folder"
        elif kind in _TRAINED_MODULES and not has_weights:
            absent = "has no weights in the checkpoint or the assets folder"
        else:
            continue
        yield (
            f"module {module.folder} ({kind}) {absent}: the result cannot be loaded by "
            "SentenceTransformer"
        )


def _missing_processor(assets: Assets) -> Iterator[str]:
    model_type = _model_type(assets)
    if needs_processor(model_type) and not assets.names.intersection(PROCESSORS):
        yield (
            f"no processor config ({PROCESSORS[0]} or {PROCESSORS[1]}), which a model of type "
            f"{model_type} needs: AutoProcessor and pipelines cannot be used with the result"
        )


def _model_type(assets: Assets) -> str:
    return str((assets.config or {}).get("model_type"))
