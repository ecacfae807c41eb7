"""Storage format: a `torch.save` record, a zip without compression inside a data file.

The zip's entries are walked from the front (`data.pkl`, `byteorder`, then the payload `data/0`),
which takes one small read and works on a compressed stream too, whose end is out of reach.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass

from hubmerge.checkpoint.payload import ByteSource, Payload
from hubmerge.checkpoint.record_pickle import read_pickle
from hubmerge.checkpoint.schema import Chunk
from hubmerge.errors import DamagedFileError
from hubmerge.hf_format.dtypes import DType

ZIP_MAGIC = b"PK\x03\x04"
_DESCRIPTOR_MAGIC = b"PK\x07\x08"

# torch pads entries to 64 bytes and `data.pkl` of one tensor has about 200: the payload starts
# within the first KB, unless `torch.utils.serialization.config` asks for a larger alignment.
_HEAD_BYTES = 2 << 20
_FIRST_READ_BYTES = 4096

# More than any of the entries before the payload has: it is the padding that may be long.
_MAX_ENTRY_BYTES = 64 << 10


@dataclass(frozen=True, slots=True)
class Record:
    """Where a record's elements lie.

    Attributes:
        payload_offset: where the payload begins, in bytes from the start of the record.
        payload_bytes: how long it is.
        offset: where the first element is, in bytes from the start of the record.
        strides: see `Payload`.
        extent: see `Payload`.
    """

    payload_offset: int
    payload_bytes: int
    offset: int
    strides: tuple[int, ...] | None
    extent: int


@dataclass(frozen=True, slots=True)
class _Head:
    """What stands before the payload of a record; offsets from the start of the record."""

    pickle: bytes
    byteorder: bytes
    payload_name: str
    payload_offset: int


def find_in_record(file: ByteSource, chunk: Chunk, dtype: DType) -> Payload:
    """Find the elements of `chunk` in its record.

    Raises:
        DamagedFileError: the record is damaged, or not that of `chunk`.
        UnsafeInputError: it names something to execute.
    """

    def front(size: int) -> bytes:
        data = bytearray(min(size, chunk.length))
        file.read_into(chunk.offset, memoryview(data))
        return bytes(data)

    record = read_record(front, chunk, dtype, file.name)
    if record.payload_offset + record.payload_bytes > chunk.length:
        raise too_short(
            file.name, record.payload_bytes, max(0, chunk.length - record.payload_offset)
        )
    _check_descriptor(file, chunk, record.payload_offset, record.payload_bytes)
    return Payload(file, chunk.offset + record.offset, record.strides, record.extent)


def read_record(front: Callable[[int], bytes], chunk: Chunk, dtype: DType, label: str) -> Record:
    """Check that a record describes `chunk`, and find its elements.

    Args:
        front: returns the first bytes of the record, or all of them if it has fewer.
        label: the file's name, for messages.

    Raises:
        DamagedFileError: the record is damaged, or not that of `chunk`.
        UnsafeInputError: it names something to execute.
    """
    head = _read_head(front, label)
    if head.byteorder not in (b"", b"little"):
        raise DamagedFileError(label, f"the record's byte order is {head.byteorder!r}")
    layout = read_pickle(head.pickle, chunk, dtype, label)
    if layout.payload_name != head.payload_name:
        raise DamagedFileError(label, "the record's pickle names another payload")
    extent = 1 + sum((n - 1) * s for n, s in zip(chunk.sizes, layout.strides, strict=True))
    if 0 in chunk.sizes:
        extent = 0
    needed_bytes = (layout.offset + extent) * dtype.itemsize
    if needed_bytes > layout.storage_bytes:
        raise too_short(label, needed_bytes, layout.storage_bytes)
    return Record(
        head.payload_offset,
        layout.storage_bytes,
        head.payload_offset + layout.offset * dtype.itemsize,
        None if _is_row_major(chunk.sizes, layout.strides) else layout.strides,
        extent,
    )


def too_short(label: str, expected_bytes: int, actual_bytes: int) -> DamagedFileError:
    """Return the error for a record whose payload ends too early."""
    return DamagedFileError(
        label,
        "the record is too short for its tensor",
        expected_bytes=expected_bytes,
        actual_bytes=actual_bytes,
    )


def _read_head(front: Callable[[int], bytes], label: str) -> _Head:
    for size in (_FIRST_READ_BYTES, _HEAD_BYTES):
        head = _walk_head(front(size), label)
        if head is not None:
            return head
    raise DamagedFileError(label, "the record has no payload near its start")


def _walk_head(data: bytes, label: str) -> _Head | None:
    """Walk the zip entries in `data`, the front of a record; None if it is not enough."""
    entries: dict[str, bytes] = {}
    position = 0
    while len(data) - position >= 30:
        signature, _, flags, method, _, _, _, packed_bytes, _, name_bytes, extra_bytes = (
            struct.unpack_from("<4s5H3I2H", data, position)
        )
        if signature != ZIP_MAGIC:
            raise DamagedFileError(label, "the record is not a torch.save zip")
        if method != 0:
            raise DamagedFileError(label, "the record's zip is compressed")
        begin = position + 30 + name_bytes + extra_bytes
        _, _, name = data[position + 30 :][:name_bytes].decode("latin-1").partition("/")
        if name.startswith("data/"):
            return _Head(entries.get("data.pkl", b""), entries.get("byteorder", b""), name, begin)
        has_descriptor = bool(flags & 8)  # the size stands behind the entry, not before it
        end = _find_descriptor(data, begin) if has_descriptor else begin + packed_bytes
        if end < 0:
            return None
        if end - begin > _MAX_ENTRY_BYTES:
            raise DamagedFileError(label, f"the record's {name!r} is too long")
        entries[name] = data[begin:end]
        position = end + 16 if has_descriptor else end
    return None


def _find_descriptor(data: bytes, begin: int) -> int:
    """Return the end of the entry at `begin`, found by the descriptor that repeats its size."""
    end = data.find(_DESCRIPTOR_MAGIC, begin)
    while end >= 0 and len(data) >= end + 16:
        if struct.unpack_from("<I", data, end + 8)[0] == end - begin:
            return end
        end = data.find(_DESCRIPTOR_MAGIC, end + 1)
    return -1


def _check_descriptor(file: ByteSource, chunk: Chunk, begin: int, size: int) -> None:
    """Check that what follows the payload says that it was that long."""
    data = bytearray(min(24, chunk.length - begin - size))
    file.read_into(chunk.offset + begin + size, memoryview(data))
    if data[:4] == ZIP_MAGIC and size == 0:
        return
    sizes = {int.from_bytes(data[8:12], "little"), int.from_bytes(data[8:16], "little")}
    if data[:4] != _DESCRIPTOR_MAGIC or size not in sizes:
        raise DamagedFileError(file.name, "the record's zip structure is damaged")


def _is_row_major(sizes: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    expected = 1
    for size, stride in zip(reversed(sizes), reversed(strides), strict=True):
        if size != 1 and stride != expected:
            return 0 in sizes
        expected *= size
    return True
