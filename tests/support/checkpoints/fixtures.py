"""What tests use: `checkpoint_path("llama_fsdp_2")`, and what it must turn into.

Checkpoints are written at the first request, all cases of one process launch together, into a
folder that lives as long as this process. They are shared: a test that damages one, or writes
into its folder, takes `copy_of_checkpoint`.
"""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint._nested_dict import flatten_state_dict
from torch.distributed.checkpoint.default_planner import _EmptyStateDictLoadPlanner

from tests.support.checkpoints import cases_models, cases_plain, cases_sharded
from tests.support.checkpoints.registry import CASES, Case, Tensors

__all__ = [
    "CASES",
    "Case",
    "Tensors",
    "assets_path",
    "cases_models",
    "cases_plain",
    "cases_sharded",
    "checkpoint",
    "checkpoint_path",
    "copy_of_checkpoint",
    "expected_tensors",
    "load_all",
]

REPOSITORY = Path(__file__).parents[3]
LAUNCHES = ((1,), (2,), (3, 4))
"""Numbers of ranks whose cases are written by one command."""


@pytest.fixture(scope="session")
def checkpoint() -> Callable[[str], Path]:
    """Call it with a case's name to get that checkpoint's folder (not to be written to)."""
    return checkpoint_path


def checkpoint_path(name: str) -> Path:
    """The folder of this case's checkpoint."""
    launch = next(ranks for ranks in LAUNCHES if CASES[name].ranks in ranks)
    return _written(launch) / name


def assets_path(name: str) -> Path:
    """The folder with a model case's config and tokenizer."""
    return cases_models.assets_folder(checkpoint_path(name))


def expected_tensors(name: str) -> Tensors:
    """The case's full tensors by checkpoint key, as the writing processes had them."""
    path = checkpoint_path(name).with_name(f"{name}.expected.pt")
    tensors: Tensors = torch.load(path, weights_only=True)
    return tensors


def copy_of_checkpoint(name: str, parent: Path) -> Path:
    """A copy of the case's checkpoint that a test may damage."""
    return Path(shutil.copytree(checkpoint_path(name), parent / name))


def load_all(folder: Path) -> Tensors:
    """Every tensor of a checkpoint by its key, through torch's own `dcp.load` in one process."""
    state: dict[str, Any] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "assuming the intent is to load in a single process"
        dcp.state_dict_loader._load_state_dict(
            state,
            storage_reader=FileSystemReader(folder),
            planner=_EmptyStateDictLoadPlanner(),
            no_dist=True,
        )
    flat, _ = flatten_state_dict(state)
    return {key: value for key, value in flat.items() if isinstance(value, torch.Tensor)}


@functools.cache
def _session_folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="hubmerge-checkpoints-")


@functools.cache
def _written(launch: tuple[int, ...]) -> Path:
    """Write all cases with these numbers of ranks, and return the folder that holds them."""
    root = Path(_session_folder().name)
    names = [case.name for case in CASES.values() if case.ranks in launch]
    command = [sys.executable, "-m", "tests.support.checkpoints.writer", str(root), *names]
    if launch == (2,):
        command[2:3] = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m",
                        "tests.support.checkpoints.writer"]  # fmt: skip
    done = subprocess.run(
        command,
        cwd=REPOSITORY,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    if done.returncode:
        pytest.fail(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}", pytrace=False)
    return root
