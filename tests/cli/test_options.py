"""Options are declared once: the command, the functions and their checks are made of it."""

from __future__ import annotations

import inspect
import subprocess
import sys
from collections.abc import Callable
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import click
import pytest
import torch

import hubmerge
from hubmerge import errors
from hubmerge.cli.app import cli
from hubmerge.cli.options import CheckpointOptions, VerifyOptions, given, given_plan
from hubmerge.errors import HubmergeError, UsageError
from hubmerge.names.options import NamingOptions
from hubmerge.options import Options
from hubmerge.planning.options import PlanOptions
from hubmerge.publish.options import PushOptions
from tests.support.checkpoints.fixtures import checkpoint_path

FUNCTIONS = {
    hubmerge.plan: (CheckpointOptions, PlanOptions),
    hubmerge.convert: (CheckpointOptions, PlanOptions),
    hubmerge.push: (CheckpointOptions, PushOptions, PlanOptions),
    hubmerge.verify: (CheckpointOptions, VerifyOptions, PlanOptions),
}
# Of a function alone.
OTHERS = {"progress", "ranks", "save_dir", "overwrite", "repo_id"}


@pytest.mark.parametrize("function", FUNCTIONS)
def test_the_parameters_are_the_declared_options(function: Callable[..., Any]) -> None:
    """A function takes each option of its groups, with the declared default."""
    parameters = inspect.signature(function).parameters
    declared = {f.name: f.default for group in FUNCTIONS[function] for f in fields(group)}
    assert parameters.keys() - OTHERS == declared.keys() - OTHERS
    for name, default in declared.items():
        expected = inspect.Parameter.empty if default is MISSING else default
        assert parameters[name].default is expected


def parsed(command: str, *argv: str) -> click.Context:
    """What click makes of a command line."""
    return cli.commands[command].make_context(command, list(argv))


def test_what_was_not_given_is_known() -> None:
    """A default on the command line is an answer; no option at all is none."""
    context = parsed("push", "--load-dir", "x", "--dtype", "bfloat16", "--experts=auto")
    plan = given_plan(context)
    assert plan.given == {"dtype", "naming"}
    assert plan.naming.given == {"experts"}
    assert given_plan(parsed("push", "--load-dir", "x")).given == set()
    assert PlanOptions().dtype is None


@pytest.mark.parametrize(
    ("group", "flag", "value"),
    [
        (PlanOptions, "--dtype", "int8"),
        (PlanOptions, "--shard-size", "2 gigs"),
        (PlanOptions, "--shard-size", "0"),
        (PlanOptions, "--model-assets-dir", ""),
        (PushOptions, "--max-disk", "much"),
        (PushOptions, "--repo-id", "model"),
        (PushOptions, "--tag", "a b"),
        (PushOptions, "--staging-dir", ""),
        (NamingOptions, "--experts", "both"),
        (NamingOptions, "--include", "("),
    ],
)
def test_a_wrong_value_names_the_flag(group: type[Options], flag: str, value: str) -> None:
    """On the command line and from Python, before anything is read."""
    required = ["--load-dir=x"] + ["--repo-id=a/b"] * (flag != "--repo-id")
    context = parsed("push", *required, f"{flag}={value}")
    with pytest.raises(UsageError, match=f"^{flag}[ :]"):
        given(context, group)


def test_values_in_the_forms_that_python_has() -> None:
    """Sizes as texts, dtypes as torch's own or by their short names."""
    assert PlanOptions.among({"shard_size": "2GB"}).shard_size == 2_000_000_000
    assert PlanOptions.among({"shard_size": "4GiB"}).shard_size == 2**32
    for value in (torch.bfloat16, "bf16", "bfloat16", "torch.bfloat16"):
        assert PlanOptions.among({"dtype": value}).dtype == "bfloat16"
    assert PushOptions(repo_id="a/b", token="hf_secret").token == "hf_secret"
    assert "hf_secret" not in repr(PushOptions(repo_id="a/b", token="hf_secret"))


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"dtypes": "float32"}, "unexpected keyword argument 'dtypes'"),
        ({"experts": "fused"}, r"use naming=NamingOptions\(experts=...\)"),
        ({"shard_size": 2e9}, "argument 'shard_size' must be int | str | None, not float"),
        ({"shard_size": True}, "argument 'shard_size'"),
        ({"naming": {"mode": "lora"}}, "argument 'naming' must be NamingOptions, not dict"),
        ({"dtype": 16}, "argument 'dtype'"),
        ({"card": 7}, "argument 'card'"),
    ],
)
def test_a_wrong_call_is_a_type_error(wrong: dict[str, Any], words: str, tmp_path: Path) -> None:
    """At once, and no defect to be reported."""
    with pytest.raises(TypeError, match=words):
        hubmerge.convert("nowhere", tmp_path / "out", **wrong)
    with pytest.raises(HubmergeError):  # right, but there is nothing
        hubmerge.convert("nowhere", tmp_path / "out", dtype=torch.float16, shard_size="2GB")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["include", "exclude", "rename", "keep_dtype"])
def test_a_list_is_no_text(name: str) -> None:
    """Each letter would be a regex."""
    with pytest.raises(TypeError, match=name):
        NamingOptions(**{name: "alpha"})  # type: ignore[arg-type]


def test_all_errors_are_in_the_package() -> None:
    """`except hubmerge.AccessError` needs no look into its modules."""
    for error in vars(errors).values():
        if isinstance(error, type) and issubclass(error, HubmergeError):
            assert getattr(hubmerge, error.__name__) is error
            assert error.__name__ in hubmerge.__all__


def test_a_plan_fits_a_screen(tmp_path: Path) -> None:
    """`repr(plan)` is one line, whatever it holds."""
    planned, _ = hubmerge.plan(checkpoint_path("several_shards"), shard_size=10_000)
    assert repr(planned).startswith("<Plan of ")
    assert len(repr(planned)) < 100


def test_help_imports_nothing_that_is_slow() -> None:
    """It is shown at once: neither the library's parts nor any that they need."""
    code = (
        "import sys, hubmerge.cli.app\n"
        "print([m for m in sys.modules if m in ('numpy', 'yaml', 'hubmerge.api', 'torch',"
        " 'safetensors', 'transformers', 'huggingface_hub')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
