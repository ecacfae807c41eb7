"""Write checkpoint cases into a folder, each in as many processes as it asks for.

    python -m tests.support.checkpoints.writer FOLDER CASE...
    torchrun --nproc-per-node 2 -m tests.support.checkpoints.writer FOLDER CASE...

Cases for the same number of ranks share one set of processes, which are forked from this one:
importing torch and transformers takes longer than all the saving. Beside each checkpoint
`<case>` stands `<case>.expected.pt`, the full tensors by checkpoint key, and for a model case
`<case>.assets`.
"""

from __future__ import annotations

import os
import sys
import tempfile
import warnings
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from tests.support.checkpoints import cases_models, cases_plain, cases_sharded
from tests.support.checkpoints.registry import CASES, Case, Tensors

__all__ = ["cases_models", "cases_plain", "cases_sharded"]


def write_case(case: Case, root: Path) -> None:
    """Run one case in this rank; rank 0 also stores what the checkpoint must hold."""
    expected = case.write(root / case.name)
    if not dist.is_initialized() or dist.get_rank() == 0:
        torch.save(_plain(expected), root / f"{case.name}.expected.pt")


def _plain(tensors: Tensors) -> Tensors:
    return {
        name: tensor.detach().clone(memory_format=torch.contiguous_format)
        for name, tensor in tensors.items()
    }


def write_in_group(cases: Sequence[Case], root: Path) -> None:
    """Run cases in a rank whose process group stands."""
    for case in cases:
        write_case(case, root)
        dist.barrier()
    dist.destroy_process_group()


def _forked_rank(rank: int, world: int, cases: Sequence[Case], root: Path, store: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world)
    write_in_group(cases, root)


def write_forked(world: int, cases: Sequence[Case], root: Path) -> None:
    """Run cases in this many processes of their own."""
    with tempfile.TemporaryDirectory() as scratch:
        arguments = (world, cases, root, f"{scratch}/store")
        mp.start_processes(_forked_rank, arguments, nprocs=world, start_method="fork")


def main(root: Path, names: Sequence[str]) -> None:
    """Write the named cases, as one rank of torchrun or as the parent of all ranks."""
    warnings.filterwarnings("ignore", module="torch")
    cases = sorted((CASES[name] for name in names), key=lambda case: case.ranks)
    if "TORCHELASTIC_RUN_ID" in os.environ:
        dist.init_process_group("gloo")
        write_in_group(cases, root)
        sys.stderr.flush()
        os._exit(0)  # as in `hubmerge.cli.demo`
    if any(case.is_model for case in cases):
        import transformers.models.llama.modeling_llama  # noqa: F401  (once, before the forks)
    for world, group in groupby(cases, key=lambda case: case.ranks):
        if world > 1:
            write_forked(world, list(group), root)
        else:
            for case in group:
                write_case(case, root)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
