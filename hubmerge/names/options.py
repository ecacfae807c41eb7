"""What a user may decide about names, where the tool would decide otherwise."""

from __future__ import annotations

import re
from dataclasses import dataclass, fields
from pathlib import Path
from types import NoneType

from hubmerge.errors import UsageError

EXPERTS = ("auto", "fused", "split")
MODES = ("auto", "full", "lora")

# What an option is that is neither a switch nor a list.
_TEXT_OR_NONE = (str, Path, NoneType)


@dataclass(frozen=True, slots=True)
class NamingOptions:
    """How names, precision and layout are decided; every default lets the tool decide.

    Attributes:
        model_key: the dotted key of the dict that holds the model, as in ``app.model``.
        include, exclude: regexes searched in checkpoint keys; with `include`, only keys that match
            one are the model's; keys that match one of `exclude` never are.
        rename: ``REGEX=>NEW`` rules, applied in order to each name after wrappers are stripped.
        ema: take the EMA copy of the model, if the checkpoint holds one.
        experts: ``fused`` leaves stacked experts as stored, ``split`` gives each its own tensors.
        mode: ``lora`` publishes only the adapter, ``full`` only the model.
        base_model: a folder, or a repository in the local cache, whose names are the truth.
        like_base_shards: give each tensor the file that it has in the base model.
        keep_dtype: regexes of names that keep the dtype they are stored in.
        float32: names of the model that are float32 whatever the rest is cast to; a push records
            those that the base model's files told it, so that `verify` needs no base model.
        check_model: ask transformers' own loader before anything is converted.
        trust_remote_code: run the model's own code from the assets folder for that check.
        allow_overflow: let values become infinite in float16.
        adapter_config_path: the `adapter_config.json` of a LoRA run.
    """

    model_key: str | None = None
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    rename: tuple[str, ...] = ()
    ema: bool = False
    experts: str = "auto"
    mode: str = "auto"
    base_model: str | None = None
    like_base_shards: bool = False
    keep_dtype: tuple[str, ...] = ()
    float32: tuple[str, ...] = ()
    check_model: bool = True
    trust_remote_code: bool = False
    allow_overflow: bool = False
    adapter_config_path: str | Path | None = None

    def __post_init__(self) -> None:
        """Raises UsageError where a value cannot be used."""
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(field.default, tuple):
                if type(value) not in (tuple, list) or any(type(text) is not str for text in value):
                    raise UsageError(f"{field.name} must be a tuple of texts, not {value!r}")
                object.__setattr__(self, field.name, tuple(value))
            elif not isinstance(value, bool if isinstance(field.default, bool) else _TEXT_OR_NONE):
                raise UsageError(f"{field.name} cannot be {value!r}")
        for option, value, known in (
            ("experts", self.experts, EXPERTS),
            ("mode", self.mode, MODES),
        ):
            if value not in known:
                raise UsageError(
                    f"unknown --{option} {value!r}", f"Use one of: {', '.join(known)}."
                )
        for option in ("include", "exclude", "keep_dtype"):
            for pattern in getattr(self, option):
                compile_regex(pattern, option)
        for rule in self.rename:
            parse_rename(rule)


DEFAULT_NAMING = NamingOptions()


def compile_regex(pattern: str, option: str) -> re.Pattern[str]:
    """Compile a user's regex; raises UsageError naming the option."""
    try:
        return re.compile(pattern)
    except re.error as error:
        flag = "--" + option.replace("_", "-")
        raise UsageError(f"{flag} {pattern!r} is not a regular expression: {error}") from None


def parse_rename(rule: str) -> tuple[re.Pattern[str], str]:
    r"""``REGEX=>NEW``, NEW with ``\1`` for groups; raises UsageError."""
    pattern, arrow, new = rule.partition("=>")
    if not arrow or not pattern:
        raise UsageError(
            f"--rename {rule!r} is not REGEX=>NEW", r"As in --rename '^policy\.=>model.'."
        )
    regex = compile_regex(pattern, "rename")
    try:
        regex.sub(new, "")
        re.compile(f"{pattern}|").sub(new, "")  # matches, so that NEW is parsed too
    except (re.error, IndexError) as error:
        raise UsageError(f"--rename {rule!r}: {new!r} cannot be used: {error}") from None
    return regex, new


def matches_any(patterns: tuple[str, ...], text: str) -> bool:
    """Does one of these (checked) regexes match somewhere in `text`?"""
    return any(re.search(pattern, text) for pattern in patterns)
