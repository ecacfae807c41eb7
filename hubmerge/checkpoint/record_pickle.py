"""Read the small pickle in each `torch.save` record, which describes the tensor beside it.

It is read with stand-ins, and the type of every value is checked before it is used, compared or
printed: a few bytes of pickle can describe a structure that takes forever to print.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hubmerge.checkpoint.schema import Chunk
from hubmerge.checkpoint.unpickle import Inert, load, new_dict, pairs, same_tuple
from hubmerge.errors import CheckpointError, DamagedFileError
from hubmerge.hf_format.dtypes import BY_NAME, DType

# torch allows 64 dimensions; two more numbers are checked together with the strides.
_MAX_NUMBERS = 66

_STORAGE_DTYPES = {
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
    "ComplexFloatStorage": "complex64",
}


class _RebuildTensor(Inert):
    __slots__ = ()


class _RebuildParameter(Inert):
    __slots__ = ()


_STAND_INS: dict[tuple[str, str], Any] = {
    ("torch._utils", "_rebuild_tensor_v2"): _RebuildTensor,
    ("torch._utils", "_rebuild_tensor_v3"): _RebuildTensor,
    ("torch._utils", "_rebuild_parameter"): _RebuildParameter,
    ("torch.storage", "UntypedStorage"): "untyped",
    ("torch", "Size"): same_tuple,
    ("collections", "OrderedDict"): new_dict,
    **{("torch", storage): dtype for storage, dtype in _STORAGE_DTYPES.items()},
}


def _dtype_name(module: str, name: str) -> str | None:
    return name if module == "torch" and name in BY_NAME else None


@dataclass(frozen=True, slots=True)
class Layout:
    """Where a record's elements lie in its payload.

    Attributes:
        offset, strides: in elements.
        storage_bytes: size of the payload.
        payload_name: its entry in the zip.
    """

    offset: int
    strides: tuple[int, ...]
    storage_bytes: int
    payload_name: str


def read_pickle(data: bytes, chunk: Chunk, dtype: DType, label: str) -> Layout:
    """Check that a record's pickle describes `chunk`: dtype, shape and strides.

    Raises:
        DamagedFileError: it describes something else.
        CheckpointError: it describes a kind of view that is not supported.
        UnsafeInputError: it names something to execute.
    """
    # A persistent id is ("storage", type, name of the zip entry, device, number of elements).
    value = load(data, f"{label} (data.pkl)", _STAND_INS, _dtype_name, _storage)
    if isinstance(value, _RebuildParameter):
        value = next(iter(_args(value)), None)
    args = _args(value) if isinstance(value, _RebuildTensor) else ()
    if len(args) < 6 or not isinstance(args[0], _Storage):
        raise DamagedFileError(label, "the record does not hold a plain tensor")
    storage, offset, sizes, strides = args[:4]
    # _rebuild_tensor_v3 has the dtype as its seventh argument, v2 in the storage type.
    is_untyped = storage.dtype == "untyped"
    found = (args[6] if len(args) > 6 else None) if is_untyped else storage.dtype
    if not (isinstance(found, str) and isinstance(sizes, tuple) and _are_numbers(sizes)):
        raise DamagedFileError(label, "the record's dtype or shape is malformed")
    if (found, sizes) != (dtype.name, chunk.sizes):
        raise DamagedFileError(
            label, f"the record holds {found} {sizes} instead of {dtype.name} {chunk.sizes}"[:300]
        )
    if any(value for flags in args[6:] for _, value in pairs(flags) or ()):
        raise CheckpointError(
            f"{label}: a tensor in it is a conjugated or negated view, which is not supported",
            "Save it with resolve_conj() and resolve_neg().",
        )
    if not (
        isinstance(storage.name, str)
        and isinstance(strides, tuple)
        and len(strides) == len(sizes)
        and _are_numbers((offset, storage.count, *strides))
    ):
        raise DamagedFileError(label, "the record's strides are malformed")
    storage_bytes = storage.count * (1 if is_untyped else dtype.itemsize)
    return Layout(offset, strides, storage_bytes, f"data/{storage.name}")


def _args(value: Inert) -> tuple[Any, ...]:
    return getattr(value, "args", ())


def _are_numbers(values: tuple[Any, ...]) -> bool:
    return len(values) <= _MAX_NUMBERS and all(type(n) is int and 0 <= n < 2**62 for n in values)


@dataclass(frozen=True, slots=True)
class _Storage:
    dtype: Any
    name: Any
    count: Any


def _storage(pid: Any) -> _Storage | None:
    if isinstance(pid, tuple) and len(pid) == 5 and pid[0] == "storage":
        return _Storage(pid[1], pid[2], pid[4])
    return None
