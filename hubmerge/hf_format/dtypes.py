"""Element types: torch's name, safetensors' code, size in bytes, and what may be done to them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["float", "scaled", "int", "bool", "complex"]


@dataclass(frozen=True, slots=True)
class DType:
    """One element type.

    Attributes:
        name: torch's name for it, as in ``torch.bfloat16``.
        code: safetensors' name for it, as in the header of a file.
        itemsize: bytes per element.
        kind: only ``float`` is ever cast; ``scaled`` (fp8, fp4) has no meaning without its scale.
        order: the place of its tensors in a file, see `hubmerge.hf_format.safetensors_header`.
    """

    name: str
    code: str
    itemsize: int
    kind: Kind
    order: int

    @property
    def packed(self) -> int:
        """Numbers in one element: torch counts pairs of four bits as one, safetensors as two."""
        return 2 if self.name.endswith("_x2") else 1


# In the order in which safetensors (0.8) lays out tensors of one file: larger alignment first.
_TABLE: tuple[tuple[str, str, int, Kind], ...] = (
    ("uint64", "U64", 8, "int"),
    ("int64", "I64", 8, "int"),
    ("float64", "F64", 8, "float"),
    ("complex64", "C64", 8, "complex"),
    ("float32", "F32", 4, "float"),
    ("uint32", "U32", 4, "int"),
    ("int32", "I32", 4, "int"),
    ("bfloat16", "BF16", 2, "float"),
    ("float16", "F16", 2, "float"),
    ("uint16", "U16", 2, "int"),
    ("int16", "I16", 2, "int"),
    ("float8_e5m2fnuz", "F8_E5M2FNUZ", 1, "scaled"),
    ("float8_e4m3fnuz", "F8_E4M3FNUZ", 1, "scaled"),
    ("float8_e8m0fnu", "F8_E8M0", 1, "scaled"),
    ("float8_e4m3fn", "F8_E4M3", 1, "scaled"),
    ("float8_e5m2", "F8_E5M2", 1, "scaled"),
    ("int8", "I8", 1, "int"),
    ("uint8", "U8", 1, "int"),
    ("float4_e2m1fn_x2", "F4", 1, "scaled"),
    ("bool", "BOOL", 1, "bool"),
)

BY_NAME: dict[str, DType] = {
    name: DType(name, code, itemsize, kind, order)
    for order, (name, code, itemsize, kind) in enumerate(_TABLE)
}
BY_CODE: dict[str, DType] = {dtype.code: dtype for dtype in BY_NAME.values()}

# torch has more than safetensors can hold. They may stand in a checkpoint (an optimizer's, say);
# they are refused only where a weight to be converted has one.
UNSUPPORTED_NAMES = frozenset(
    {
        "complex32",
        "complex128",
        "quint8",
        "qint8",
        "qint32",
        "quint4x2",
        "quint2x4",
        *(f"uint{bits}" for bits in range(1, 8)),
        *(f"int{bits}" for bits in range(1, 8)),
        *(f"bits{shape}" for shape in ("1x8", "2x4", "4x2", "8", "16")),
    }
)
