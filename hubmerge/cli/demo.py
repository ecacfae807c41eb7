"""`hubmerge demo`: train, save, convert, load and generate in a minute, without network access.

Uses the public API only. The training runs in two processes with real FSDP2, so the checkpoint is
what a trainer would write.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import hubmerge
from hubmerge.errors import only_our_errors

_STEPS = 20


@only_our_errors()
def run_demo(folder: Path | None, say: Callable[[str], None]) -> None:
    """Run the demo in `folder`, or in a temporary one; call `say` with each step.

    Raises:
        HubmergeError: a step failed.
    """
    with tempfile.TemporaryDirectory() as temporary:
        root = folder or Path(temporary)
        say(f"1. Training a tiny Llama for {_STEPS} steps with FSDP2 on 2 processes …")
        _train(root)
        checkpoint = root / "checkpoint"
        found = hubmerge.inspect(checkpoint)
        say(
            f"   saved by dcp.save: {found.files} files, top-level keys: "
            + ", ".join(group.key for group in found.groups)
        )
        say("2. Converting: hubmerge push --no-push …")
        result = hubmerge.convert(
            checkpoint,
            root / "model",
            model_assets_dir=root / "assets",
            overwrite=True,
        )
        say(
            f"   {len(result.shards)} file, {result.total_parameters:,} parameters, "
            f"{len(result.dropped)} optimizer tensors left out, {result.seconds:.1f} s"
        )
        say("3. Loading it with transformers and generating …")
        say(f"   0 1 2 3 -> {_generate(root / 'model')}")
        say("✓ The model that was trained is the model that was loaded.")
        if folder:
            say(f"path: {root / 'model'}")


def _train(root: Path) -> None:
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
        "-m", "hubmerge.cli.demo", str(root),
    ]  # fmt: skip
    run = subprocess.run(  # noqa: S603 - our own command
        command, capture_output=True, text=True, check=False
    )
    if run.returncode != 0:
        raise hubmerge.HubmergeError(f"the training processes failed:\n{run.stderr[-2000:]}")


def _generate(model_dir: Path) -> str:
    import torch
    from transformers import AutoModelForCausalLM

    model, info = AutoModelForCausalLM.from_pretrained(model_dir, output_loading_info=True)
    if info["missing_keys"] or info["unexpected_keys"]:
        raise hubmerge.HubmergeError(f"the model did not load completely: {info}")
    tokens = model.generate(torch.tensor([[0, 1, 2, 3]]), max_new_tokens=8, do_sample=False)
    return " ".join(map(str, tokens[0, 4:].tolist()))


def _train_rank(root: Path) -> None:
    """Learn to count, then save as VeOmni does; runs in each of the two processes."""
    import torch
    import torch.distributed as dist
    from torch.distributed.checkpoint.state_dict import get_state_dict
    from torch.distributed.checkpoint.state_dict_saver import save
    from torch.distributed.fsdp import fully_shard
    from transformers import LlamaConfig, LlamaForCausalLM

    dist.init_process_group("gloo")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64, hidden_size=64, intermediate_size=128, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64,
        bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    for layer in model.model.layers:
        fully_shard(layer)
    fully_shard(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    counting = torch.arange(32).unsqueeze(0) + torch.arange(16).unsqueeze(1) * 2
    for _ in range(_STEPS):
        loss = model(input_ids=counting % 64, labels=counting % 64).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model_state, optimizer_state = get_state_dict(model, optimizer)
    save(
        {"model": model_state, "optimizer": optimizer_state},
        checkpoint_id=str(root / "checkpoint"),
    )
    if dist.get_rank() == 0:
        config.architectures = ["LlamaForCausalLM"]
        config.save_pretrained(root / "assets")
    dist.destroy_process_group()


if __name__ == "__main__":
    _train_rank(Path(sys.argv[1]))
    # torch sometimes aborts at interpreter shutdown, after all the work is done.
    sys.stderr.flush()
    os._exit(0)
