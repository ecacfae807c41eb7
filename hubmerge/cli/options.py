"""The command's own options, and click's options made of all declared ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import MISSING, Field, dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

import click
import click.shell_completion

from hubmerge.errors import UsageError
from hubmerge.names.options import NamingOptions
from hubmerge.options import Option, Options, declared_in, flag_of, option, parse_path
from hubmerge.planning.options import PlanOptions
from hubmerge.publish.options import DEFAULT_BRANCH, PushOptions, parse_token

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
class StagedOptions(Options):
    """Whose staging branches to list, and which of them to remove."""

    title = "Staged pushes"

    repo_id: str = option(MISSING, "Repository to look at.", metavar="ORG/NAME")
    token: str | None = option(
        None,
        "Access token.",
        metavar="TOKEN",
        if_unset="HF_TOKEN or the stored login",
        parse=parse_token,
        is_secret=True,
    )
    remove: tuple[str, ...] = option(
        (),
        "Remove this staging branch; a push that still uses it fails; may be repeated.",
        metavar="BRANCH",
    )


@dataclass(frozen=True, kw_only=True)
class OutputOptions(Options):
    """What is printed."""

    title = "Output"

    json: bool = option(
        False, "Print the result, or the error, as one JSON object on stdout.", is_input=False
    )
    quiet: bool = option(
        False,
        "Print the url or path alone, and only warnings and errors on stderr.",
        short="-q",
        is_input=False,
    )
    verbose: bool = option(
        False, "Keep each step as a line with its time.", short="-v", is_input=False
    )


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
CHECK_GROUPS = (PushOptions, CheckpointOptions, PlanOptions, NamingOptions, OutputOptions)
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
            multiple=isinstance(default, tuple),
            type=None if is_flag else click.UNPROCESSED,
            envvar=f"HUBMERGE_{name.upper()}",
            shell_complete=self._complete,
        )
        self._choices, self._metavar = about.choices, about.metavar

    def _complete(
        self, _context: click.Context, _parameter: click.Parameter, incomplete: str
    ) -> list[click.shell_completion.CompletionItem]:
        item = click.shell_completion.CompletionItem
        if self._metavar in ("DIR", "FILE"):
            return [item(incomplete, type=self._metavar.lower())]
        return [item(choice) for choice in self._choices if choice.startswith(incomplete)]

    def value_from_envvar(self, ctx: click.Context) -> Any:
        """Return what a variable says; of a list, one entry a line."""
        if self.multiple:
            value = self.resolve_envvar_value(ctx) or ""
            return tuple(filter(None, map(str.strip, value.splitlines()))) or None
        return super().value_from_envvar(ctx)


class DeclaredCommand(click.Command):
    """A command with its options in groups, and examples."""

    def __init__(self, *args: Any, examples: Sequence[str], **more: Any) -> None:
        super().__init__(*args, **more)
        self._examples = examples

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the groups, each under its title."""
        groups: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None:
                groups.setdefault(getattr(parameter, "title", "Output"), []).append(record)
        for title, records in groups.items():
            with formatter.section(title):
                formatter.write_dl(records)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the examples."""
        del ctx
        with formatter.section("Examples"):
            for example in self._examples:
                formatter.write(f"{' ' * formatter.current_indent}{example}\n")
        formatter.write_paragraph()
        formatter.write_text(
            "An option can also be given by a variable: HUBMERGE_SHARD_SIZE=5GB means "
            "--shard-size 5GB."
        )


def declared_command(
    parent: click.Group,
    groups: Sequence[type[Options]],
    *,
    positional: tuple[str, ...],
    examples: Sequence[str],
) -> Callable[[Callable[[click.Context], None]], click.Command]:
    """Return a decorator that makes a command of a function, with the options of some groups.

    Args:
        positional: options that can be given without their flag, in this order.
    """

    def make(function: Callable[[click.Context], None]) -> click.Command:
        def run(**params: Any) -> None:
            context = click.get_current_context()
            _place(context, positional, params["positional"])
            function(context)

        words = " ".join(f"[{name.upper()}]" for name in positional)
        parameters: list[click.Parameter] = [
            click.Argument(["positional"], nargs=-1, metavar=words, type=click.UNPROCESSED)
        ]
        parameters += [
            DeclaredOption(group, declared, about)
            for group in groups
            for declared, about in declared_in(group)
        ]
        made = DeclaredCommand(
            function.__name__,
            callback=run,
            params=parameters,
            help=function.__doc__,
            examples=examples,
        )
        parent.add_command(made)
        return made

    return make


def _place(context: click.Context, names: tuple[str, ...], values: tuple[str, ...]) -> None:
    """Make positional values those of their options.

    Raises:
        UsageError: one was given as an option too, or is one too many, or the first is missing.
    """
    if len(values) > len(names):
        raise UsageError(f"unexpected argument {values[len(names)]!r}")
    for name, value in zip(names, values, strict=False):
        if context.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE:
            flag = "--" + name.replace("_", "-")
            raise UsageError(f"{flag} {context.params[name]!r}: was given as {value!r} too")
        context.params[name] = value
        context.set_parameter_source(name, click.core.ParameterSource.COMMANDLINE)
    if not _is_given(context, names[0]):
        flag = "--" + names[0].replace("_", "-")
        raise UsageError(f"{flag} is missing", f"Give it, or {names[0].upper()} first.")


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
            # A variable may be there for other commands.
            source = context.get_parameter_source(declared.name)
            if declared.name != "repo_id" and source is click.core.ParameterSource.COMMANDLINE:
                raise UsageError(f"{flag_of(declared)} cannot be used with --no-push")
    return folder


def given_push(context: click.Context) -> PushOptions:
    """Return where to publish, checked."""
    if not context.params["repo_id"]:
        raise UsageError("--repo-id is missing", "Give ORG/NAME, or --no-push to stay local.")
    return given(context, PushOptions)
