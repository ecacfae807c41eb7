"""Pickles put together opcode by opcode, since no pickler would write these."""

from __future__ import annotations

import struct

MEMO = b"\x94"


def program(*parts: bytes) -> bytes:
    """A whole pickle of protocol 4 that does `parts` and returns what they leave."""
    return b"\x80\x04" + b"".join(parts) + b"."


def text(value: str) -> bytes:
    """Push a text."""
    data = value.encode("utf-8", "surrogatepass")
    return b"X" + struct.pack("<I", len(data)) + data


def number(value: int) -> bytes:
    """Push an int of any size up to 255 bytes."""
    data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(data)]) + data


def name(module: str, qualified: str) -> bytes:
    """Push a global (STACK_GLOBAL)."""
    return text(module) + text(qualified) + b"\x93"


def tuple_of(*items: bytes) -> bytes:
    """Push a tuple."""
    return b"(" + b"".join(items) + b"t"


def dict_of(*pairs: tuple[bytes, bytes]) -> bytes:
    """Push a dict."""
    return b"}(" + b"".join(key + value for key, value in pairs) + b"u"


def list_of(*items: bytes) -> bytes:
    """Push a list."""
    return b"](" + b"".join(items) + b"e"


def call(function: bytes, *arguments: bytes) -> bytes:
    """Call a global (REDUCE)."""
    return function + tuple_of(*arguments) + b"R"


def built(module: str, qualified: str, state: bytes) -> bytes:
    """An object made without a call (NEWOBJ), then given its state (BUILD)."""
    return name(module, qualified) + b")\x81" + state + b"b"


def get(index: int) -> bytes:
    """Push a memo entry (LONG_BINGET)."""
    return b"j" + struct.pack("<I", index)


DCP = "torch.distributed.checkpoint.metadata"
STORAGE = "torch.distributed.checkpoint.filesystem"


def state_of(**fields: bytes) -> bytes:
    """The state of a dataclass."""
    return dict_of(*((text(key), value) for key, value in fields.items()))


def size(*numbers: int) -> bytes:
    """A `torch.Size`."""
    return call(name("torch", "Size"), tuple_of(*map(number, numbers)))


def chunk(offsets: bytes, sizes: bytes) -> bytes:
    """A `ChunkStorageMetadata`."""
    return built(DCP, "ChunkStorageMetadata", state_of(offsets=offsets, sizes=sizes))


def tensor_entry(shape: bytes, chunks: bytes, dtype: bytes = name("torch", "float32")) -> bytes:
    """A `TensorStorageMetadata`."""
    properties = built(DCP, "TensorProperties", tuple_of(dtype, b"N", b"\x89", b"N", b"\x89"))
    state = state_of(properties=properties, size=shape, chunks=chunks)
    return built(DCP, "TensorStorageMetadata", state)


def index(key: bytes, offset: bytes) -> bytes:
    """A `MetadataIndex`."""
    return built(DCP, "MetadataIndex", state_of(fqn=key, offset=offset, index=b"N"))


def info(path: bytes, offset: bytes, length: bytes, descriptors: bytes = b"N") -> bytes:
    """A `_StorageInfo`."""
    state = state_of(
        relative_path=path, offset=offset, length=length, transform_descriptors=descriptors
    )
    return built(STORAGE, "_StorageInfo", state)


def metadata(entries: bytes, storage: bytes, planner: bytes = b"N", **more: bytes) -> bytes:
    """A whole `.metadata`."""
    state = state_of(
        state_dict_metadata=entries, planner_data=planner, storage_data=storage, **more
    )
    return program(built(DCP, "Metadata", state))


KEY = "model.model.a.weight"
FILE = "__0_0.distcp"


def one_tensor(
    record_bytes: int,
    *,
    key: bytes = text(KEY),
    shape: bytes = size(4, 4),
    offsets: bytes = size(0, 0),
    sizes: bytes = size(4, 4),
    dtype: bytes = name("torch", "float32"),
    path: bytes = text(FILE),
    place: bytes = number(0),
    length: bytes | None = None,
    descriptors: bytes = b"N",
    planner: bytes = b"N",
) -> bytes:
    """The `.metadata` of a checkpoint with one tensor, a part of which may be hostile."""
    length = number(record_bytes) if length is None else length
    return metadata(
        dict_of((key, tensor_entry(shape, list_of(chunk(offsets, sizes)), dtype))),
        dict_of((index(key, offsets), info(path, place, length, descriptors))),
        planner,
    )
