"""The options of the command are those of the library, written twice: --help imports nothing."""

from __future__ import annotations

import subprocess
import sys

import click
import pytest

from hubmerge.cli.app import cli
from hubmerge.names.options import EXPERTS, MODES
from hubmerge.planning.plan import DEFAULT_DTYPE, DEFAULT_SHARD_SIZE, DTYPES
from hubmerge.publish.options import DEFAULT_BRANCH

KNOWN = {"dtype": DTYPES, "experts": EXPERTS, "mode": MODES}
DEFAULTS = {"dtype": DEFAULT_DTYPE, "revision": DEFAULT_BRANCH, "shard_size": DEFAULT_SHARD_SIZE}


@pytest.mark.parametrize("command", ["push", "verify"])
def test_choices_and_defaults(command: str) -> None:
    """A dtype that only one of them knew would be refused, or cast, without reason."""
    parameters = {p.name: p for p in cli.commands[command].params}
    for name, known in KNOWN.items():
        kind = parameters[name].type
        assert isinstance(kind, click.Choice)
        assert tuple(kind.choices) == known
    context = click.Context(cli.commands[command])
    for name, default in DEFAULTS.items():
        parameter = parameters[name]
        assert parameter.type_cast_value(context, parameter.get_default(context)) == default


def test_help_imports_nothing_that_is_slow() -> None:
    """It is shown at once: neither the library's parts nor any that they need."""
    code = (
        "import sys, hubmerge.cli.app\n"
        "print([m for m in sys.modules if m in ('numpy', 'yaml', 'hubmerge.api', 'torch',"
        " 'safetensors', 'transformers', 'huggingface_hub')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
