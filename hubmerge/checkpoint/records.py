"""Where the elements of a stored chunk lie, and reading them.

A chunk is stored in one of three ways, told apart by its first bytes:

- a `torch.save` record: a zip without compression inside the data file. Its entries are walked
  from the front (`data.pkl`, `byteorder`, then the payload `data/0`), which takes one small read,
  and works on a compressed stream too, where the directory at the end is out of reach;
- that record, compressed (``stream.zstd/1``): read forward as a stream;
- an entry of a safetensors data file, found by its key.

Nothing is unpickled but by `hubmerge.checkpoint.unpickle`, and every size is checked against the
chunk's own box and the file before a byte is read. Errors name the file and the tensor.
"""

from __future__ import annotations

import mmap
import os
import resource
import struct
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import IO, Any, Protocol, cast

from hubmerge.checkpoint.files import open_inside
from hubmerge.checkpoint.record_pickle import read_pickle
from hubmerge.checkpoint.schema import Chunk
from hubmerge.checkpoint.sharding_info import saved_offsets
from hubmerge.errors import CheckpointError, DamagedFileError, HubmergeError, UnsafeInputError
from hubmerge.hf_format.dtypes import DType
from hubmerge.hf_format.safetensors_header import HeaderTensor, read_header

# torch pads entries to 64 bytes and `data.pkl` of one tensor has about 200: the payload starts
# within the first KB, unless `torch.utils.serialization.config` asks for a larger alignment.
_HEAD_BYTES = 2 << 20
_FIRST_READ_BYTES = 4096

# More than any of the entries before the payload has: it is the padding that may be long.
_SMALL_BYTES = 64 << 10

_ZIP_MAGIC = b"PK\x03\x04"

# A sample of a file, evenly spread over it.
_SAMPLES = 5
_SAMPLE_BYTES = 4096


