"""The command: parse, call the library, print. The only place that prints or exits.

Results go to stdout, everything else to stderr, as with the `hf` command.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import traceback
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NoReturn

import click

from hubmerge.cli.options import (
    CHECK_GROUPS,
    PUSH_GROUPS,
    VERIFY_GROUPS,
    CheckpointOptions,
    OutputOptions,
    PushOutputOptions,
    StagedOptions,
    VerifyOptions,
    declared_command,
    given,
    given_folder,
    given_plan,
    given_push,
)
from hubmerge.cli.signals import ended_by_signals
from hubmerge.errors import CheckpointError, HubmergeError, MismatchError, UsageError, printable
from hubmerge.progress import SILENT
from hubmerge.system.ranks import SINGLE_PROCESS, Ranks, current_ranks

# For the commands that change nothing.
_STARTS_AGAIN = "nothing was changed, and the same command can be run again"


class _Run:
    """The ranks that run this command: one, unless a push finds others."""

    ranks: Ranks = SINGLE_PROCESS


def main() -> NoReturn:
    """Run the command and exit with the code that `hubmerge.errors` documents."""
    # Blocks are cast in a single thread; idle threads of torch's pool would only waste memory.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    _repair_streams()
    run = _Run()

    def say(number: int) -> None:
        word = "interrupted" if number == signal.SIGINT else "terminated"
        resumes = "the same command resumes where this run ended"
        _say(run.ranks, f"{word}; {resumes if sys.argv[1:2] == ['push'] else _STARTS_AGAIN}")

    with ended_by_signals(say):
        try:
            code = cli.main(standalone_mode=False, prog_name="hubmerge", obj=run) or 0
            sys.stdout.flush()
        except HubmergeError as error:
            rank_0_says_it = run.ranks.fail(error)
            if os.environ.get("HF_DEBUG"):
                traceback.print_exc()
            _say_error(run.ranks if rank_0_says_it else SINGLE_PROCESS, error)
            code = error.exit_code
        except click.ClickException as error:
            usage = UsageError(error.format_message(), _help_of(error))
            _say_error(run.ranks, usage)
            code = usage.exit_code
        except click.Abort:
            raise KeyboardInterrupt from None
        except OSError as error:  # not from the library, so from writing our own output
            if not isinstance(error, BrokenPipeError):  # the reader has gone
                _say(run.ranks, f"the output cannot be written: {error.strerror}")
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            code = HubmergeError.exit_code
        run.ranks.reported()
    sys.exit(code)


def _help_of(error: click.ClickException) -> str:
    context = getattr(error, "ctx", None)
    return f"Try '{context.command_path} --help'." if context is not None else ""


def _repair_streams() -> None:
    """Discard output to closed streams, and escape characters that the encoding lacks."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 - for the whole process
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def _print_result(result: Any, output: OutputOptions) -> None:
    """Print a result on stdout, with control characters escaped."""
    from hubmerge.cli import text

    shown = text.as_json if output.json else text.as_line if output.quiet else text.as_text
    click.echo(printable(shown(result)))


def _say(ranks: Ranks, message: str, hint: str = "") -> None:
    if ranks.rank == 0:
        click.echo(f"Error: {message}", err=True)
        if hint:
            click.echo(f"Hint: {hint}", err=True)


def _say_error(ranks: Ranks, error: HubmergeError) -> None:
    """Print an error on stderr and, with --json, as JSON on stdout."""
    _say(ranks, str(error), error.hint)
    if ranks.rank == 0 and "--json" in sys.argv[1:]:
        about = {"type": type(error).__name__, "message": str(error), "hint": error.hint}
        click.echo(json.dumps({"error": about | {"exit_code": error.exit_code}}))


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="hubmerge", message="%(prog)s %(version)s")
def cli() -> None:
    """A finished distributed training run becomes a Hugging Face repository.

    Exit codes: 0 done, 1 failure, 2 usage, 3 bad or incomplete checkpoint, 4 unsafe input refused,
    5 temporary (rerun resumes), 6 token or permission, 7 not enough disk or memory, 8 verification
    mismatch, 9 target changed, 130 interrupted, 143 terminated.
    """


@declared_command(
    cli,
    PUSH_GROUPS,
    positional=("load_dir", "repo_id"),
    examples=(
        "hubmerge push runs/my-run my-org/my-model --model-assets-dir base-model",
        "hubmerge push runs/my-run my-org/my-model --dtype float16 --shard-size 5GB --private",
        "hubmerge push runs/my-run --no-push --save-dir my-model",
    ),
)
def push(context: click.Context) -> None:
    """Convert a distributed checkpoint and publish it on the Hub, in one atomic commit.

    With --no-push, write the directory that would have been published.
    """
    output, folder = given(context, PushOutputOptions), given_folder(context)
    load_dir = given(context, CheckpointOptions).load_dir
    where = None if folder.no_push else given_push(context)
    what = given_plan(context).given_values()
    repo_id = context.params["repo_id"]
    run: _Run = context.obj
    ranks = run.ranks = current_ranks()
    with _bars(output, ranks, uploads=where is not None) as bars:
        from hubmerge import api

        result: Any
        if output.dry_run:
            result = api.preview(
                load_dir,
                given_plan(context),
                where,
                repo_id=repo_id,
                progress=bars,
                ranks=ranks,
            )
        elif where is None:
            result = api.convert(
                load_dir,
                folder.save_dir,
                repo_id=repo_id,
                overwrite=folder.overwrite,
                progress=bars,
                ranks=ranks,
                **what,
            )
        else:
            result = api.push(load_dir, progress=bars, ranks=ranks, **where.given_values(), **what)
    if ranks.rank == 0:
        _print_result(result, output)


