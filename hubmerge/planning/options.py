"""The options that decide what is published."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from hubmerge.names.options import DEFAULT_NAMING, NamingOptions
from hubmerge.options import Options, option, parse_size

DEFAULT_SHARD_SIZE = 2_000_000_000
DEFAULT_DTYPE = "bfloat16"
DTYPES = ("bfloat16", "float16", "float32", "auto")

_ALIASES = {"bf16": "bfloat16", "fp16": "float16", "half": "float16", "fp32": "float32"}


@runtime_checkable
class TorchDtype(Protocol):
    """A `torch.dtype`, without an import of torch."""

    @property
    def is_floating_point(self) -> bool: ...


def parse_dtype(value: Any, flag: str) -> str:
    """Return the name of a dtype that is given as text or as torch's own."""
    if not isinstance(value, (str, TorchDtype)):
        raise TypeError(f"{flag} must be a torch.dtype, or a text such as 'bfloat16'")
    name = str(value).removeprefix("torch.")
    return _ALIASES.get(name, name)


@dataclass(frozen=True, kw_only=True)
class PlanOptions(Options):
    """What decides the published files; keyword arguments of `plan`, `convert` and `push`.

    Attributes:
        model_assets_dir: directory that config, tokenizer and the like are copied from.
        shard_size: maximum bytes of tensors in one file; None if not given (2 GB).
        dtype: ``bfloat16``, ``float16``, ``float32``, or ``auto`` for as stored; None if not given
            (bfloat16). Integers and bools are never cast.
        license: the model's license, for its card.
        card: a model card to use; missing metadata is filled in.
        eval_results: a file of evaluation results to publish with the model.
        no_config: publish without a config.
        naming: corrections to what is decided about names, precision and layout.
    """

    title = "What to publish"

    model_assets_dir: str | Path | None = option(
        None, "Directory to copy config, tokenizer and the like from.", metavar="DIR"
    )
    shard_size: int | None = option(
        None,
        "Maximum size of the tensors in one file, such as 5GB or 4GiB.",
        metavar="SIZE",
        if_unset="2GB",
        parse=parse_size,
    )
    dtype: str | None = option(
        None,
        "Cast floating tensors to this dtype; auto keeps them as stored.",
        choices=DTYPES,
        if_unset=DEFAULT_DTYPE,
        parse=parse_dtype,
    )
    license: str | None = option(
        None, "The model's license, for its card, such as apache-2.0.", metavar="ID"
    )
    card: str | Path | None = option(
        None, "Use this model card; missing metadata is filled in.", metavar="FILE"
    )
    eval_results: str | Path | None = option(
        None, "Publish these evaluation results in the same commit (YAML).", metavar="FILE"
    )
    no_config: bool = option(False, "Publish without a config.json; loaders will need one.")
    naming: NamingOptions = DEFAULT_NAMING


DEFAULT_PLAN = PlanOptions()
