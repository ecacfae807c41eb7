"""Checkpoints of tiny transformers models, trained for real with FSDP2 and AdamW."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import FileSystemWriter
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    ParallelStyle,
    RowwiseParallel,
    parallelize_module,
)

from tests.support.checkpoints.registry import Tensors, case

if TYPE_CHECKING:
    from transformers import LlamaConfig, LlamaForCausalLM

WORDS = ("<unk>", "<s>", "</s>", "<pad>", "the", "cat", "sat", "on", "a", "mat", "user", ":")
CHAT_TEMPLATE = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"


def tiny_llama_config(**changes: Any) -> LlamaConfig:
    """A Llama whose sizes divide evenly by neither two nor three, with one narrow projection."""
    from transformers import LlamaConfig

    sizes: dict[str, Any] = {
        "vocab_size": 97,
        "hidden_size": 20,
        "intermediate_size": 50,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 1,  # k_proj has 4 rows: three ranks hold 2, 2 and none
        "head_dim": 4,
        "max_position_embeddings": 64,
        "tie_word_embeddings": False,
    }
    return LlamaConfig(**(sizes | changes), architectures=["LlamaForCausalLM"], dtype="float32")


def tiny_llama(**changes: Any) -> LlamaForCausalLM:
    """The same random model on every rank."""
    from transformers import LlamaForCausalLM

    torch.manual_seed(20)
    return LlamaForCausalLM(tiny_llama_config(**changes))


def train(model: torch.nn.Module, ranks_per_batch: int = 1) -> torch.optim.Optimizer:
    """Two real AdamW steps, on other data in each group of so many ranks."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    generator = torch.Generator().manual_seed(dist.get_rank() // ranks_per_batch)
    for _ in range(2):
        tokens = torch.randint(0, 97, (2, 8), generator=generator)
        model(input_ids=tokens, labels=tokens).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return optimizer


def save_training(
    folder: Path, model: LlamaForCausalLM, optimizer: torch.optim.Optimizer, **options: Any
) -> Tensors:
    """Save model, optimizer and counters as VeOmni does, with the assets beside."""
    model_state, optimizer_state = get_state_dict(model, optimizer)
    state = {
        "model": model_state,
        "optimizer": optimizer_state,
        "extra_state": {"global_step": 2, "curr_epoch": 0},
    }
    writer = FileSystemWriter(folder, **{"sync_files": False, **options})
    dcp.save(state, storage_writer=writer)
    if dist.get_rank() == 0:
        write_assets(assets_folder(folder), model)
    full = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True))
    return {f"model.{name}": tensor for name, tensor in full.items()}


def assets_folder(folder: Path) -> Path:
    """Where a model case keeps its config and tokenizer: beside the checkpoint."""
    return folder.with_name(f"{folder.name}.assets")


def write_assets(folder: Path, model: LlamaForCausalLM) -> None:
    """Config, generation config, tokenizer and chat template, and what must never be copied."""
    model.config.save_pretrained(folder)
    model.generation_config.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    (folder / ".env").write_text("NOT_TO_BE_COPIED=1\n")
    (folder / "optimizer.pt").write_bytes(b"not to be copied")
    (folder / "model.safetensors").write_bytes(b"not to be copied")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {}}))


def tiny_tokenizer() -> Any:
    """A word-level tokenizer with a chat template, made on the spot."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: i for i, word in enumerate(WORDS)}
    words = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=words,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        chat_template=CHAT_TEMPLATE,
    )


def shard_fully(model: LlamaForCausalLM, **options: Any) -> None:
    """FSDP2 on each layer and on the whole."""
    for layer in model.model.layers:
        fully_shard(layer, **options)
    fully_shard(model, **options)


@case(2, is_model=True)
def llama_fsdp_2(folder: Path) -> Tensors:
    """A Llama under FSDP2 on two ranks, with AdamW's state."""
    model = tiny_llama()
    shard_fully(model)
    return save_training(folder, model, train(model))


@case(3, is_model=True)
def llama_fsdp_3(folder: Path) -> Tensors:
    """The same on three ranks: uneven shards, an empty one, and sixteen files for each rank."""
    model = tiny_llama()
    shard_fully(model)
    return save_training(folder, model, train(model), thread_count=16)


@case(2, is_model=True)
def llama_tied_2(folder: Path) -> Tensors:
    """Tied embeddings: the checkpoint holds both names in full."""
    model = tiny_llama(tie_word_embeddings=True)
    shard_fully(model)
    return save_training(folder, model, train(model))


@case(4, is_model=True)
def llama_fsdp_tp_4(folder: Path) -> Tensors:
    """FSDP2 over tensor parallelism: two-dimensional DTensors, some of them strided."""
    model = tiny_llama(vocab_size=100, hidden_size=16, intermediate_size=48, num_key_value_heads=4)
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))
    for layer in model.model.layers:
        plan: dict[str, ParallelStyle] = {
            "mlp.gate_proj": ColwiseParallel(),
            "mlp.up_proj": ColwiseParallel(),
            "mlp.down_proj": RowwiseParallel(),
        }
        parallelize_module(layer, mesh["tp"], plan)
    shard_fully(model, mesh=mesh["dp"])
    return save_training(folder, model, train(model, ranks_per_batch=2))
