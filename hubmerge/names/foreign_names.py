"""Trainers with names of their own, by what only they call things.

Such names are no model's of transformers, and without a config nothing else would tell.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator

from hubmerge.names.module_names import is_module

# By trainer: what only its names have.
_TELLTALES = {
    "torchtune": r"layers\.\d+\.(?:attn\.(?:\w_proj|output_proj)|mlp\.w[123]|\w+_norm\.scale)\b",
    "Megatron": r"layers\.(?:\d+\.)?.*\blinear_(?:qkv|proj|fc[12])\.",
    "torchtitan": r"layers\.\d+\.(?:attention\.(?:qkv_linear\.)?w[qkvo]|feed_forward\.w[123])\.",
    "OLMo-core": r"blocks\.\d+\.(?:attention\.w_(?:q|k|v|out)|feed_forward\.w[123])\.",
    "fms": r"layers\.\d+\.(?:attn\.(?:in_proj|dense)\.|ff_sub_layer\.)",
    "LitGPT": r"h\.\d+\.(?:attn\.(?:attn|qkv|proj)|mlp\.fc(?:_[12])?|norm_[12])\.",
    "Modalities": r"h\.\d+\.attn\.[qkv]_attn\.",
    "prime-rl": r"layers\.\d+\.mlp\.(?:router\.gate|experts\.w[123])(?:\.|$)",
    "PEFT": r"\.(?:base_layer|ia3_l|lora_\w+|vera_lambda_\w|hada_\w+|lokr_\w+|oft_r)(?:\.|$)",
}


def foreign_names(names: Collection[str]) -> Iterator[str]:
    """Warn of names that no model of transformers has, in one sentence for each trainer."""
    for trainer, pattern in _TELLTALES.items():
        example = next(filter(re.compile(pattern).search, names), None)
        if example is not None:
            yield (
                f"these are names of {trainer}, which no model of transformers has (for example "
                f"{example!r}): export the model with {trainer} itself, or map them with --rename"
            )
            return
    strange = [name for name in names if not is_module(name.partition(".")[0])]
    if strange:
        yield (
            f"{len(strange)} of {len(names)} names begin with a module that no model of "
            f"transformers has (for example {strange[0]!r}): check them with --dry-run, and "
            "correct them with --rename"
        )
