"""`torch.save` records, with every part of them open to change."""

from __future__ import annotations

import struct
import zlib

from tests.security.attacks.pickles import call, list_of, name, number, program, text, tuple_of

PAYLOAD = bytes(range(64))


def entry(
    path: str, data: bytes, *, method: int = 0, claimed: int | None = None, flags: int = 8
) -> bytes:
    """A zip entry as torch writes it: the sizes stand behind the data."""
    encoded = path.encode()
    head = struct.pack("<4s5H3I2H", b"PK\x03\x04", 0, flags, method, 0, 0, 0, 0, 0, len(encoded), 0)
    length = len(data) if claimed is None else claimed
    return head + encoded + data + struct.pack("<4s3I", b"PK\x07\x08", zlib.crc32(data), length,
                                               length)  # fmt: skip


def record(
    pickle: bytes,
    payload: bytes = PAYLOAD,
    *,
    byteorder: bytes = b"little",
    method: int = 0,
    payload_claims: int | None = None,
    payload_name: str = "data/0",
) -> bytes:
    """A whole record."""
    return (
        entry("archive/data.pkl", pickle, method=method)
        + entry("archive/byteorder", byteorder)
        + entry(f"archive/{payload_name}", payload, claimed=payload_claims)
    )


def tensor(
    *,
    storage: bytes = name("torch", "FloatStorage"),
    count: bytes = number(16),
    offset: bytes = number(0),
    sizes: bytes = tuple_of(number(4), number(4)),
    strides: bytes = tuple_of(number(4), number(1)),
    payload_name: bytes = text("0"),
    more: bytes = b"",
) -> bytes:
    """The pickle of a tensor as `torch.save` writes it."""
    pid = tuple_of(text("storage"), storage, payload_name, text("cpu"), count)
    hooks = call(name("collections", "OrderedDict"))
    rebuild = name("torch._utils", "_rebuild_tensor_v2")
    return program(call(rebuild, pid + b"Q", offset, sizes, strides, b"\x89", hooks, more))


def nothing_but_lists() -> bytes:
    """A record of a Python object."""
    return program(list_of(number(1)))
