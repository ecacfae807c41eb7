"""The options that decide what is published, and how a commit of a push records them.

From the record `verify` makes the same plan again. Only what decides bytes and names is recorded,
and never a path of somebody's machine.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, TypedDict, TypeVar, get_type_hints

from hubmerge.errors import CheckpointError, UsageError
from hubmerge.names.options import DEFAULT_NAMING, NamingOptions, matches_any
from hubmerge.names.reference import REPO_ID, is_on_hub
from hubmerge.planning.plan import DEFAULT_DTYPE, DEFAULT_SHARD_SIZE, Plan

T = TypeVar("T")

# Recorded in place of a base model's folder.
LOCAL_BASE = "a folder"


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


def check_options(options: PlanOptions) -> None:
    """Raises UsageError where a caller gave what is no option, or a value of another type."""
    for name in options:
        if name not in PlanOptions.__annotations__:
            raise UsageError(
                f"unknown option {name!r}",
                f"Known are: {', '.join(PlanOptions.__annotations__)}; what concerns names goes "
                "into naming=NamingOptions(...).",
            )
    kinds = get_type_hints(PlanOptions)
    for name, value in options.items():
        if not isinstance(value, kinds[name]) or isinstance(value, bool):
            wanted = getattr(kinds[name], "__name__", str(kinds[name]))
            raise UsageError(f"{name} must be {wanted}, not {value!r}")


def record_options(options: PlanOptions, plan: Plan) -> dict[str, Any]:
    """The options that `plan` was made with, in a form for JSON."""
    naming = replace(
        options.get("naming", DEFAULT_NAMING),
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
        "dtype": options.get("dtype", DEFAULT_DTYPE),
        "shard_size": options.get("shard_size", DEFAULT_SHARD_SIZE),
        "naming": {k: v for k, v in asdict(naming).items() if v != defaults[k]},
    }


def _kept_float32(plan: Plan, options: PlanOptions) -> list[str]:
    """Names that are float32 for another reason than the options; the config tells some again."""
    dtype = options.get("dtype", DEFAULT_DTYPE)
    kept_as_stored = options.get("naming", DEFAULT_NAMING).keep_dtype
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
    """The options of a record, and over them those that a user gives now.

    Whoever may write to the repository can write a record: code is run only for who asks for it
    here. The loader's check is left out, since it changes no byte.

    Raises:
        CheckpointError: the record is damaged.
    """
    try:
        naming = _recalled_naming(recorded["naming"]) | {
            name: value
            for name, value in asdict(given.get("naming", DEFAULT_NAMING)).items()
            if value != getattr(DEFAULT_NAMING, name)
        }
        made_with: PlanOptions = {
            "dtype": _text(recorded["dtype"]),
            "shard_size": _of_type(int, recorded["shard_size"]),
        }
        return {**made_with, **given, "naming": NamingOptions(**naming)}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _damaged(error) from None


def _recalled_naming(recorded: Any) -> dict[str, Any]:
    """The recorded fields, each of the type that it has."""
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
    """sha256 and git blob id of each small file that was pushed; errors as of the options."""
    try:
        return {
            _text(name): tuple(map(_text, ids)) for name, ids in dict(recorded["files"]).items()
        }
    except (KeyError, TypeError, ValueError) as error:
        raise _damaged(error) from None


def _damaged(error: Exception) -> CheckpointError:
    return CheckpointError(
        f"the record of the push in the commit is damaged: {error!r}",
        "Download the files and verify them with --save-dir, and the options of the push.",
    )
