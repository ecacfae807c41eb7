"""Weights in other files than those that are written: what a loader might take instead.

A repository or a folder may hold a model twice: as GGUF, as ONNX, for another framework, in the
layout of its authors. Whatever is neither written nor removed stays another model's.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping

from hubmerge.formatting import format_list

# In the format of Mistral's own library: servers such as vLLM prefer it to the shards.
_CONSOLIDATED = re.compile(r"consolidated(-\d{5}-of-\d{5})?\.safetensors(\.index\.json)?")

# What loads which files, the likeliest by mistake first; None if nothing does by itself.
_READERS: tuple[tuple[re.Pattern[str], str | None], ...] = (
    (re.compile(r"consolidated[^/]*\.(safetensors|pth|pt)"), "vLLM and mistral-inference"),
    (re.compile(r"[^/]+\.safetensors"), "servers that load every .safetensors file"),
    (re.compile(r"[^/]+\.(bin|pt|pth|ckpt)"), "loaders without safetensors"),
    (re.compile(r"(.+/)?[^/]+\.gguf"), "llama.cpp and Ollama"),
    (re.compile(r"(.+/)?[^/]+\.(onnx|onnx_data)|onnx/.+\.(bin|data)"), "ONNX Runtime"),
    (re.compile(r"(.+/)?openvino_[^/]+\.bin"), "OpenVINO"),
    (re.compile(r"tf_model[^/]*\.h5"), "TensorFlow"),
    (re.compile(r"flax_model[^/]*\.msgpack"), "Flax"),
    (
        re.compile(
            r"(.+/)?[^/]+\.(safetensors|bin|pt|pth|ckpt|h5|msgpack|ot|npz|ggml|tflite|mlmodel|pdparams"
            r"|nemo|distcp)"
        ),
        None,
    ),
)

# State of a trainer, never weights.
_NOT_WEIGHTS = re.compile(
    r"(.+/)?(training_args|optimizer|scheduler|scaler|rng_state|trainer_state)[^/]*"
    r"|\.eval_results/.*"
)


def consolidated(names: Iterable[str], kept: Collection[str]) -> list[str]:
    """Return the files of Mistral's format, which would be loaded in place of the new shards."""
    return [name for name in names if _CONSOLIDATED.fullmatch(name) and name not in kept]


def other_weights(names: Iterable[str], known: Collection[str]) -> dict[str, str | None]:
    """Return the files that look like weights, and who loads each; the likeliest first.

    Args:
        known: the files that are written or removed.
    """
    found: list[tuple[int, str, str | None]] = []
    for name in names:
        if name in known or _NOT_WEIGHTS.fullmatch(name):
            continue
        for rank, (pattern, reader) in enumerate(_READERS):
            if pattern.fullmatch(name):
                found.append((rank, name, reader))
                break
    found.sort(key=lambda file: file[:2])
    return {name: reader for _, name, reader in found}


def warn_of_others(place: str, others: Mapping[str, str | None]) -> str:
    """Return the warning about weights that stay in `place`."""
    groups: dict[str | None, list[str]] = {}
    for name, reader in others.items():
        groups.setdefault(reader, []).append(name)
    told = [
        format_list(names) + (f" (for {reader})" if reader else "")
        for reader, names in groups.items()
    ]
    return (
        f"{place} keeps other weights, which are not of this checkpoint: {'; '.join(told)}; "
        "remove them if they are of an older model"
    )
