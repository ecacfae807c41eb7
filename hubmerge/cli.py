"""The command: parse, call the library, print. The only place that prints or exits.

Results go to stdout, everything else to stderr, as with the `hf` command.
"""

from __future__ import annotations

import json
import os
import re
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import click

from hubmerge.errors import HubmergeError, UsageError

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]i?B|B)?", re.IGNORECASE)
_UNITS = {
    "b": 1,
    **{f"{p}b": 1000**i for i, p in enumerate("kmgt", start=1)},
    **{f"{p}ib": 1024**i for i, p in enumerate("kmgt", start=1)},
}


class Size(click.ParamType[int]):
    """A number of bytes: 2000000000, 2GB, 500MB, 4GiB."""

    name = "size"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> int:
        if isinstance(value, int):
            return value
        match = _SIZE.fullmatch(str(value).strip())
        if not match:
            self.fail(f"{value!r} is not a size such as 2000000000, 2GB, 500MB or 4GiB", param, ctx)
        size = int(float(match[1]) * _UNITS[(match[2] or "B").lower()])
        if size < 1:
            self.fail(f"{value!r} is less than one byte", param, ctx)
        return size


class _Terminated(BaseException):
    """SIGTERM arrived."""


def _terminate(_signal: int, _frame: FrameType | None) -> NoReturn:
    raise _Terminated


def main() -> NoReturn:
    """Run the command and exit with the code that `hubmerge.errors` documents."""
    # Blocks are cast in one thread each; idle threads of torch's pool would only cost memory.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    signal.signal(signal.SIGTERM, _terminate)
    try:
        code = cli.main(standalone_mode=False, prog_name="hubmerge")
    except HubmergeError as error:
        if os.environ.get("HF_DEBUG"):
            raise
        code = _fail(str(error), error.hint, error.exit_code)
    except click.UsageError as error:
        error.show()
        code = 2
    except click.ClickException as error:
        code = _fail(error.format_message(), "", 2)
    except (KeyboardInterrupt, click.Abort):
        code = _fail("interrupted", _RESUMES, 130)
    except _Terminated:
        code = _fail("terminated", _RESUMES, 143)
    except BrokenPipeError:
        # Whoever read our output has gone; say nothing more, not even at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    sys.stdout.flush()
    sys.exit(code or 0)


_RESUMES = "The same command resumes where this run ended."


def _fail(message: str, hint: str, code: int) -> int:
    click.echo(f"Error: {message}", err=True)
    if hint:
        click.echo(f"Hint: {hint}", err=True)
    return code


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="hubmerge", message="%(prog)s %(version)s")
def cli() -> None:
    """A finished distributed training run becomes a Hugging Face repository.

    Exit codes: 0 done, 1 failure, 2 usage, 3 bad or incomplete checkpoint, 4 unsafe input refused,
    5 temporary (rerun resumes), 6 token or permission, 7 not enough disk or memory, 8 verification
    mismatch, 9 target changed, 130 interrupted, 143 terminated.
    """


_load_dir = click.option(
    "--load-dir",
    required=True,
    type=click.Path(path_type=Path),
    help="The checkpoint: the folder with .metadata and the .distcp files.",
)
_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout.")


@cli.command()
@_load_dir
@click.option(
    "--no-push",
    is_flag=True,
    help="Write the folder and leave the Hub alone.",
)
@click.option(
    "--save-dir",
    type=click.Path(path_type=Path),
    help="Where the folder is written.  [default: LOAD_DIR/hf_ckpt]",
)
@click.option(
    "--model-assets-dir",
    type=click.Path(path_type=Path),
    help="Where config, tokenizer and the like are copied from.",
)
@click.option(
    "--shard-size",
    type=Size(),
    default="2GB",
    show_default=True,
    help="Bytes of tensors in one file at most: 2000000000, 2GB, 500MB, 4GiB.",
)
@click.option(
    "--dtype",
    type=click.Choice(["bfloat16", "float16", "float32", "auto"]),
    default="bfloat16",
    show_default=True,
    help="What floating tensors become; auto leaves them as stored.",
)
@click.option("--overwrite", is_flag=True, help="Replace a model that the folder already holds.")
@click.option("--dry-run", is_flag=True, help="Print the plan; write nothing.")
@_json
@click.option("-q", "--quiet", is_flag=True, help="No progress and no warnings on stderr.")
def push(
    load_dir: Path,
    no_push: bool,
    save_dir: Path | None,
    model_assets_dir: Path | None,
    shard_size: int,
    dtype: str,
    overwrite: bool,
    dry_run: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Convert a distributed checkpoint to the Hub's format."""
    from hubmerge import api

    if not no_push and not dry_run:
        raise UsageError("pushing needs --repo-id, which this version does not have", "Use --no-push.")
    if dry_run:
        from hubmerge.report import plan_to_json, plan_to_text

        planned, assets = api.plan(
            load_dir, model_assets_dir=model_assets_dir, shard_size=shard_size, dtype=dtype
        )
        click.echo(plan_to_json(planned, assets) if as_json else plan_to_text(planned, assets))
        return
    from hubmerge.bars import Bars

    with Bars(quiet=quiet) as bars:
        result = api.convert(
            load_dir,
            save_dir,
            model_assets_dir=model_assets_dir,
            shard_size=shard_size,
            dtype=dtype,
            overwrite=overwrite,
            progress=bars,
        )
        for warning in result.warnings:
            bars.warn(warning)
    if as_json:
        click.echo(result.to_json())
        return
    click.echo(
        f"✓ Converted {result.total_parameters:,} parameters into {len(result.shards)} "
        f"file{'s' * (len(result.shards) != 1)} in {result.seconds:.1f} s"
    )
    click.echo(f"path: {result.save_dir}")


@cli.command()
@_load_dir
@_json
def inspect(load_dir: Path, as_json: bool) -> None:
    """Show what a checkpoint holds."""
    from hubmerge import api
    from hubmerge.report import inspection_to_text

    inspection = api.inspect(load_dir)
    click.echo(inspection.to_json() if as_json else inspection_to_text(inspection))


@cli.command()
@click.option("--dir", "folder", type=click.Path(path_type=Path), help="Keep the files here.")
def demo(folder: Path | None) -> None:
    """Train a tiny model with FSDP2 on two processes, convert it, load it, generate."""
    from hubmerge.demo import run_demo

    run_demo(folder, click.echo)
