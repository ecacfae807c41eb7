"""How the options that decide what is published are recorded with it.

From the record `verify` makes the same plan again. Only what decides bytes and names is recorded,
and never a path of somebody's machine.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any, TypeVar

from hubmerge.errors import CheckpointError, UsageError
from hubmerge.names.options import DEFAULT_NAMING, NamingOptions, matches_any
from hubmerge.names.reference import REPO_ID, is_on_hub
from hubmerge.planning.options import DEFAULT_DTYPE, DEFAULT_SHARD_SIZE, PlanOptions
from hubmerge.planning.plan import Plan

T = TypeVar("T")

# Recorded in place of a base model's folder.
LOCAL_BASE = "a folder"


def record_options(options: PlanOptions, plan: Plan) -> dict[str, Any]:
    """Return the options that `plan` was made with, in a form for JSON."""
    naming = replace(
        options.naming,
        adapter_config_path=None,
        float32=tuple(_kept_float32(plan, options)),
    )
    base = naming.base_model
    is_local = base is not None and not is_on_hub(base)
    if is_local:
        naming = replace(naming, base_model=None)
    defaults = asdict(DEFAULT_NAMING)
    return {
        **({"base": LOCAL_BASE} if is_local else {}),
        "dtype": options.dtype,
        "shard_size": options.shard_size or DEFAULT_SHARD_SIZE,
        "naming": {k: v for k, v in asdict(naming).items() if v != defaults[k]},
    }


def _kept_float32(plan: Plan, options: PlanOptions) -> list[str]:
    """Return names that are float32 for another reason than the options.

    The config tells some of them again.
    """
    dtype = options.dtype or DEFAULT_DTYPE
    kept_as_stored = options.naming.keep_dtype
    return [
        tensor.name
        for shard in plan.shards
        for tensor in shard.tensors
        if tensor.source_dtype.kind == "float"
        and tensor.dtype.name == "float32"
        and dtype != "float32"
        and (dtype != "auto" or tensor.is_cast)
        and not matches_any(kept_as_stored, tensor.name)
    ]


def recalled_options(recorded: dict[str, Any], given: PlanOptions) -> PlanOptions:
    """Return the options of a record, and over them those that a user gives now.

    Anyone with write access to the repository can forge a record: the model's code is run only if
    the user asks for it here. The loader's check is left out, since it changes no byte.

    Raises:
        CheckpointError: the record is damaged.
    """
    try:
        naming = _recalled_naming(recorded["naming"]) | given.naming.given_values()
        made_with: dict[str, Any] = {
            "dtype": None if recorded["dtype"] is None else _text(recorded["dtype"]),
            "shard_size": _of_type(int, recorded["shard_size"]),
        }
        values = made_with | given.given_values() | {"naming": NamingOptions(**naming)}
        return PlanOptions(**values)
    except (UsageError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise _damaged(error) from None


def _recalled_naming(recorded: Any) -> dict[str, Any]:
    """Return the recorded fields, each checked to be of its type."""
    naming: dict[str, Any] = {}
    for name, value in dict(recorded).items():
        default = getattr(DEFAULT_NAMING, name)
        naming[name] = (
            tuple(map(_text, _of_type(list, value)))
            if isinstance(default, tuple)
            else _of_type(bool if isinstance(default, bool) else str, value)
        )
    if not REPO_ID.fullmatch(naming.get("base_model", "a/b")):
        raise ValueError("base_model")
    for never_recorded in ("trust_remote_code", "adapter_config_path"):
        naming.pop(never_recorded, None)
    return naming | {"check_model": False}


def _of_type(kind: type[T], value: Any) -> T:
    if type(value) is not kind:
        raise TypeError(f"{value!r} is no {kind.__name__}"[:100])
    return value


def _text(value: Any) -> str:
    return _of_type(str, value)


def recalled_content_ids(recorded: dict[str, Any]) -> dict[str, tuple[str, ...]]:
    """Return sha256 and git blob id of each small file that was pushed.

    Raises:
        CheckpointError: the record is damaged.
    """
    try:
        return {
            _text(name): tuple(map(_text, ids)) for name, ids in dict(recorded["files"]).items()
        }
    except (KeyError, TypeError, ValueError) as error:
        raise _damaged(error) from None


def _damaged(error: Exception) -> CheckpointError:
    return CheckpointError(
        f"the record of how the files were made is damaged: {error!r}",
        "Download the files and verify them with --save-dir and the options of the push.",
    )