class Source(Protocol):
    """Bytes that can be read at an offset (cheaply only forward, for a compressed record)."""

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` with the bytes from `offset` on."""

    def view(self, offset: int, length: int) -> memoryview:
        """The bytes from `offset` on, writable, without a promise about memory."""


@dataclass(frozen=True, slots=True)
class Payload:
    """The elements of a chunk.

    Attributes:
        source, offset: where the first element is.
        strides: in elements, where they are not row-major (channels_last); else None.
        extent: elements from the first to the last, both included.
    """

    source: Source
    offset: int
    strides: tuple[int, ...] | None
    extent: int


# Tensors of a safetensors file by key, and where they begin in their whole, if the file says so.
_Entries = dict[str, tuple[HeaderTensor, tuple[int, ...] | None]]


class _File:
    """A data file, open for reading; closed when nobody holds it."""

    def __init__(self, folder: Path, name: str) -> None:
        self.name = name
        self._fd = open_inside(folder, name)
        self.size = os.fstat(self._fd).st_size

    def __del__(self) -> None:
        if hasattr(self, "_fd"):
            os.close(self._fd)

    def safetensors_at(self, offset: int) -> _Entries:
        """What the safetensors data that begin at `offset` hold, by key; one thread a time."""
        with open(os.dup(self._fd), "rb") as opened:
            tensors, metadata = read_header(opened, self.name, offset)
        offsets = saved_offsets(tensors, metadata, self.name)
        return {tensor.name: (tensor, offsets.get(tensor.name)) for tensor in tensors}

    def read_into(self, offset: int, buffer: memoryview) -> None:
        done = 0
        while done < len(buffer):
            try:
                count = os.preadv(self._fd, [buffer[done:]], offset + done)
            except OSError as error:
                raise DamagedFileError(self.name, f"cannot be read: {error.strerror}") from None
            if count == 0:
                raise DamagedFileError(
                    self.name,
                    "became shorter while it was read",
                    expected_bytes=offset + len(buffer),
                    actual_bytes=offset + done,
                )
            done += count

    def view(self, offset: int, length: int) -> memoryview:
        # Not closed by hand: the view keeps it alive, and the last holder drops it.
        start = offset - offset % mmap.ALLOCATIONGRANULARITY
        mapped = mmap.mmap(self._fd, length + offset - start, access=mmap.ACCESS_COPY, offset=start)
        return memoryview(mapped)[offset - start :]


class _Reopened:
    """A data file by its name, opened anew if it was closed since it was read last.

    A tensor may have its parts in more files than can be open at a time.
    """

    def __init__(self, files: DataFiles, name: str) -> None:
        self.name = name
        self._files = files

    def read_into(self, offset: int, buffer: memoryview) -> None:
        self._files.file(self.name).read_into(offset, buffer)

    def view(self, offset: int, length: int) -> memoryview:
        return self._files.file(self.name).view(offset, length)


class _Stream:
    """A record behind codecs: decompressed forward, from the start again for a step back."""

    def __init__(self, open_stream: Callable[[], Any], name: str) -> None:
        self._open, self._name = open_stream, name
        self._stream, self._position = open_stream(), 0
        self._viewed: dict[tuple[int, int], memoryview] = {}

    def read_into(self, offset: int, buffer: memoryview) -> None:
        if offset < self._position:
            self._stream, self._position = self._open(), 0
        while self._position < offset:
            self._position += len(self._read(min(offset - self._position, 1 << 20)))
        done = 0
        while done < len(buffer):
            piece = self._read(len(buffer) - done)
            buffer[done : done + len(piece)] = piece
            done += len(piece)
        self._position += done

    def view(self, offset: int, length: int) -> memoryview:
        # Kept, since each slab of the tensor asks for it again, and would decompress it again.
        if (offset, length) not in self._viewed:
            buffer = memoryview(bytearray(length))
            self.read_into(offset, buffer)
            self._viewed = {(offset, length): buffer}
        return self._viewed[offset, length]

    def _read(self, size: int) -> bytes:
        try:
            piece: bytes = self._stream.read(size)
        except HubmergeError:
            raise
        except Exception as error:  # noqa: BLE001 - zstandard has its own exception, and it is optional
            raise DamagedFileError(self._name, f"cannot be decompressed: {error}") from None
        if not piece:
            raise DamagedFileError(self._name, "the compressed record ends too early")
        return piece


class _Slice:
    """A file-like view of one record, for the decompressor."""

    def __init__(self, file: _Reopened, offset: int, length: int) -> None:
        self._file, self._position, self._end = file, offset, offset + length

    def read(self, size: int = -1) -> bytes:
        left = self._end - self._position
        buffer = bytearray(left if size < 0 else min(size, left))
        self._file.read_into(self._position, memoryview(buffer))
        self._position += len(buffer)
        return bytes(buffer)


def _zstd(source: _Slice) -> Any:
    try:
        import zstandard
    except ImportError:
        raise CheckpointError(
            "the checkpoint is compressed with zstd, and zstandard is not installed",
            "Install it: pip install 'hubmerge[zstd]'",
        ) from None
    # A window beyond this would be allocated because the file says so.
    decompressor = zstandard.ZstdDecompressor(max_window_size=2**27)
    return decompressor.stream_reader(cast("IO[bytes]", source), read_across_frames=True)


_CODECS: dict[str, Callable[[Any], Any]] = {"stream.zstd/1": _zstd}


def _most_open_files() -> int:
    """How many files to keep open: half of what this process may have, or as good as all."""
    allowed, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return 1 << 20 if allowed == resource.RLIM_INFINITY else max(1, allowed // 2)


class DataFiles:
    """The data files of one checkpoint; safe to use from many threads."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder.resolve()
        self._open: OrderedDict[str, _File] = OrderedDict()
        self._most_open = _most_open_files()
        self._lock = threading.Lock()
        self._headers: dict[tuple[str, int], _Entries] = {}
        self._headers_lock = threading.Lock()

    def file(self, name: str) -> _File:
        with self._lock:
            file = self._open.pop(name, None) or _File(self._folder, name)
            self._open[name] = file
            if len(self._open) > self._most_open:
                self._open.popitem(last=False)
        return file

    def check_sizes(
        self, expected_bytes: dict[str, int], first_key_past: Callable[[str, int], str | None]
    ) -> None:
        """Prove that each file is there, regular, and long enough, before any work is done.

        Args:
            first_key_past: a tensor that needs bytes of a file from an offset on, for the message.

        Raises:
            DamagedFileError, UnsafeInputError: one is not.
        """
        for name, size in expected_bytes.items():
            actual = 0
            try:
                actual = self.file(name).size
                if actual < size:
                    raise DamagedFileError(name, "the file is too short", actual_bytes=actual)
            except DamagedFileError as error:
                raise error.while_reading(first_key_past(name, actual), size) from None

    def is_record(self, chunk: Chunk) -> bool:
        """Is it a `torch.save` record? Otherwise it is in safetensors data."""
        prefix = bytearray(4)
        self.file(chunk.file).read_into(chunk.offset, memoryview(prefix))
        return prefix == _ZIP_MAGIC

    def sample(self, name: str) -> bytes:
        """Name, size and a few KB of a file: enough to tell two checkpoints apart."""
        file = self.file(name)
        pieces = [f"{name}\0{file.size}\0".encode()]
        for place in range(_SAMPLES):
            offset = (file.size - _SAMPLE_BYTES) * place // (_SAMPLES - 1)
            piece = bytearray(min(_SAMPLE_BYTES, file.size))
            file.read_into(max(0, offset), memoryview(piece))
            pieces.append(bytes(piece))
        return b"".join(pieces)

    def sample_chunk(self, chunk: Chunk) -> bytes:
        """The middle of what is stored of a chunk, or all of it where that is little."""
        piece = bytearray(min(_SAMPLE_BYTES, chunk.length))
        offset = chunk.offset + (chunk.length - len(piece)) // 2
        self.file(chunk.file).read_into(offset, memoryview(piece))
        return bytes(piece)

    def payload(self, chunk: Chunk, key: str, dtype: DType) -> Payload:
        """Find the elements of `chunk`, a piece of the tensor `key`.

        Raises:
            DamagedFileError: what is stored there is not that chunk.
            UnsafeInputError: the record names something to execute.
        """
        file = _Reopened(self, chunk.file)
        if not chunk.is_record:
            return Payload(file, chunk.offset, None, prod(chunk.sizes))
        try:
            if not chunk.codecs and not self.is_record(chunk):
                return self._safetensors_payload(file, chunk, key, dtype)
            return _record_payload(file, chunk, dtype)
        except DamagedFileError as error:
            raise error.while_reading(key) from None
        except UnsafeInputError as error:
            raise UnsafeInputError(f"{error}, while reading {key!r}", error.hint) from None

    def _safetensors_payload(
        self, file: _Reopened, chunk: Chunk, key: str, dtype: DType
    ) -> Payload:
        # Pickled objects may stand before the safetensors data: these begin where the chunk says.
        try:
            entries = self._header(chunk.file, chunk.offset)
        except CheckpointError as error:
            raise DamagedFileError(
                file.name, f"holds neither a record nor safetensors data there ({error})"
            ) from None
        if key not in entries:
            raise DamagedFileError(file.name, "the tensor is not in it")
        entry, offsets = entries[key]
        if offsets not in (None, chunk.offsets):
            # torch's writer keeps one part of each tensor in a file, and loses the others.
            raise DamagedFileError(
                file.name, f"holds the part at {offsets} instead of the one at {chunk.offsets}"
            )
        if (entry.dtype, entry.shape) != (dtype, chunk.sizes):
            raise DamagedFileError(
                file.name,
                f"holds {entry.dtype.name} {entry.shape} instead of {dtype.name} {chunk.sizes}",
            )
        return Payload(file, entry.offset, None, prod(chunk.sizes))

    def _header(self, name: str, offset: int) -> _Entries:
        """What the safetensors data that begin there hold; read once."""
        with self._headers_lock:
            if (name, offset) not in self._headers:
                self._headers[name, offset] = self.file(name).safetensors_at(offset)
            return self._headers[name, offset]


@dataclass(frozen=True, slots=True)
class _Head:
    """What stands before the payload of a record; offsets from the start of the record."""

    pickle: bytes
    byteorder: bytes
    payload_name: str
    payload_offset: int


def _record_payload(file: _Reopened, chunk: Chunk, dtype: DType) -> Payload:
    head = _read_head(file, chunk)
    if head.byteorder not in (b"", b"little"):
        raise DamagedFileError(file.name, f"the record's byte order is {head.byteorder!r}")
    layout = read_pickle(head.pickle, chunk, dtype, file.name)
    if layout.payload_name != head.payload_name:
        raise DamagedFileError(file.name, "the record's pickle names another payload")
    offset, strides, storage_bytes = layout.offset, layout.strides, layout.storage_bytes
    extent = 1 + sum((n - 1) * s for n, s in zip(chunk.sizes, strides, strict=True))
    if 0 in chunk.sizes:
        extent = 0
    needed_bytes = (offset + extent) * dtype.itemsize
    payload_end = head.payload_offset + storage_bytes
    if needed_bytes > storage_bytes or (not chunk.codecs and payload_end > chunk.length):
        raise DamagedFileError(
            file.name,
            "the record is too short for its tensor",
            expected_bytes=max(needed_bytes, storage_bytes),
            actual_bytes=min(storage_bytes, chunk.length - head.payload_offset),
        )
    if chunk.codecs:
        # Else a few bytes could claim to hold more than memory does, or hours of decompression.
        if storage_bytes != prod(chunk.sizes) * dtype.itemsize:
            raise DamagedFileError(
                file.name,
                "the compressed record claims another size than its tensor has",
                expected_bytes=prod(chunk.sizes) * dtype.itemsize,
                actual_bytes=storage_bytes,
            )
        source: Source = _Stream(lambda: _decoded(file, chunk), file.name)
        start = 0
    else:
        source, start = file, chunk.offset
        _check_descriptor(file, chunk, head.payload_offset, storage_bytes)
    first = start + head.payload_offset + offset * dtype.itemsize
    return Payload(source, first, None if _is_row_major(chunk.sizes, strides) else strides, extent)


def _decoded(file: _Reopened, chunk: Chunk) -> Any:
    stream: Any = _Slice(file, chunk.offset, chunk.length)
    if len(set(chunk.codecs)) < len(chunk.codecs):
        raise UnsafeInputError(f"{file.name}: compressed twice, as no writer does")
    for name in chunk.codecs:
        codec = _CODECS.get(name)
        if codec is None:
            raise CheckpointError(
                f"{file.name}: stored through {name!r}, which is unknown",
                f"Known are: {', '.join(_CODECS)}. Save the checkpoint without that extension.",
            )
        stream = codec(stream)
    return stream


def _read_front(file: _Reopened, chunk: Chunk, size: int) -> bytes:
    """The first `size` bytes of the record, decoded; fewer where it is shorter."""
    if not chunk.codecs:
        return _Slice(file, chunk.offset, chunk.length).read(size)
    stream = _decoded(file, chunk)
    front = b""
    try:
        while len(front) < size and (piece := stream.read(size - len(front))):
            front += piece
    except HubmergeError:
        raise
    except Exception as error:  # noqa: BLE001 - zstandard has its own exception, and it is optional
        raise DamagedFileError(file.name, f"cannot be decompressed: {error}") from None
    return front


def _read_head(file: _Reopened, chunk: Chunk) -> _Head:
    for size in (_FIRST_READ_BYTES, _HEAD_BYTES):
        head = _walk_head(_read_front(file, chunk, size), file.name)
        if head is not None:
            return head
    raise DamagedFileError(file.name, "the record has no payload near its start")


def _walk_head(data: bytes, label: str) -> _Head | None:
    """Walk the zip entries in `data`, the front of a record; None where it is not enough."""
    small: dict[str, bytes] = {}
    position = 0
    while len(data) - position >= 30:
        signature, _, flags, method, _, _, _, packed_bytes, _, name_bytes, extra_bytes = (
            struct.unpack_from("<4s5H3I2H", data, position)
        )
        if signature != _ZIP_MAGIC:
            raise DamagedFileError(label, "the record is not a torch.save zip")
        if method != 0:
            raise DamagedFileError(label, "the record's zip is compressed")
        begin = position + 30 + name_bytes + extra_bytes
        _, _, name = data[position + 30 :][:name_bytes].decode("latin-1").partition("/")
        if name.startswith("data/"):
            return _Head(small.get("data.pkl", b""), small.get("byteorder", b""), name, begin)
        has_descriptor = bool(flags & 8)  # the size stands behind the entry, not before it
        end = _find_descriptor(data, begin) if has_descriptor else begin + packed_bytes
        if end < 0:
            return None
        if end - begin > _SMALL_BYTES:
            raise DamagedFileError(label, f"the record's {name!r} is too long")
        small[name] = data[begin:end]
        position = end + 16 if has_descriptor else end
    return None


def _find_descriptor(data: bytes, begin: int) -> int:
    """The end of the entry that begins at `begin`, told by the descriptor that repeats its size."""
    end = data.find(b"PK\x07\x08", begin)
    while end >= 0 and len(data) >= end + 16:
        if struct.unpack_from("<I", data, end + 8)[0] == end - begin:
            return end
        end = data.find(b"PK\x07\x08", end + 1)
    return -1


def _check_descriptor(file: _Reopened, chunk: Chunk, begin: int, size: int) -> None:
    """What follows the payload must say that it was that long."""
    data = bytearray(min(24, chunk.length - begin - size))
    file.read_into(chunk.offset + begin + size, memoryview(data))
    if data[:4] == _ZIP_MAGIC and size == 0:
        return
    sizes = {int.from_bytes(data[8:12], "little"), int.from_bytes(data[8:16], "little")}
    if data[:4] != b"PK\x07\x08" or size not in sizes:
        raise DamagedFileError(file.name, "the record's zip structure is damaged")


def _is_row_major(sizes: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    expected = 1
    for size, stride in zip(reversed(sizes), reversed(strides), strict=True):
        if size != 1 and stride != expected:
            return 0 in sizes
        expected *= size
    return True
