"""Configs shrunk until a model of any class fits into a few MB, with as many kinds of layers.

All lengths are divided by one number, so that what has to fit together still does; counts are cut
off. What a config needs beyond that is in `OVERRIDES`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

LAYERS, EXPERTS, VOCABULARY = 4, 4, 128
MAX_PARAMETERS = 200_000_000
DIVISORS = (16, 8, 32, 4, 2, 1)
"""Tried one after the other."""

Values = dict[str, Any]

_LENGTH = re.compile(
    r"(dim|dims|size|sizes|rank|channels|width|widths|embd|d_model|d_ff|d_kv|d_inner|n_inner|"
    r"d_state|d_embed|d_head|d_proj|hidden|features)$"
)
_NO_LENGTH = re.compile(
    r"patch|image|kernel|window|vocab|chunk|batch|max_|pool|stride|num_|type|grid|crop|temporal|"
    r"spatial|merge|group|beam|block_size|sample|frame|_layers|state_size|rope|tile|scale|step"
)
_TOKEN = re.compile(r"token_ids?$|token_index$|_id$|_ids$")
_ONE_GROUP = ("n_group", "topk_group", "num_expert_group")
_MOST = (
    (re.compile(r"vocab_size|num_embeddings|num_tokens$|codebook_size$"), VOCABULARY),
    (re.compile(r"(experts|num_local_experts|n_routed_experts)$"), EXPERTS),
    (re.compile(r"^(num_experts_per_tok|(moe_|router_)?top_?k|moe_k)$"), 2),
    (re.compile(r"(layers?|blocks|depths?|stages)$|^n_layer$"), LAYERS),
    (re.compile(r"position_embeddings|^(max_seq_len|n_positions|n_ctx)$"), 512),
)
# What follows from the rest of a config.
_DERIVED = ("out_features", "out_indices", "stage_names", "_out_features", "_out_indices",
            "transformers_version", "architectures", "dtype", "torch_dtype")  # fmt: skip


def shrunk(config: Mapping[str, Any], divisor: int) -> Values:
    """The values of a small config, nested ones too."""
    values: Values = {}
    layers = next(
        (config[k] for k in ("num_hidden_layers", "num_layers", "n_layer", "n_layers")
         if isinstance(config.get(k), int)), None,
    )  # fmt: skip
    for name, value in config.items():
        if name in _DERIVED:
            continue
        if isinstance(value, Mapping) and value and all(str(key).isdigit() for key in value):
            values[name] = {key: one for key, one in value.items() if int(key) < LAYERS}
        elif isinstance(value, Mapping):
            is_config = "config" in name or "model_type" in value
            values[name] = shrunk(value, divisor) if is_config else _with_rope(value)
        elif name == "rope_theta" and value is None:
            values[name] = 10_000.0
        elif isinstance(value, list) and layers and len(value) == layers > LAYERS:
            values[name] = _few_layers(value)
        elif isinstance(value, list) and value and all(type(one) is int for one in value):
            values[name] = [_number(name, one, divisor) for one in value]
        elif type(value) is int:
            values[name] = _number(name, value, divisor)
        else:
            values[name] = value
    heads, width = values.get("num_attention_heads"), values.get("hidden_size")
    if "head_dim" in values and values["head_dim"] is None and heads and width:
        values["head_dim"] = width // heads
    return values


def _with_rope(values: Mapping[str, Any]) -> Values:
    return {n: 10_000.0 if n == "rope_theta" and v is None else v for n, v in values.items()}


def _few_layers(kinds: list[Any]) -> list[Any]:
    """As many of the kinds as there is room for."""
    first = kinds[:LAYERS]
    if not all(isinstance(kind, str) for kind in kinds):
        return first
    others = [kind for n, kind in enumerate(kinds) if kind not in kinds[:n] and kind not in first]
    return [*first[: LAYERS - len(others)], *others][:LAYERS]


def _number(name: str, value: int, divisor: int) -> int:
    if _TOKEN.search(name):
        return value if value < VOCABULARY else VOCABULARY - 1 - value % 100
    if name in _ONE_GROUP:
        return 1
    for pattern, most in _MOST:
        if pattern.search(name) and "feat" not in name and "conv" not in name:
            return min(value, most)
    if _LENGTH.search(name) and not _NO_LENGTH.search(name) and value >= 32:
        return max(1, value // divisor)
    return value


def model_classes() -> list[str]:
    """The public name of every class of transformers that has weights."""
    import transformers

    found = []
    for name in dir(transformers):
        if not name[:1].isupper() or not re.search(r"Model|For[A-Z]|Backbone|coder$", name):
            continue
        kind = getattr(transformers, name)
        is_model = isinstance(kind, type) and issubclass(kind, transformers.PreTrainedModel)
        if is_model and kind.config_class and not re.search("P[rR]e[tT]rained", name):
            found.append(name)
    return found


def small_config(model_class: Any, divisor: int) -> Any:
    """A config of the class, shrunk."""
    kind = model_class.config_class
    extra = OVERRIDES.get(model_class.__name__, OVERRIDES.get(kind.__name__, {}))
    values = shrunk(kind(**extra.get("before", {})).to_dict(), divisor)
    _update(values, extra.get("after", {}))
    return kind.from_dict(values)


def _update(values: Values, changes: Mapping[str, Any]) -> None:
    for name, value in changes.items():
        if isinstance(value, Mapping) and isinstance(values.get(name), dict):
            _update(values[name], value)
        else:
            values[name] = value


def build_small(name: str) -> Any:
    """A model of the class on the CPU, with random values in each of its tensors.

    Raises:
        ValueError: it cannot be built small; the message has the reason of each attempt.
    """
    reasons: list[str] = []
    model = next(candidates(name, reasons), None)
    if model is None:
        raise ValueError(" | ".join(dict.fromkeys(reasons)) or "no attempt")
    return model


def candidates(name: str, reasons: list[str]) -> Iterator[Any]:
    """Models of the class, one after the other; `reasons` gets why there are no others."""
    import torch
    import transformers

    model_class = getattr(transformers, name)
    for divisor in DIVISORS:
        try:
            with torch.device("meta"):
                model = model_class(small_config(model_class, divisor))
            parameters = sum(tensor.numel() for tensor in model.state_dict().values())
            if parameters > MAX_PARAMETERS:
                raise ValueError(f"{parameters:,} parameters")
            torch.manual_seed(0)
            model = model_class(small_config(model_class, divisor)).eval()
        except Exception as error:  # noqa: BLE001 - whatever a model's code raises
            reasons.append(f"/{divisor}: {type(error).__name__}: {error}"[:200])
            continue
        _fill(model)
        yield model


def _fill(model: Any) -> None:
    """Give each tensor values of its own: two that are equal could not be told apart."""
    import torch

    seen = set()
    with torch.no_grad():
        for tensor in model.state_dict().values():
            place = tensor.untyped_storage().data_ptr(), tensor.storage_offset()
            if tensor.is_floating_point() and place not in seen:
                seen.add(place)
                tensor.copy_(torch.randn(tensor.shape))


_ERNIE = {"hidden_size": 128, "num_attention_heads": 1, "num_key_value_heads": 1}

OVERRIDES: dict[str, dict[str, Values]] = {
    "AutoformerConfig": {"before": {"prediction_length": 8}},
    "InformerConfig": {"before": {"prediction_length": 8}},
    "TimeSeriesTransformerConfig": {"before": {"prediction_length": 8}},
    "NemotronConfig": {"before": {"num_key_value_heads": 8}},
    "ReformerConfig": {"before": {"is_decoder": True}},
    "EsmConfig": {"before": {"vocab_size": 33, "pad_token_id": 1, "mask_token_id": 32}},
    "DeepseekOcr2TextConfig": {"after": {"mlp_layer_types": ["dense", "sparse"] * 2}},
    "DeepseekOcr2Config": {"after": {"text_config": {"mlp_layer_types": ["dense", "sparse"] * 2}}},
    "Dots1Config": {
        "before": {
            "n_routed_experts": EXPERTS,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 64,
            "n_shared_experts": 1,
            "first_k_dense_replace": 1,
        }
    },
    "Ernie4_5_VLMoeTextConfig": {"after": _ERNIE},
    "Ernie4_5_VLMoeConfig": {"after": {"text_config": _ERNIE}},
    "Lfm2MoeConfig": {"after": {"layer_types": ["conv", "full_attention"] * 2}},
}
"""What a class or its config needs: `before` it is shrunk, and `after`."""
