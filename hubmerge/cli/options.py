"""The options of the command, in groups, and how they become arguments of the library."""

from __future__ import annotations

import re
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any, TypeVar

import click

from hubmerge.errors import UsageError

F = TypeVar("F", bound=Callable[..., Any])

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]i?B|B)?", re.IGNORECASE)
_UNITS = {
    "b": 1,
    **{f"{p}b": 1000**i for i, p in enumerate("kmgt", start=1)},
    **{f"{p}ib": 1024**i for i, p in enumerate("kmgt", start=1)},
}


class Size(click.ParamType[int]):
    """A number of bytes: 2000000000, 2GB, 500MB, 4GiB."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        match = _SIZE.fullmatch(str(value).strip())
        if not match:
            self.fail(f"{value!r} is not a size such as 2000000000, 2GB, 500MB or 4GiB", param, ctx)
        size = int(Decimal(match[1]) * _UNITS[(match[2] or "B").lower()])
        if size < 1:
            self.fail(f"{value!r} is less than one byte", param, ctx)
        return size


class _Path(click.Path):
    """A path; a variable that is not set must not mean the current folder."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not value:
            self.fail("is empty", param, ctx)
        return super().convert(value, param, ctx)


PATH = _Path(path_type=Path)

load_dir_option = click.option(
    "--load-dir",
    required=True,
    type=PATH,
    help="The checkpoint: its own folder, a step's, or a whole run's (its newest step).",
)
json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON object on stdout."
)

_WHERE = (
    click.option("--repo-id", help="The repository, ORG/NAME; created if missing."),
    click.option("--private", is_flag=True, help="Create the repository private."),
    click.option(
        "--revision", default="main", show_default=True, help="The branch; created if missing."
    ),
    click.option("--create-pr", is_flag=True, help="Open a pull request instead."),
    click.option("--tag", help="Tag the commit."),
    click.option("--commit-message", help="Its first line."),
    click.option("--commit-description", help="Its further text."),
    click.option("--token", help="A token; by default the stored login or HF_TOKEN."),
    click.option("--staging-dir", type=PATH, help="Where shards stand until they are uploaded."),
    click.option(
        "--max-disk",
        type=Size(),
        help="Bytes staged on this machine at a time.  [default: two shards for each process]",
    ),
    click.option(
        "--clean",
        is_flag=True,
        help="Remove staging branches of other runs, also of runs that are still working.",
    ),
)
_LOCAL = (
    click.option(
        "--no-push", is_flag=True, help="Write the folder that would be pushed, and push nothing."
    ),
    click.option(
        "--save-dir", type=PATH, help="The folder of --no-push.  [default: LOAD_DIR/hf_ckpt]"
    ),
    click.option(
        "--overwrite", is_flag=True, help="Replace a model that the folder already holds."
    ),
)
_WHAT = (
    click.option(
        "--model-assets-dir", type=PATH, help="Where config, tokenizer and the like come from."
    ),
    click.option(
        "--shard-size",
        type=Size(),
        default="2GB",
        show_default=True,
        help="Bytes of tensors in one file at most: 2000000000, 2GB, 500MB, 4GiB.",
    ),
    click.option(
        "--dtype",
        type=click.Choice(["bfloat16", "float16", "float32", "auto"]),
        default="bfloat16",
        show_default=True,
        help="What floating tensors become; auto leaves them as stored.",
    ),
    click.option("--license", help="The model's license, for its card."),
    click.option("--card", type=PATH, help="A model card of your own; its text stays."),
)
_NAMES = (
    click.option("--base-model", help="The model that was trained from: a Hub id or a folder."),
    click.option("--model-key", help="The dict that holds the model, as in app.model."),
    click.option("--include", multiple=True, help="Regex: only checkpoint keys that match."),
    click.option("--exclude", multiple=True, help="Regex: leave out checkpoint keys that match."),
    click.option(
        "--rename",
        multiple=True,
        metavar="REGEX=>NEW",
        help="Change names, after wrappers are stripped; may be given again.",
    ),
    click.option(
        "--experts",
        type=click.Choice(["auto", "fused", "split"]),
        default="auto",
        show_default=True,
        help="Stacked experts: as on the Hub, as stored, or one tensor for each.",
    ),
    click.option(
        "--mode",
        type=click.Choice(["auto", "full", "lora"]),
        default="auto",
        show_default=True,
        help="Publish the model or the LoRA adapter; auto looks for one.",
    ),
    click.option(
        "--adapter-config-path",
        type=PATH,
        help="The adapter_config.json of a LoRA run.  [default: in the assets, or beside the "
        "checkpoint]",
    ),
    click.option(
        "--like-base-shards", is_flag=True, help="Each tensor in the file it has in the base model."
    ),
    click.option("--keep-dtype", multiple=True, help="Regex: names that stay as they are stored."),
    click.option("--allow-overflow", is_flag=True, help="Let float16 values become infinite."),
    click.option(
        "--check-model/--no-check-model",
        default=True,
        help="Ask transformers' loader for its verdict on the names first.  [default: check]",
    ),
    click.option(
        "--trust-remote-code",
        is_flag=True,
        help="Run the model's own code from the assets folder, to learn its names.",
    ),
)


def push_options(command: F) -> F:
    """Where to publish, or to write instead."""
    return _add(command, _WHERE + _LOCAL)


def convert_options(command: F) -> F:
    """What is published."""
    return _add(command, _WHAT + _NAMES)


def _add(command: F, options: tuple[Callable[[F], F], ...]) -> F:
    for option in reversed(options):
        command = option(command)
    return command


def split_options(options: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The command's options as arguments of `api.push` alone, and of `api.plan`.

    Raises:
        UsageError: options that exclude or need each other.
    """
    from hubmerge.names.options import NamingOptions

    if not options["no_push"] and options["repo_id"] is None:
        raise UsageError("--repo-id is missing", "Give ORG/NAME, or --no-push to stay local.")
    if not options["no_push"] and (options["save_dir"] or options["overwrite"]):
        raise UsageError("--save-dir and --overwrite need --no-push")
    if options["no_push"]:
        for name in _names(_WHERE):
            # The card names the repository.
            if name != "repo_id" and options[name] not in (None, False, "main"):
                raise UsageError(f"--{name.replace('_', '-')} cannot be used with --no-push")
    where = {name: options[name] for name in _names(_WHERE)}
    what = {name: options[name] for name in _names(_WHAT)}
    what["naming"] = NamingOptions(**{name: options[name] for name in _names(_NAMES)})
    return where, what


def given_options(context: click.Context) -> dict[str, Any]:
    """Of the options that decide what is published, those that the user gave."""
    from hubmerge.names.options import NamingOptions

    def is_given(name: str) -> bool:
        return context.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE

    what = {name: context.params[name] for name in _names(_WHAT) if is_given(name)}
    naming = {name: context.params[name] for name in _names(_NAMES)}
    return what | {"naming": NamingOptions(**naming)}


def _names(options: tuple[Callable[..., Any], ...]) -> list[str]:
    """The parameter names of some options."""

    def nothing() -> None:
        pass

    _add(nothing, options)
    return [str(parameter.name) for parameter in nothing.__click_params__]  # type: ignore[attr-defined]
