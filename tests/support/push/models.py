"""Small real checkpoints, saved by torch, and the files that they must become."""

from __future__ import annotations

import json
import sys
import warnings
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from transformers import LlamaConfig, LlamaForCausalLM

from tests.support import oracle

SHARD_SIZE = 15_000
"""Parts the model in four."""


@dataclass(frozen=True)
class Model:
    """A checkpoint, its assets, and the tensors that it holds by Hub name."""

    load_dir: Path
    assets: Path
    tensors: dict[str, torch.Tensor]

    def argv(self, *more: str, shard_size: int = SHARD_SIZE) -> list[str]:
        """The options that every command has."""
        return [
            "--load-dir", str(self.load_dir), "--model-assets-dir", str(self.assets),
            "--shard-size", str(shard_size),
            *(() if (self.assets / "config.json").exists() else ("--no-config",)), *more,
        ]  # fmt: skip

    def weights(self, shard_size: int = SHARD_SIZE) -> dict[str, bytes]:
        """Shards and index by name, worked out without hubmerge."""
        return _weights(self, shard_size)

    def __hash__(self) -> int:
        return hash(self.load_dir)


@lru_cache
def _weights(model: Model, shard_size: int) -> dict[str, bytes]:
    cast = oracle.cast(model.tensors, "bfloat16")
    return dict(oracle.expected_folder(cast, shard_size).files)


def save(state: dict[str, Any], folder: Path) -> None:
    """`dcp.save` in one process."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "assuming the intent is to save in a single process"
        dcp.save(state, checkpoint_id=str(folder), no_dist=True)


def llama(root: Path, seed: int, layers: int = 2) -> Model:
    """A Llama after a run whose step was its seed."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=layers,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64,
        bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    module = LlamaForCausalLM(config)
    save({"model": module.state_dict()}, root / f"global_step_{seed}")
    config.dtype = torch.float32
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(root / "assets")
    (root / "assets" / "chat_template.jinja").write_text("{{ messages }}\n")
    tensors = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    return Model(root / f"global_step_{seed}", root / "assets", tensors)


def plain(root: Path, count: int) -> Model:
    """So many tensors that are no known model: one a shard, if the shards are small."""
    tensors = {f"model.layers.{i}.mlp.weight": torch.full((600,), float(i)) for i in range(count)}
    save({"model": dict(tensors)}, root / "plain")
    (root / "none").mkdir()
    (root / "none" / "generation_config.json").write_text(json.dumps({"do_sample": False}))
    return Model(root / "plain", root / "none", tensors)


if __name__ == "__main__":
    llama(Path(sys.argv[1]), seed=7)
