"""The command's own options, and click's options made of all declared ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import MISSING, Field, dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

import click

from hubmerge.errors import UsageError
from hubmerge.names.options import NamingOptions
from hubmerge.options import Option, Options, declared_in, flag_of, option, parse_path
from hubmerge.planning.options import PlanOptions
from hubmerge.publish.options import DEFAULT_BRANCH, PushOptions, parse_token

F = TypeVar("F", bound=Callable[..., Any])
T = TypeVar("T", bound=Options)


@dataclass(frozen=True, kw_only=True)
class CheckpointOptions(Options):
    """Where the checkpoint is."""

    title = "Checkpoint"

    load_dir: Path = option(
        MISSING,
        "The checkpoint: its own directory, a step's, or a whole run's (its newest step).",
        metavar="DIR",
        parse=parse_path,
    )


@dataclass(frozen=True, kw_only=True)
class FolderOptions(Options):
    """What a push writes instead with --no-push."""

    title = "Write a directory instead"

    no_push: bool = option(
        False, "Write the directory that would be pushed, and push nothing.", is_input=False
    )
    save_dir: Path | None = option(
        None,
        "Directory to write with --no-push.",
        metavar="DIR",
        if_unset="LOAD_DIR/hf_ckpt",
        parse=parse_path,
        is_input=False,
    )
    overwrite: bool = option(
        False, "Replace a model that the directory already holds.", is_input=False
    )


@dataclass(frozen=True, kw_only=True)
class VerifyOptions(Options):
    """What `verify` compares with the checkpoint."""

    title = "What to verify"

    repo_id: str | None = option(
        None, "Repository that was pushed from the checkpoint.", metavar="ORG/NAME"
    )
    revision: str = option(DEFAULT_BRANCH, "Its branch, tag or commit.", metavar="REVISION")
    token: str | None = option(
        None,
        "Access token.",
        metavar="TOKEN",
        if_unset="HF_TOKEN or the stored login",
        parse=parse_token,
        is_secret=True,
    )
    save_dir: Path | None = option(
        None, "Directory that was written from the checkpoint.", metavar="DIR", parse=parse_path
    )


@dataclass(frozen=True, kw_only=True)
class JsonOptions(Options):
    """How a result is printed."""

    title = "Output"

    json: bool = option(False, "Print one JSON object on stdout.", is_input=False)


@dataclass(frozen=True, kw_only=True)
class OutputOptions(JsonOptions):
    """What is printed on the way."""

    quiet: bool = option(False, "No progress on stderr.", short="-q", is_input=False)


@dataclass(frozen=True, kw_only=True)
class PushOutputOptions(OutputOptions):
    """What a push prints, or whether it does anything else."""

    dry_run: bool = option(False, "Print the plan; write nothing.", is_input=False)


# All that a push can be told.
PUSH_GROUPS: tuple[type[Options], ...] = (
    CheckpointOptions,
    PushOptions,
    FolderOptions,
    PlanOptions,
    NamingOptions,
    PushOutputOptions,
)
VERIFY_GROUPS = (CheckpointOptions, VerifyOptions, PlanOptions, NamingOptions, OutputOptions)


class DeclaredOption(click.Option):
    """An option of the command, made of a declared field; the group checks its value."""

    def __init__(self, group: type[Options], declared: Field[Any], about: Option) -> None:
        self.title = group.title
        name, default = declared.name, declared.default
        is_flag, flag = isinstance(default, bool), flag_of(declared)
        if default is True:
            flag += flag.replace("--", "/--no-", 1)
        shown = about.if_unset or (default if isinstance(default, str) else None)
        super().__init__(
            [name, *filter(None, [about.short]), flag],
            help=about.help + (f"  [default: {shown}]" if shown else ""),
            metavar=f"[{'|'.join(about.choices)}]" if about.choices else about.metavar,
            is_flag=is_flag,
            required=default is MISSING and name == "load_dir",
            multiple=isinstance(default, tuple),
            type=None if is_flag else click.UNPROCESSED,
        )


def options_of(*groups: type[Options]) -> Callable[[F], F]:
    """Return a decorator that adds the options of some groups to a command."""

    def add(command: F) -> F:
        parameters = [
            DeclaredOption(group, declared, about)
            for group in groups
            for declared, about in declared_in(group)
        ]
        command.__click_params__ = parameters[::-1]  # type: ignore[attr-defined]
        return command

    return add


def _is_given(context: click.Context, name: str) -> bool:
    sources = click.core.ParameterSource
    return context.get_parameter_source(name) in (sources.COMMANDLINE, sources.ENVIRONMENT)


def given(context: click.Context, group: type[T], **more: Any) -> T:
    """Return the options of a group that the user gave, checked.

    Args:
        more: values of the group that are made otherwise.
    """
    names = [declared.name for declared in fields(group) if _is_given(context, declared.name)]
    return group(**{name: context.params[name] for name in names}, **more)


def given_plan(context: click.Context) -> PlanOptions:
    """Return what the user decided about the published files, checked."""
    naming = given(context, NamingOptions)
    return given(context, PlanOptions, **({"naming": naming} if naming.given else {}))


def given_folder(context: click.Context) -> FolderOptions:
    """Return what a push with --no-push writes.

    Raises:
        UsageError: options that exclude or need each other.
    """
    folder = given(context, FolderOptions)
    if not folder.no_push and folder.given:
        raise UsageError("--save-dir and --overwrite need --no-push")
    if folder.no_push:
        for declared in fields(PushOptions):
            # The card names the repository.
            if declared.name != "repo_id" and _is_given(context, declared.name):
                raise UsageError(f"{flag_of(declared)} cannot be used with --no-push")
    return folder


def given_push(context: click.Context) -> PushOptions:
    """Return where to publish, checked."""
    if context.params["repo_id"] is None:
        raise UsageError("--repo-id is missing", "Give ORG/NAME, or --no-push to stay local.")
    return given(context, PushOptions)
