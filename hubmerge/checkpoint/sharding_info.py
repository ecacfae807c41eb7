"""Read ``DCP_SHARDING_INFO``, which torch's writers put in the header of a safetensors file.

It has the offsets of each entry's box in the whole tensor; the entry itself has only its shape.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping

from hubmerge.errors import CheckpointError
from hubmerge.hf_format.safetensors_header import HeaderTensor, is_sizes

_SHARDING_INFO = "DCP_SHARDING_INFO"


def saved_offsets(
    tensors: Iterable[HeaderTensor], metadata: Mapping[str, str], label: str
) -> dict[str, tuple[int, ...]]:
    """Return the offsets of each entry in its whole tensor, by key, as far as the file has them.

    Args:
        metadata: the header's ``__metadata__``.
        label: the file's name, for messages.

    Raises:
        CheckpointError: the information is malformed.
    """
    try:
        info = json.loads(metadata.get(_SHARDING_INFO, "{}"))
    except (ValueError, RecursionError):
        info = None
    if not isinstance(info, dict):
        raise CheckpointError(f"{label}: {_SHARDING_INFO} in the header is not a JSON object")
    found: dict[str, tuple[int, ...]] = {}
    for tensor in tensors:
        entry = info.get(tensor.name)
        if entry is None:
            continue
        offsets = entry.get("saved_offsets") if isinstance(entry, dict) else None
        if not is_sizes(offsets) or len(offsets) != len(tensor.shape):
            raise CheckpointError(f"{label}: {_SHARDING_INFO} of {tensor.name!r} is malformed")
        found[tensor.name] = tuple(offsets)
    return found
