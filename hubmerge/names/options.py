"""The options that correct what is decided about names."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from hubmerge.errors import UsageError
from hubmerge.options import Options, option

EXPERTS = ("auto", "fused", "split")
MODES = ("auto", "full", "lora")


@dataclass(frozen=True, kw_only=True)
class NamingOptions(Options):
    """How names, precision and layout are decided; every default leaves it to hubmerge.

    Attributes:
        base_model: a directory, or a repository in the local cache, with the names to match.
        model_key: the dotted key of the dict that holds the model, as in ``app.model``.
        ema: publish the EMA copy of the weights.
        include, exclude: regexes searched in checkpoint keys; with `include`, only keys that match
            one are the model's; keys that match one of `exclude` never are.
        rename: ``REGEX=>NEW`` rules, applied in order to each name after wrappers are stripped.
        experts: ``fused`` leaves stacked experts as stored, ``split`` gives each its own tensors.
        mode: ``lora`` publishes only the adapter, ``full`` only the model.
        adapter_config_path: the `adapter_config.json` of a PEFT run.
        like_base_shards: give each tensor the file that it has in the base model.
        keep_dtype: regexes of names that keep the dtype they are stored in.
        float32: names of the model that are float32 whatever the rest is cast to; a push records
            those that the base model's files told it, so that `verify` needs no base model.
        allow_overflow: let values become infinite in float16.
        check_model: ask transformers' own loader before anything is converted.
        trust_remote_code: run the model's own code from the assets directory for that check.
    """

    title = "Names, precision and layout"

    base_model: str | None = option(
        None, "Model that training started from: a Hub id or a directory.", metavar="MODEL"
    )
    model_key: str | None = option(
        None, "Key of the dict that holds the model, such as app.model.", metavar="KEY"
    )
    ema: bool = option(False, "Publish the EMA copy of the weights.")
    include: tuple[str, ...] = option(
        (), "Only use checkpoint keys that match; may be repeated.", metavar="REGEX"
    )
    exclude: tuple[str, ...] = option(
        (), "Leave out checkpoint keys that match; may be repeated.", metavar="REGEX"
    )
    rename: tuple[str, ...] = option(
        (),
        r"Rename tensors after wrappers are stripped, such as '^policy\.=>model.'; "
        "may be repeated.",
        metavar="REGEX=>NEW",
    )
    experts: str = option(
        "auto",
        "Stacked experts: as on the Hub, fused as stored, or split into one tensor each.",
        choices=EXPERTS,
    )
    mode: str = option(
        "auto", "Publish the full model or the PEFT adapter; auto looks for one.", choices=MODES
    )
    adapter_config_path: str | Path | None = option(
        None,
        "The adapter_config.json of a PEFT run.",
        metavar="FILE",
        if_unset="in the assets, or beside the checkpoint",
    )
    like_base_shards: bool = option(
        False, "Put each tensor into the file that it has in the base model."
    )
    keep_dtype: tuple[str, ...] = option(
        (), "Keep the stored dtype of tensors that match; may be repeated.", metavar="REGEX"
    )
    float32: tuple[str, ...] = ()
    allow_overflow: bool = option(False, "Allow values to become infinite in float16.")
    check_model: bool = option(
        True,
        "Check the names with transformers' own loader first.",
        if_unset="check",
    )
    trust_remote_code: bool = option(
        False, "Run the model's own code from the assets directory for that check."
    )

    def __post_init__(self) -> None:
        """Check regexes and rules too."""
        super().__post_init__()
        for name in ("include", "exclude", "keep_dtype"):
            for pattern in getattr(self, name):
                compile_regex(pattern, name)
        for rule in self.rename:
            parse_rename(rule)


DEFAULT_NAMING = NamingOptions()


def compile_regex(pattern: str, option: str) -> re.Pattern[str]:
    """Compile a user's regex; raise UsageError with the option's name if it is malformed."""
    try:
        return re.compile(pattern)
    except re.error as error:
        flag = "--" + option.replace("_", "-")
        raise UsageError(f"{flag} {pattern!r}: is not a regular expression: {error}") from None


def parse_rename(rule: str) -> tuple[re.Pattern[str], str]:
    r"""Parse ``REGEX=>NEW``, NEW with ``\1`` for groups; raise UsageError if it is malformed."""
    pattern, arrow, new = rule.partition("=>")
    if not arrow or not pattern:
        raise UsageError(
            f"--rename {rule!r}: is not REGEX=>NEW", r"Use a rule such as '^policy\.=>model.'."
        )
    regex = compile_regex(pattern, "rename")
    try:
        regex.sub(new, "")
        re.compile(f"{pattern}|").sub(new, "")  # matches, so that NEW is parsed too
    except (re.error, IndexError) as error:
        raise UsageError(f"--rename {rule!r}: {new!r} cannot be used: {error}") from None
    return regex, new


def matches_any(patterns: tuple[str, ...], text: str) -> bool:
    """Return whether one of these (checked) regexes matches somewhere in `text`."""
    return any(re.search(pattern, text) for pattern in patterns)
