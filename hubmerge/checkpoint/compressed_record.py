"""Storage format: a `torch.save` record behind codecs (``stream.zstd/1``), read as a stream."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import IO, Any, cast

from hubmerge.checkpoint.payload import ByteSource, Payload
from hubmerge.checkpoint.schema import Chunk
from hubmerge.checkpoint.torch_record import read_record
from hubmerge.errors import CheckpointError, DamagedFileError, HubmergeError, UnsafeInputError
from hubmerge.hf_format.dtypes import DType

# A larger window would be allocated only because the file says so.
_MAX_WINDOW_BYTES = 2**27


def find_in_compressed(file: ByteSource, chunk: Chunk, dtype: DType) -> Payload:
    """Find the elements of `chunk` in its record, decompressed.

    Raises:
        CheckpointError: a codec is unknown or not installed.
        DamagedFileError: the record is damaged, or not that of `chunk`.
        UnsafeInputError: it names something to execute, or is compressed twice.
    """
    record = read_record(lambda size: _front(file, chunk, size), chunk, dtype, file.name)
    if record.payload_bytes != prod(chunk.sizes) * dtype.itemsize:
        # Else a few bytes could claim to hold more than memory does, or hours of decompression.
        raise DamagedFileError(
            file.name,
            "the compressed record claims another size than its tensor has",
            expected_bytes=prod(chunk.sizes) * dtype.itemsize,
            actual_bytes=record.payload_bytes,
        )
    stream = _Stream(lambda: _decoded(file, chunk), file.name)
    return Payload(stream, record.offset, record.strides, record.extent)


class _Stream:
    """A decompressed record: read forward, from the start again for a step back."""

    def __init__(self, open_stream: Callable[[], Any], name: str) -> None:
        self.name = name
        self._open = open_stream
        self._stream, self._position = open_stream(), 0
        self._viewed: dict[tuple[int, int], memoryview] = {}

    def read_into(self, offset: int, buffer: memoryview) -> None:
        if offset < self._position:
            self._stream, self._position = self._open(), 0
        while self._position < offset:
            self._position += len(self._read(min(offset - self._position, 1 << 20)))
        done = 0
        while done < len(buffer):
            data = self._read(len(buffer) - done)
            buffer[done : done + len(data)] = data
            done += len(data)
        self._position += done

    def view(self, offset: int, length: int) -> memoryview:
        # Kept, since each slab of the tensor asks for it again, and would decompress it again.
        if (offset, length) not in self._viewed:
            buffer = memoryview(bytearray(length))
            self.read_into(offset, buffer)
            self._viewed = {(offset, length): buffer}
        return self._viewed[offset, length]

    def _read(self, size: int) -> bytes:
        data = _decompress(self._stream, size, self.name)
        if not data:
            raise DamagedFileError(self.name, "the compressed record ends too early")
        return data


class _CompressedBytes:
    """A file-like view of one chunk's stored bytes, for the decompressor."""

    def __init__(self, file: ByteSource, chunk: Chunk) -> None:
        self._file = file
        self._position, self._end = chunk.offset, chunk.offset + chunk.length

    def read(self, size: int = -1) -> bytes:
        left = self._end - self._position
        buffer = bytearray(left if size < 0 else min(size, left))
        self._file.read_into(self._position, memoryview(buffer))
        self._position += len(buffer)
        return bytes(buffer)


def _front(file: ByteSource, chunk: Chunk, size: int) -> bytes:
    stream = _decoded(file, chunk)
    front = b""
    while len(front) < size and (data := _decompress(stream, size - len(front), file.name)):
        front += data
    return front


def _decompress(stream: Any, size: int, label: str) -> bytes:
    try:
        data: bytes = stream.read(size)
    except HubmergeError:
        raise
    except Exception as error:  # noqa: BLE001 - zstandard has its own exception, and it is optional
        raise DamagedFileError(label, f"cannot be decompressed: {error}") from None
    return data


def _decoded(file: ByteSource, chunk: Chunk) -> Any:
    """Return the chunk's bytes behind all its codecs, to be read forward."""
    stream: Any = _CompressedBytes(file, chunk)
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


def _zstd(source: _CompressedBytes) -> Any:
    try:
        import zstandard
    except ImportError:
        raise CheckpointError(
            "the checkpoint is compressed with zstd, and zstandard is not installed",
            "Install it: pip install 'hubmerge[zstd]'",
        ) from None
    decompressor = zstandard.ZstdDecompressor(max_window_size=_MAX_WINDOW_BYTES)
    return decompressor.stream_reader(cast("IO[bytes]", source), read_across_frames=True)


_CODECS: dict[str, Callable[[Any], Any]] = {"stream.zstd/1": _zstd}
