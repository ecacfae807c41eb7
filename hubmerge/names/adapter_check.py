"""Check an adapter against its base model with PEFT, before a byte is converted.

PEFT puts the adapter that the config describes into the base model, on the meta device, and tells
which tensors it would save. What is missing or of another shape now, `PeftModel.from_pretrained`
would miss or refuse after the upload. Without PEFT, shapes are compared with those of the layers.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

from hubmerge.errors import CheckpointError
from hubmerge.names.adapter import ROOT, AdapterConfig
from hubmerge.names.architecture import Architecture, quiet_transformers
from hubmerge.names.loader_check import Shape, Verdict
from hubmerge.names.peft_tuners import ANY_TUNER
from hubmerge.system.offline import no_network

Shapes = Mapping[str, Shape]

# What a config says of other things than names and shapes: where the base model is, how values
# begin. Some of it names files or code, and PEFT would open or import those.
_NO_MATTER = re.compile(
    r"base_model_name_or_path|revision|auto_mapping|inference_mode|init_.*weights|peft_version"
    r"|megatron_.+|(loftq|eva|corda|lora_ga|runtime)_config"
)

# More than any adapter has: of ranks, layers, or whatever a number in a config may count.
_MAX_COUNT = 1_000_000
_NO_COUNT = re.compile(r".*(seed|_key|_indices)")


class _CannotAskError(Exception):
    """PEFT cannot be asked; the message says why."""


def check_adapter(
    shapes: Shapes, config: AdapterConfig, architecture: Architecture, base_rows: int | None
) -> list[str]:
    """Compare the adapter's tensors with those that PEFT would save for this base model.

    Args:
        base_rows: rows of the base model's embedding.

    Returns:
        Warnings: what could not be checked, and rows that the base model has not.

    Raises:
        CheckpointError: names or shapes do not fit; all are listed.
    """
    told = []
    try:
        with no_network(), quiet_transformers(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            verdict = _ask_peft(shapes, config, architecture)
    except Exception as error:  # noqa: BLE001 - whatever PEFT raises, it is no verdict
        verdict = _compare(shapes, config, architecture)
        told.append(
            f"PEFT could not be asked whether it can load the adapter ({_reason(error)}): only "
            "shapes were compared with those of the base model's layers"
        )
    resized = [m for m in verdict.mismatched if base_rows is not None and _is_resized(m, base_rows)]
    told += _of_rows(resized, config, base_rows)
    rest = tuple(m for m in verdict.mismatched if m not in resized)
    problems = Verdict(verdict.unexpected, verdict.missing, rest).problems()
    if problems:
        raise CheckpointError(
            "PeftModel would not load the adapter whole: " + "; ".join(problems),
            "Check that adapter_config.json and the base model's config are this run's; "
            "--no-check-model converts all the same.",
        )
    return told


def _reason(error: Exception) -> str:
    if isinstance(error, ImportError) and error.name == "peft":
        return "it is not installed"
    if isinstance(error, _CannotAskError):
        return str(error)
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


def _is_resized(mismatch: tuple[str, Shape, Shape], base_rows: int) -> bool:
    """Return whether two shapes differ only in the rows of the base model's embedding."""
    _, ours, theirs = mismatch
    if len(ours) != len(theirs):
        return False
    different = [theirs[dim] for dim in range(len(ours)) if ours[dim] != theirs[dim]]
    return different == [base_rows]


def _of_rows(
    resized: list[tuple[str, Shape, Shape]], config: AdapterConfig, base_rows: int | None
) -> Iterator[str]:
    """Yield what is to be done so that PEFT can load rows that the base model has not."""
    if resized:
        name, ours, theirs = resized[0]
        rows = next(n for n, m in zip(ours, theirs, strict=True) if n != m)
        yield (
            f"{name} has {rows} rows, and the base model's embedding {base_rows}: PEFT can load "
            f"the adapter only after base.resize_token_embeddings({rows}); push that model, and "
            "name it in base_model_name_or_path"
        )
    last = max(config.token_indices, default=0)
    if base_rows is not None and last >= base_rows:
        yield (
            f"adapter_config.json trains token {last}, and the base model's embedding has "
            f"{base_rows} rows: PEFT can load the adapter only after the base is resized"
        )


