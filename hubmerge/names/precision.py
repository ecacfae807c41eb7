"""Tensors that keep their precision whatever the rest is cast to.

Three say so: the user (`--keep-dtype`), the base model (a router's bias that it holds in fp32
beside bf16 weights; or the record of a push that saw it), and the architecture (transformers'
``_keep_in_fp32_modules_strict``, and for float16 also ``_keep_in_fp32_modules``).
"""

from __future__ import annotations

from hubmerge.checkpoint.schema import StoredTensor
from hubmerge.hf_format.dtypes import BY_NAME
from hubmerge.names.architecture import Architecture
from hubmerge.names.options import NamingOptions, matches_any
from hubmerge.names.reference import Reference

_AS_STORED = "auto"
_WIDE = "float32"


class Precision:
    """Decides the dtype of single tensors.

    Args:
        dtype: what the others become.
    """

    def __init__(
        self,
        dtype: str,
        options: NamingOptions,
        architecture: Architecture | None,
        reference: Reference | None,
    ) -> None:
        self._dtype, self._options, self._architecture = dtype, options, architecture
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
        if name in self._pinned:
            return _WIDE
        architecture = self._architecture
        if architecture is not None and architecture.stays_fp32(name_in_memory, self._dtype):
            # A tensor that was trained in less has no more to keep.
            return _WIDE if stored.itemsize >= BY_NAME[_WIDE].itemsize else _AS_STORED
        return None