@declared_command(
    cli,
    VERIFY_GROUPS,
    positional=("load_dir", "repo_id"),
    examples=(
        "hubmerge verify runs/my-run my-org/my-model",
        "hubmerge verify runs/my-run --save-dir my-model",
    ),
)
def verify(context: click.Context) -> None:
    """Verify a repository or a directory against its checkpoint; exit 8 if they differ.

    Nothing is downloaded but a repository's listing and config. A repository's own record says with
    which options it was made; a directory needs the options that it was made with.
    """
    output, where = given(context, OutputOptions), given(context, VerifyOptions)
    load_dir, what = given(context, CheckpointOptions).load_dir, given_plan(context)
    with _bars(output, words=("checking", "checked")) as bars:
        from hubmerge import api

        result = api.verify(load_dir, progress=bars, **where.given_values(), **what.given_values())
        for warning in result.warnings if where.repo_id is not None else ():
            bars.warn(warning)
    _print_result(result, output)
    if result.differences:
        context.exit(MismatchError.exit_code)


@declared_command(
    cli,
    (CheckpointOptions, OutputOptions),
    positional=("load_dir",),
    examples=("hubmerge inspect runs/my-run",),
)
def inspect(context: click.Context) -> None:
    """Show what a checkpoint holds; exit 3 if a data file is missing or too short."""
    load_dir, output = given(context, CheckpointOptions).load_dir, given(context, OutputOptions)
    with _bars(output) as bars:
        bars.status("Reading checkpoint…")
        from hubmerge import api

        result = api.inspect(load_dir)
    _print_result(result, output)
    if result.damaged:
        raise CheckpointError("; ".join(result.damaged))


@declared_command(
    cli,
    CHECK_GROUPS,
    positional=("repo_id", "load_dir"),
    examples=(
        "hubmerge check my-org/my-model --private",
        "hubmerge check my-org/my-model runs/my-run --model-assets-dir base-model",
    ),
)
def check(context: click.Context) -> None:
    """Check that a push would work, and change nothing; the exit code is that of the push.

    Without a checkpoint, token and repository are checked: in the first minute of a training job
    rather than in its last.
    """
    output, where = given(context, OutputOptions), given_push(context)
    with _bars(output) as bars:
        from hubmerge import api

        result: Any
        if context.params["load_dir"] is None:
            bars.status(f"Checking {where.repo_id}…")
            result = api.check(where)
        else:
            load_dir = given(context, CheckpointOptions).load_dir
            result = api.preview(load_dir, given_plan(context), where, progress=bars)
    _print_result(result, output)


@declared_command(
    cli,
    (StagedOptions, OutputOptions),
    positional=("repo_id",),
    examples=(
        "hubmerge staged my-org/my-model",
        "hubmerge staged my-org/my-model --remove hubmerge/0123456789abcdef",
    ),
)
def staged(context: click.Context) -> None:
    """List the staging branches that unfinished pushes left, and remove those given."""
    output, what = given(context, OutputOptions), given(context, StagedOptions)
    with _bars(output) as bars:
        bars.status(f"Reading {what.repo_id}…")
        from hubmerge import api

        result = api.staged(what.repo_id, what.token, what.remove)
    _print_result(result, output)


def _bars(output: OutputOptions, ranks: Ranks = SINGLE_PROCESS, **about: Any) -> Any:
    """Return the progress bars of rank 0, which show something before slow imports begin."""
    if ranks.rank != 0:
        return nullcontext(SILENT)
    from hubmerge.progress_bars import Bars

    bars = Bars(quiet=output.quiet, verbose=output.verbose, **about)
    bars.status("Starting…")
    return bars


@cli.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print a script that completes commands and options: eval "$(hubmerge completion bash)"."""
    from click.shell_completion import get_completion_class

    kind = get_completion_class(shell)
    assert kind is not None
    click.echo(kind(cli, {}, "hubmerge", "_HUBMERGE_COMPLETE").source())


@cli.command()
@click.option("--dir", "folder", type=click.Path(path_type=Path), help="Keep the files here.")
def demo(folder: Path | None) -> None:
    """Train a tiny model with FSDP2 on two processes, convert it, load it, generate."""
    from hubmerge.cli.demo import run_demo

    run_demo(folder, click.echo)
