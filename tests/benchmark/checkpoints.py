"""The checkpoints to measure on: several GB of weights, and the metadata of a 671B model.

python -m tests.benchmark.checkpoints weights FOLDER GIGABYTES
python -m tests.benchmark.checkpoints config FOLDER GIGABYTES
python -m tests.benchmark.checkpoints metadata FOLDER
"""

from __future__ import annotations

import gc
import pickle
import sys
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
import torch.multiprocessing as mp
from torch.distributed.checkpoint import FileSystemWriter
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard

Shape = tuple[int, ...]

# ---- Weights: a Llama saved by two ranks ----

RANKS = 2
FILES_PER_RANK = 4
HIDDEN, INTERMEDIATE, KEY_VALUE, VOCABULARY = 2048, 5632, 512, 32000


def llama_shapes(weight_bytes: int) -> dict[str, Shape]:
    """Names and shapes of an fp32 Llama with as many layers as reach this size."""
    outer = {
        "model.embed_tokens.weight": (VOCABULARY, HIDDEN),
        "model.norm.weight": (HIDDEN,),
        "lm_head.weight": (VOCABULARY, HIDDEN),
    }
    layer = {
        "self_attn.q_proj": (HIDDEN, HIDDEN),
        "self_attn.k_proj": (KEY_VALUE, HIDDEN),
        "self_attn.v_proj": (KEY_VALUE, HIDDEN),
        "self_attn.o_proj": (HIDDEN, HIDDEN),
        "mlp.gate_proj": (INTERMEDIATE, HIDDEN),
        "mlp.up_proj": (INTERMEDIATE, HIDDEN),
        "mlp.down_proj": (HIDDEN, INTERMEDIATE),
        "input_layernorm": (HIDDEN,),
        "post_attention_layernorm": (HIDDEN,),
    }
    rest_bytes = weight_bytes - 4 * _parameters(outer)
    layers = max(1, -(-rest_bytes // (4 * _parameters(layer))))
    return outer | {
        f"model.layers.{i}.{name}.weight": shape
        for i in range(layers)
        for name, shape in layer.items()
    }


def _parameters(shapes: dict[str, Shape]) -> int:
    return sum(torch.Size(shape).numel() for shape in shapes.values())


def _save_rank(rank: int, folder: Path, weight_bytes: int, store: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=RANKS)
    mesh = init_device_mesh("cpu", (RANKS,))
    generator = torch.Generator().manual_seed(rank)
    state = {}
    for name, shape in llama_shapes(weight_bytes).items():
        rows = torch.empty(shape[0] // RANKS, *shape[1:]).normal_(generator=generator)
        state[name] = DTensor.from_local(rows, mesh, [Shard(0)], run_check=False)
    writer = FileSystemWriter(folder, thread_count=FILES_PER_RANK, sync_files=False)
    dcp.save({"model": state}, storage_writer=writer)
    dist.destroy_process_group()


def write_weights(folder: Path, gigabytes: float) -> None:
    """Save a model of at least this size through real `dcp.save` in two processes."""
    store = folder.with_name(f"{folder.name}.store")
    arguments = (folder, int(gigabytes * 1e9), str(store))
    mp.spawn(_save_rank, arguments, nprocs=RANKS)
    store.unlink(missing_ok=True)


def write_config(folder: Path, gigabytes: float) -> None:
    """Save the config of the model that `write_weights` saves, as an assets folder."""
    from transformers import LlamaConfig

    names = llama_shapes(int(gigabytes * 1e9))
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=HIDDEN, intermediate_size=INTERMEDIATE,
        num_hidden_layers=sum(name.endswith("q_proj.weight") for name in names),
        num_attention_heads=HIDDEN // 64, num_key_value_heads=KEY_VALUE // 64,
        architectures=["LlamaForCausalLM"],
    )  # fmt: skip
    config.save_pretrained(folder)


# ---- Metadata: DeepSeek-V3 on 256 ranks, no data ----

WORLD = 256
EXPERT_GROUPS = 16  # expert parallelism; each group shards its experts' rows over the others
FILES_FOR_RANK = 16
EXPERTS, DENSE_LAYERS, LAYERS = 256, 3, 62
RECORD_OVERHEAD_BYTES = 1500


@dataclass(frozen=True)
class ModelTensor:
    """A tensor of the model; an expert's is shared by that expert's group of ranks only."""

    name: str
    shape: Shape
    expert: int | None = None


def deepseek_tensors() -> Iterator[ModelTensor]:
    """About 46,000 tensors by the names that DeepSeek-V3 has on the Hub."""
    yield ModelTensor("model.embed_tokens.weight", (129280, 7168))
    for i in range(LAYERS):
        yield from _deepseek_layer(f"model.layers.{i}", dense=i < DENSE_LAYERS)
    yield ModelTensor("model.norm.weight", (7168,))
    yield ModelTensor("lm_head.weight", (129280, 7168))


def _deepseek_layer(layer: str, *, dense: bool) -> Iterator[ModelTensor]:
    attention = {
        "q_a_proj": (1536, 7168),
        "q_a_layernorm": (1536,),
        "q_b_proj": (24576, 1536),
        "kv_a_proj_with_mqa": (576, 7168),
        "kv_a_layernorm": (512,),
        "kv_b_proj": (32768, 512),
        "o_proj": (7168, 16384),
    }
    for name, shape in attention.items():
        yield ModelTensor(f"{layer}.self_attn.{name}.weight", shape)
    yield ModelTensor(f"{layer}.input_layernorm.weight", (7168,))
    yield ModelTensor(f"{layer}.post_attention_layernorm.weight", (7168,))
    if dense:
        yield from _feed_forward(f"{layer}.mlp", 18432)
        return
    yield ModelTensor(f"{layer}.mlp.gate.weight", (EXPERTS, 7168))
    yield ModelTensor(f"{layer}.mlp.gate.e_score_correction_bias", (EXPERTS,))
    yield from _feed_forward(f"{layer}.mlp.shared_experts", 2048)
    for expert in range(EXPERTS):
        yield from _feed_forward(f"{layer}.mlp.experts.{expert}", 2048, expert)


def _feed_forward(stem: str, width: int, expert: int | None = None) -> Iterator[ModelTensor]:
    yield ModelTensor(f"{stem}.gate_proj.weight", (width, 7168), expert)
    yield ModelTensor(f"{stem}.up_proj.weight", (width, 7168), expert)
    yield ModelTensor(f"{stem}.down_proj.weight", (7168, width), expert)


def piece_of(tensor: ModelTensor, rank: int) -> tuple[int, int] | None:
    """First row and number of rows that FSDP2 gives this rank; None where it holds no part."""
    shards, position = WORLD, rank
    if tensor.expert is not None:
        if tensor.expert % EXPERT_GROUPS != rank % EXPERT_GROUPS:
            return None
        shards, position = WORLD // EXPERT_GROUPS, rank // EXPERT_GROUPS
    rows = -(-tensor.shape[0] // shards)
    first = min(position * rows, tensor.shape[0])
    return first, min(rows, tensor.shape[0] - first)


def deepseek_metadata() -> Metadata:
    """What rank 0 would pickle: each rank's plans and results with strings of their own."""
    tensors = list(deepseek_tensors())
    entries: dict[str, TensorStorageMetadata] = {}
    storage: dict[MetadataIndex, _StorageInfo] = {}
    for rank in range(WORLD):
        _add_rank(rank, tensors, entries, storage)
    top = "model"
    return Metadata(
        state_dict_metadata=dict(entries),
        planner_data={_own(tensor.name): (top, tensor.name) for tensor in tensors},
        storage_data=storage,
        storage_meta=StorageMeta(Path("checkpoints/global_step_1000"), str(uuid.uuid4())),
        version="1.0.0",
    )


def _own(name: str) -> str:
    """The checkpoint key of a name, as a new string object each time."""
    return f"model.{name}"


def _add_rank(
    rank: int,
    tensors: list[ModelTensor],
    entries: dict[str, TensorStorageMetadata],
    storage: dict[MetadataIndex, _StorageInfo],
) -> None:
    files = [f"__{rank}_{n}.distcp" for n in range(FILES_FOR_RANK)]
    ends = [0] * FILES_FOR_RANK
    for number, tensor in enumerate(tensors):
        piece = piece_of(tensor, rank)
        if piece is None:
            continue
        first, rows = piece
        offsets = (first, *[0] * (len(tensor.shape) - 1))
        key = _own(tensor.name)
        if rows == 0 and MetadataIndex(key, offsets) in storage:
            continue  # torch stores one of several equal empty pieces
        sizes = torch.Size((rows, *tensor.shape[1:]))
        if key not in entries:
            properties = TensorProperties(torch.float32)
            entries[key] = TensorStorageMetadata(properties, torch.Size(tensor.shape), [])
        chunks = entries[key].chunks
        index = MetadataIndex(_own(tensor.name), offsets, len(chunks))
        chunks.append(ChunkStorageMetadata(torch.Size(offsets), sizes))
        length = 4 * sizes.numel() + RECORD_OVERHEAD_BYTES
        n = number % FILES_FOR_RANK
        storage[index] = _StorageInfo(files[n], ends[n], length)
        ends[n] += length


def write_metadata(folder: Path) -> None:
    """Write the `.metadata` of a 671B model."""
    folder.mkdir(parents=True, exist_ok=True)
    gc.disable()  # millions of objects, and no garbage among them
    metadata = deepseek_metadata()
    with (folder / ".metadata").open("wb") as file:
        pickle.dump(metadata, file)


if __name__ == "__main__":
    if sys.argv[1] == "weights":
        write_weights(Path(sys.argv[2]), float(sys.argv[3]))
    elif sys.argv[1] == "config":
        write_config(Path(sys.argv[2]), float(sys.argv[3]))
    else:
        write_metadata(Path(sys.argv[2]))
