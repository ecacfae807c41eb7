"""Weights that bitsandbytes packed to 4 or 8 bits, as QLoRA holds its base model.

Two numbers share a byte, and the bytes may be stored as elements of any type: cast, they are
destroyed, and without their scales they mean nothing. Nothing here is ever published as a weight.
"""

from __future__ import annotations

from collections.abc import Mapping

from hubmerge.errors import CheckpointError
from hubmerge.names.structure import has_layers
from hubmerge.names.views import TensorView

# What bitsandbytes stores beside a packed weight.
_SCALES = frozenset(
    {
        "absmax",
        "quant_map",
        "nested_absmax",
        "nested_quant_map",
        "nested_offset",
        "quant_state",
        "SCB",
    }
)

# A linear layer of one input is a column too, but it is not half of a model.
_MOST = 0.5


def refuse_packed(tensors: Mapping[str, TensorView], *, is_peft: bool) -> None:
    """Refuse a model whose weights are packed.

    Args:
        tensors: the model's, by name.
        is_peft: an adapter is stored with them.

    Raises:
        CheckpointError: it is; the hint says what can be published instead.
    """
    found = [name for name in tensors if not _SCALES.isdisjoint(name.split(".")[1:])]
    found = found or _packed_columns(tensors)
    if found:
        instead = "publish the adapter alone (leave --mode full out)"
        raise CheckpointError(
            f"the weights are packed to 4 or 8 bits by bitsandbytes, and cannot be converted: "
            f"{tensors[found[0]].key!r} is one of {len(found)} tensors that show it",
            ("P" + instead[1:] + ", or d" if is_peft else "D")
            + "equantize the model and save it again (model.dequantize() in transformers).",
        )


def _packed_columns(tensors: Mapping[str, TensorView]) -> list[str]:
    """Return packed weights: a column of bytes, or most matrices of the layers columns."""
    columns = [name for name, tensor in tensors.items() if _is_column(tensor)]
    columns = [name for name in columns if name.endswith("weight")]
    as_bytes = [name for name in columns if tensors[name].dtype == "uint8"]
    matrices = [
        name
        for name, tensor in tensors.items()
        if len(tensor.shape) == 2 and has_layers({name: tensor.shape}, [name])
    ]
    inside = set(columns) & set(matrices)
    return as_bytes or (sorted(inside) if len(inside) > _MOST * len(matrices) else [])


def _is_column(tensor: TensorView) -> bool:
    return len(tensor.shape) == 2 and tensor.shape[1] == 1 and tensor.shape[0] > 1
