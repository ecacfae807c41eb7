"""The options that decide what is published, and how a commit of a push records them.

From the record `verify` makes the same plan again. Only what decides bytes and names is recorded,
and never a path of somebody's machine.
"""

from __future__ import annotations

import re
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, TypedDict

from hubmerge.errors import CheckpointError
from hubmerge.names.options import AUTOMATIC, NamingOptions
from hubmerge.plan import DEFAULT_SHARD_SIZE

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


class PlanOptions(TypedDict, total=False):
    """What decides the published files; the keyword arguments of `plan`, `convert` and `push`.

    Attributes:
        model_assets_dir: where config, tokenizer and the like are copied from.
        shard_size: bytes of tensors that one file holds at most (2,000,000,000).
        dtype: ``bfloat16`` (the default), ``float16``, ``float32``, or ``auto`` for as stored.
            Integers and bools are never cast.
        naming: where the user knows better than the tool which tensor is what.
        license: the model's license, for its card.
        card: a model card of the user's own; its text stays, missing metadata is filled in.
    """

    model_assets_dir: str | Path | None
    shard_size: int
    dtype: str
    naming: NamingOptions
    license: str | None
    card: str | Path | None


def record_options(options: PlanOptions) -> dict[str, Any]:
    """The options in a form for JSON."""
    naming = replace(options.get("naming", AUTOMATIC), adapter_config_path=None)
    base = naming.base_model
    if base is not None and (Path(base).exists() or not _HUB_ID.fullmatch(base)):
        naming = replace(naming, base_model=None)
    defaults = asdict(AUTOMATIC)
    return {
        "dtype": options.get("dtype", "bfloat16"),
        "shard_size": options.get("shard_size", DEFAULT_SHARD_SIZE),
        "naming": {k: v for k, v in asdict(naming).items() if v != defaults[k]},
    }


def recalled_options(recorded: dict[str, Any]) -> PlanOptions:
    """The options of a record; the loader's check is left out, since it changes no byte.

    Raises:
        CheckpointError: the record is damaged; whoever may write to the repository can do that.
    """
    try:
        naming: dict[str, Any] = {
            str(name): tuple(map(str, value)) if isinstance(value, list) else value
            for name, value in dict(recorded["naming"]).items()
        }
        # Code is run only for who asks for it here, whatever a record says.
        naming |= {"check_model": False, "trust_remote_code": False}
        return {
            "dtype": str(recorded["dtype"]),
            "shard_size": int(recorded["shard_size"]),
            "naming": NamingOptions(**naming),
        }
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"the record of the push in the commit is damaged: {error!r}",
            "Give the options that it was made with.",
        ) from None


def recalled_content_ids(recorded: dict[str, Any]) -> dict[str, list[str]]:
    """sha256 and git blob id of each small file that was pushed; errors as of the options."""
    try:
        return {str(k): [str(v) for v in ids] for k, ids in dict(recorded["files"]).items()}
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"the record of the push in the commit is damaged: {error!r}"
        ) from None