def _ask_peft(shapes: Shapes, config: AdapterConfig, architecture: Architecture) -> Verdict:
    import torch
    from peft import PeftConfig, get_peft_model, get_peft_model_state_dict

    peft_config = PeftConfig.from_peft_type(**_structure(config))
    with torch.device("meta"):
        model = get_peft_model(architecture.build_again(), peft_config, low_cpu_mem_usage=True)
        saved = get_peft_model_state_dict(model, save_embedding_layers=False)
    wanted = {name: tuple(tensor.shape) for name, tensor in saved.items()}
    known = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()} | wanted
    # With bias="all", PEFT also saves biases of the wrapper of a module to save.
    missing = {
        name
        for name in wanted.keys() - shapes.keys()
        if ".original_module." not in name and ".modules_to_save." not in name
    }
    unexpected = shapes.keys() - known.keys()
    if unexpected and _is_converted(shapes, model):
        return Verdict(frozenset(), frozenset(), ())
    return Verdict(frozenset(unexpected), frozenset(missing), _mismatched(shapes, known))


def _is_converted(shapes: Shapes, model: Any) -> bool:
    """Return whether PEFT loads names of an older transformers, as it does for some experts."""
    import torch
    from peft import set_peft_model_state_dict

    tensors = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    try:
        result = set_peft_model_state_dict(model, tensors, low_cpu_mem_usage=True)
    except (KeyError, RuntimeError, ValueError):  # a name that is missing, another shape
        return False
    return not result.unexpected_keys and not any(map(ANY_TUNER.find, result.missing_keys))


def _structure(config: AdapterConfig) -> dict[str, Any]:
    """What of a config decides on names and shapes.

    Raises:
        _CannotAskError: it has something that PEFT would open, or numbers beyond all reason.
    """
    values = {k: v for k, v in config.values.items() if not _NO_MATTER.fullmatch(k)}
    for key, value in values.items():
        if key.endswith("_config") and value:
            raise _CannotAskError(f"adapter_config.json has {key}")
        if not _NO_COUNT.fullmatch(key) and any(n > _MAX_COUNT for n in _numbers(value)):
            raise _CannotAskError(f"{key} in adapter_config.json is beyond all reason")
    if sum(_numbers(values.get("layer_replication"))) > _MAX_COUNT:
        raise _CannotAskError("layer_replication in adapter_config.json is beyond all reason")
    return values | {"peft_type": config.peft_type}


def _numbers(value: object) -> Iterator[int]:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from _numbers(item)
    elif isinstance(value, int):
        yield value


def _mismatched(ours: Shapes, theirs: Shapes) -> tuple[tuple[str, Shape, Shape], ...]:
    return tuple(
        (name, shape, theirs[name])
        for name, shape in sorted(ours.items())
        if name in theirs and theirs[name] != shape
    )


def _compare(shapes: Shapes, config: AdapterConfig, architecture: Architecture) -> Verdict:
    """Compare rows and columns with those of the base model's layers, as far as they tell."""
    base = architecture.names
    modules = {name.rpartition(".")[0] for name in base}
    modules |= {m.rpartition(".")[0] for m in modules}
    unexpected, wanted = set(), {}
    for name, shape in shapes.items():
        below = re.sub(r"(\.base_layer|\.token_adapter)+(?=\.)", "", name.removeprefix(ROOT))
        mark = ANY_TUNER.find(below)
        if mark is None:
            if below in base:
                wanted[name] = base[below]
            else:
                unexpected.add(name)
        elif mark.layer and mark.layer not in modules:
            unexpected.add(name)
        elif len(shape) == 2 and len(base.get(f"{mark.layer}.weight", ())) == 2:
            out_features, in_features = base[f"{mark.layer}.weight"]
            if config.values.get("fan_in_fan_out") is True:
                out_features, in_features = in_features, out_features
            wanted[name] = {
                "lora_A": (shape[0], in_features),
                "lora_B": (out_features, shape[1]),
                "lora_embedding_A": (shape[0], out_features),
                "lora_embedding_B": (in_features, shape[1]),
                "trainable_tokens_delta": (shape[0], in_features),
            }.get(mark.attribute, shape)
    return Verdict(frozenset(unexpected), frozenset(), _mismatched(shapes, wanted))
