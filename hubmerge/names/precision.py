"""Tensors that keep their precision whatever the rest is cast to.

Four say so: the user (`--keep-dtype`), the base model (a router's bias that it holds in fp32 beside
bf16 weights; or the record of a push that saw it), the checkpoint itself (a few fp32 tensors in one
of 16 bits, unless the user gives a dtype), and the architecture (transformers'
``_keep_in_fp32_modules_strict``, and for float16 also ``_keep_in_fp32_modules``).
"""

from __future__ import annotations

from collections.abc import Iterable

from hubmerge.checkpoint.schema import StoredTensor
from hubmerge.formatting import format_list
from hubmerge.hf_format.dtypes import BY_NAME, DType
from hubmerge.names.architecture import Architecture
from hubmerge.names.options import NamingOptions, matches_any
from hubmerge.names.reference import Reference

_AS_STORED = "auto"
_WIDE = "float32"
_NARROW = ("bfloat16", "float16")


class Precision:
    """Decides the dtype of single tensors.

    Args:
        dtype: what the others become.
        stored: the tensors that the model is made of.
        is_given: whether the user gave `dtype`. A checkpoint of 16 bits was trained so but for the
            few tensors that need more (a state space's A_log, a router's bias): by default they
            keep it.
    """

    def __init__(
        self,
        dtype: str,
        options: NamingOptions,
        architecture: Architecture | None,
        reference: Reference | None,
        *,
        stored: Iterable[StoredTensor] = (),
        is_given: bool = True,
    ) -> None:
        self._dtype, self._options, self._architecture = dtype, options, architecture
        self._is_given = is_given
        self._is_mixed = dtype in _NARROW and _is_mostly_narrow(stored)
        self._kept: list[str] = []
        self._narrowed: list[str] = []
        self._pinned = set(options.float32)
        main = reference.main_dtype() if reference else None
        if reference is not None and main is not None and main.name != _WIDE:
            self._pinned |= {n for n, dtype in reference.dtypes.items() if dtype.name == _WIDE}

    def dtype(self, name: str, name_in_memory: str, source: StoredTensor) -> str | None:
        """See `Weight.dtype`."""
        stored = BY_NAME.get(source.dtype)
        if matches_any(self._options.keep_dtype, name):
            return _AS_STORED
        if stored is None or stored.kind != "float":
            return None
        if self._is_mixed and _is_wide(stored):
            return self._dtype_beside_16_bit(name)
        if name in self._pinned:
            return _WIDE
        architecture = self._architecture
        if architecture is not None and architecture.stays_fp32(name_in_memory, self._dtype):
            # A tensor that was trained in less has no more to keep.
            return _WIDE if _is_wide(stored) else _AS_STORED
        return None

    def _dtype_beside_16_bit(self, name: str) -> str | None:
        if self._is_given and name not in self._pinned:
            self._narrowed.append(name)
            return None
        self._kept.append(name)
        return _WIDE if name in self._pinned else _AS_STORED

    def notes(self) -> list[str]:
        """Return what the tensors that were decided on keep beyond the rest."""
        if not self._kept:
            return []
        names = format_list(sorted(self._kept))
        them = "it" if len(self._kept) == 1 else "them"
        way_out = "" if self._is_given else f"; --dtype {self._dtype} casts {them} too"
        return [
            f"{_tensors(self._kept)} kept in the float32 that the checkpoint has beside 16-bit "
            f"weights: {names}{way_out}"
        ]

    def warnings(self) -> list[str]:
        """Return what the tensors that were decided on lose that the rest does not."""
        if not self._narrowed:
            return []
        names = format_list(sorted(self._narrowed))
        them = "it" if len(self._narrowed) == 1 else "them"
        return [
            f"{_tensors(self._narrowed)} cast to {self._dtype} although the checkpoint has more "
            f"precision for {them} than for the rest: {names}; --keep-dtype keeps {them}"
        ]


def _tensors(names: list[str]) -> str:
    return "1 tensor is" if len(names) == 1 else f"{len(names)} tensors are"


def _is_wide(dtype: DType) -> bool:
    return dtype.itemsize >= BY_NAME[_WIDE].itemsize


def _is_mostly_narrow(stored: Iterable[StoredTensor]) -> bool:
    """Return whether most bytes of floating tensors are of 16 bits each."""
    wide = narrow = 0
    for tensor in {tensor.key: tensor for tensor in stored}.values():
        dtype = BY_NAME.get(tensor.dtype)
        if dtype is not None and dtype.kind == "float":
            wide += tensor.size_bytes * _is_wide(dtype)
            narrow += tensor.size_bytes * (not _is_wide(dtype))
    return narrow > wide
