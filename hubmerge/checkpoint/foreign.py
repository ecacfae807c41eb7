"""Recognize checkpoints of other tools by file name, and name the tool that converts each."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from hubmerge.checkpoint.files import read_inside
from hubmerge.errors import HubmergeError, NotACheckpointError

_MEGATRON_FILE = "metadata.json"
_MAX_JSON_BYTES = 2**20


@dataclass(frozen=True, slots=True)
class _Foreign:
    """A kind of checkpoint: one file name that matches `pattern` is proof enough."""

    tool: str
    pattern: re.Pattern[str]
    hint: str


_FOREIGN = (
    _Foreign(
        "verl's own format",
        re.compile(r"model_world_size_\d+_rank_\d+\.pt"),
        "Use verl's merger: python -m verl.model_merger merge --backend fsdp "
        "--local_dir FOLDER --target_dir OUT.",
    ),
    _Foreign(
        "a DeepSpeed checkpoint",
        re.compile(r"(bf16_|fp16_)?zero_pp_rank_\d+_.*\.pt|mp_rank_\d+_model_states\.pt"),
        "Use DeepSpeed's script in the same folder: python zero_to_fp32.py FOLDER OUT.",
    ),
    _Foreign(
        "a Megatron-LM checkpoint",
        re.compile(r"latest_checkpointed_iteration\.txt|model_optim_rng\.pt|distrib_optim\.pt"),
        "Use Megatron Bridge (AutoBridge.export_ckpt), or Megatron-LM's "
        "tools/checkpoint/convert.py.",
    ),
    _Foreign(
        "one file per rank, written by accelerate without torch.distributed.checkpoint",
        re.compile(r"pytorch_model_fsdp_\d+_rank_?\d+\.bin"),
        "Save with the FSDP plugin's SHARDED_STATE_DICT and use_dcp=True.",
    ),
)


# Weights that may lie beside a distributed checkpoint. Without one, they explain what was found.
_OTHER_WEIGHTS = (
    _Foreign(
        "a whole state dict in one pickled file",
        re.compile(r"pytorch_model(_fsdp)?(_\d+)?(-\d+-of-\d+)?\.bin"),
        "Load it into the model and call save_pretrained, or save with SHARDED_STATE_DICT.",
    ),
    _Foreign(
        "a checkpoint of torch_checkpointing",
        re.compile(r"metadata\.pkl"),
        "Convert it with torch_checkpointing.hf.consolidate_hf_safetensors_checkpoint, or save "
        "with dcp.save.",
    ),
    _Foreign(
        "a model that is already in safetensors",
        re.compile(r"(model|adapter_model|diffusion_pytorch_model)(-\d+-of-\d+)?\.safetensors"),
        "Upload it as it is: hf upload ORG/NAME FOLDER",
    ),
)


def refuse_foreign(folder: Path) -> None:
    """Raise NotACheckpointError if `folder` holds another tool's checkpoint."""
    if not folder.is_dir():
        return
    names = _names_in(folder)
    for refusal in _matches(folder, names, _FOREIGN):
        raise refusal
    if _MEGATRON_FILE in names and _is_megatron(folder):
        raise NotACheckpointError(
            f"{folder}: is a Megatron distributed checkpoint (metadata.json names its backend)",
            "Its layers are stacked and its attention is fused: use Megatron Bridge "
            "(AutoBridge.export_ckpt), or NeMo's export for a NeMo checkpoint.",
        )


def other_weights(folder: Path) -> Iterator[NotACheckpointError]:
    """Yield an error for each kind of weights in `folder` that is not a distributed checkpoint."""
    return _matches(folder, _names_in(folder), _OTHER_WEIGHTS)


def _names_in(folder: Path) -> list[str]:
    try:
        return sorted(path.name for path in folder.iterdir())
    except OSError as error:
        raise NotACheckpointError(f"{folder}: cannot be listed: {error.strerror}") from None


def _matches(
    folder: Path, names: list[str], kinds: tuple[_Foreign, ...]
) -> Iterator[NotACheckpointError]:
    for kind in kinds:
        match = next(filter(kind.pattern.fullmatch, names), None)
        if match is not None:
            yield NotACheckpointError(f"{folder}: is {kind.tool} ({match})", kind.hint)


def _is_megatron(folder: Path) -> bool:
    try:
        value = json.loads(read_inside(folder.resolve(), _MEGATRON_FILE, _MAX_JSON_BYTES))
    except (HubmergeError, ValueError, RecursionError):
        return False  # another kind of file, which nothing reads
    return isinstance(value, dict) and "sharded_backend" in value
