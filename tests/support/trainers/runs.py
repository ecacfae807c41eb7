"""Real trainers on two processes: accelerate, the HF Trainer, PEFT under FSDP, compiled models.

    python -m tests.support.trainers.runs FOLDER

Each run leaves `FOLDER/<name>` as the trainer wrote it, `<name>.expected.pt` with the full tensors
that the trained model had, and `<name>.assets` with its config (and a PEFT adapter's).
"""

from __future__ import annotations

import os
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
import torch.multiprocessing as mp
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_state_dict,
)
from torch.distributed.fsdp import fully_shard

from tests.support.trainers.models import build
from tests.support.trainers.saves import save_config

WORLD = 2
Run = Callable[[Path], Any]
RUNS: dict[str, Run] = {}


def run(function: Run) -> Run:
    """Register a trainer's run, which returns the trained model."""
    RUNS[function.__name__] = function
    return function


def tokens() -> dict[str, torch.Tensor]:
    """A batch."""
    ids = torch.arange(3, 35).reshape(2, 16) + dist.get_rank()
    return {"input_ids": ids, "labels": ids}


def let_accelerate_shard_on_cpus() -> None:
    """accelerate takes FSDP for a matter of accelerators, and has no switch for it: told otherwise.

    Everything after that is its own code: preparing, sharding, saving.
    """
    from accelerate.state import AcceleratorState, PartialState
    from accelerate.utils import DistributedType

    original = AcceleratorState.__init__

    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        plugin = kwargs.get("fsdp_plugin") or AcceleratorState._shared_state.get("fsdp_plugin")
        original(self, *args, **kwargs)
        if plugin is not None:
            PartialState._shared_state["distributed_type"] = DistributedType.FSDP
            self.distributed_type = DistributedType.FSDP
            self.fsdp_plugin = plugin

    AcceleratorState.__init__ = init


@run
def accelerate_state(folder: Path) -> Any:
    """`Accelerator.save_state` with a sharded state dict: model and optimizer, a DCP each."""
    from accelerate import Accelerator, FullyShardedDataParallelPlugin

    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2,
        state_dict_type="SHARDED_STATE_DICT",
        auto_wrap_policy="transformer_based_wrap",
        transformer_cls_names_to_wrap=["Qwen3MoeDecoderLayer"],
    )
    accelerator = Accelerator(cpu=True, fsdp_plugin=plugin)
    model = build("qwen3_moe")
    model, optimizer = accelerator.prepare(model, torch.optim.AdamW(model.parameters(), lr=1e-2))
    accelerator.backward(model(**tokens()).loss)
    optimizer.step()
    accelerator.save_state(str(folder / "checkpoint_0"))
    return model


def train(folder: Path, model: Any, **options: Any) -> Any:
    """The HF Trainer, two steps, a checkpoint after each."""
    from transformers import Trainer, TrainingArguments

    config = {
        "version": 2,
        "transformer_layer_cls_to_wrap": ["LlamaDecoderLayer"],
        "state_dict_type": "SHARDED_STATE_DICT",
    }
    arguments = TrainingArguments(
        output_dir=str(folder), use_cpu=True, max_steps=2, save_steps=1, report_to=[], fsdp=True,
        fsdp_config=config, disable_tqdm=True, learning_rate=1e-2, warmup_steps=0,
        per_device_train_batch_size=2, lr_scheduler_type="constant", **options,
    )  # fmt: skip
    ids = list(range(3, 19))
    data = [{"input_ids": ids, "labels": ids}] * 8
    trainer = Trainer(model, arguments, train_dataset=data)
    trainer.train()
    return trainer.model


@run
def hf_trainer(folder: Path) -> Any:
    """A tied Llama."""
    return train(folder, build("llama", tie_word_embeddings=True))


@run
def hf_trainer_peft(folder: Path) -> Any:
    """LoRA with a head that is trained whole; the Trainer saves the adapter alone."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=4, target_modules=["q_proj", "v_proj"], modules_to_save=["lm_head"], task_type="CAUSAL_LM"
    )
    model = train(folder, get_peft_model(build("llama"), config))
    if dist.get_rank() == 0:
        model.peft_config["default"].save_pretrained(str(assets_of(folder)))
    return model


@run
def peft_whole(folder: Path) -> Any:
    """VeOmni and others save a PEFT model with its frozen weights and the adapter's name."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=4, target_modules=["q_proj"], use_dora=True, task_type="CAUSAL_LM")
    model = get_peft_model(build("llama"), config)
    for layer in model.base_model.model.model.layers:
        fully_shard(layer)
    fully_shard(model)
    step(model)
    state = get_model_state_dict(model)
    dcp.save({"model": state}, checkpoint_id=str(folder / "checkpoints/global_step_2"))
    if dist.get_rank() == 0:
        config.save_pretrained(str(folder / "checkpoints/global_step_2"))
    return model


def step(model: Any) -> torch.optim.Optimizer:
    """One real step of AdamW."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    model(**tokens()).loss.backward()
    optimizer.step()
    return optimizer


@run
def compiled(folder: Path) -> Any:
    """`torch.compile` around the model and each checkpointed layer, saved as it names them."""
    model = build("llama")
    for number, layer in enumerate(model.model.layers):
        fully_shard(layer)
        model.model.layers[number] = torch.compile(checkpoint_wrapper(layer), backend="eager")
    fully_shard(model)
    outer = torch.compile(model, backend="eager")
    step(outer)
    dcp.save({"model": outer.state_dict()}, checkpoint_id=str(folder))
    return model


@run
def lightning_module(folder: Path) -> Any:
    """A LightningModule's state dict: the model is an attribute, the optimizer has a number."""
    model = build("llama")
    for layer in model.model.layers:
        fully_shard(layer)
    fully_shard(model)
    weights, optimizer = get_state_dict(model, step(model))
    state = {
        "model": {f"model.{name}": tensor for name, tensor in weights.items()},
        "optimizer_0": optimizer,
        "loops": {"fit_loop": {"epoch": 1}},
    }
    dcp.save(state, checkpoint_id=str(folder / "epoch=0-step=1.ckpt"))
    return model


def assets_of(folder: Path) -> Path:
    """Where a run's config is put."""
    return folder.with_name(f"{folder.name}.assets")


def _finish(folder: Path, model: Any) -> None:
    full = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True))
    if dist.get_rank() == 0:
        torch.save(full, folder.with_name(f"{folder.name}.expected.pt"))
        bare = model.get_base_model() if hasattr(model, "get_base_model") else model
        kind = next(c for c in type(bare).__mro__ if c.__module__.startswith("transformers.models"))
        bare.config.architectures = [kind.__name__]
        bare.config.save_pretrained(assets_of(folder))


def _rank(rank: int, root: Path, store: str) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(WORLD),
        "LOCAL_WORLD_SIZE": str(WORLD), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500",
    }  # fmt: skip
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=WORLD)
    let_accelerate_shard_on_cpus()
    for name, function in RUNS.items():
        folder = root / name
        _finish(folder, function(folder))
        dist.barrier()
    dist.destroy_process_group()


def main(root: Path) -> None:
    """All runs, one after another, in two processes that are forked from this one."""
    import accelerate  # noqa: F401  (once, before the forks)
    import peft  # noqa: F401
    import transformers

    assert transformers.Trainer
    with tempfile.TemporaryDirectory() as scratch:
        mp.start_processes(_rank, (root, f"{scratch}/store"), nprocs=WORLD, start_method="fork")


__all__ = ["RUNS", "assets_of", "main", "save_config"]

if __name__ == "__main__":
    main(Path(sys.argv[1]))
