"""The data files of a checkpoint, and where the elements of a stored chunk lie in them.

A chunk is stored in one of four ways: as the bare elements, as a `torch.save` record
(`torch_record`), as such a record behind a codec (`compressed_record`), or as an entry of
safetensors data (`safetensors_data`). A record and safetensors data are told apart by their first
bytes. Nothing is unpickled but by `hubmerge.checkpoint.unpickle`, and every size is checked against
the chunk's own box and the file before a byte is read. Errors name the file and the tensor.
"""

from __future__ import annotations

import mmap
import os
import resource
import threading
from collections import OrderedDict
from collections.abc import Callable
from math import prod
from pathlib import Path

from hubmerge.checkpoint.compressed_record import find_in_compressed
from hubmerge.checkpoint.description import missing_files
from hubmerge.checkpoint.files import open_inside
from hubmerge.checkpoint.payload import Payload
from hubmerge.checkpoint.safetensors_data import Entries, find_entry, read_entries
from hubmerge.checkpoint.schema import Chunk
from hubmerge.checkpoint.torch_record import ZIP_MAGIC, find_in_record
from hubmerge.errors import CheckpointError, DamagedFileError, UnsafeInputError
from hubmerge.hf_format.dtypes import DType

# A sample of a file, evenly spread over it.
_SAMPLES = 5
_SAMPLE_BYTES = 4096


class _File:
    """A data file, open for reading; closed when nobody holds it."""

    def __init__(self, folder: Path, name: str) -> None:
        self.name = name
        self._fd = open_inside(folder, name)
        self.size = os.fstat(self._fd).st_size

    def __del__(self) -> None:
        if hasattr(self, "_fd"):
            os.close(self._fd)

    def safetensors_at(self, offset: int) -> Entries:
        """Read the header of the safetensors data at `offset`; one thread at a time."""
        with open(os.dup(self._fd), "rb") as opened:
            return read_entries(opened, self.name, offset)

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
    """A data file by its name, opened again if it was closed since it was last read.

    A tensor may have its chunks in more files than can be open at a time.
    """

    def __init__(self, files: DataFiles, name: str) -> None:
        self.name = name
        self._files = files

    def read_into(self, offset: int, buffer: memoryview) -> None:
        self._files.file(self.name).read_into(offset, buffer)

    def view(self, offset: int, length: int) -> memoryview:
        return self._files.file(self.name).view(offset, length)


def _max_open_files() -> int:
    """Return how many files to keep open: half of what this process may have, or nearly all."""
    allowed, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return 1 << 20 if allowed == resource.RLIM_INFINITY else max(1, allowed // 2)


class DataFiles:
    """The data files of one checkpoint; safe to use from many threads."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder.resolve()
        self._open: OrderedDict[str, _File] = OrderedDict()
        self._max_open = _max_open_files()
        self._lock = threading.Lock()
        self._headers: dict[tuple[str, int], Entries] = {}
        self._headers_lock = threading.Lock()

    def file(self, name: str) -> _File:
        """Return the file, opened if it is not open."""
        with self._lock:
            file = self._open.pop(name, None) or _File(self._folder, name)
            self._open[name] = file
            if len(self._open) > self._max_open:
                self._open.popitem(last=False)
        return file

    def check_sizes(
        self, expected_bytes: dict[str, int], first_key_past: Callable[[str, int], str | None]
    ) -> None:
        """Prove that each file is there, regular, and long enough, before any work is done.

        Args:
            expected_bytes: how long each file must be, by name.
            first_key_past: returns a tensor that needs bytes of a file from an offset on.

        Raises:
            DamagedFileError: a file is missing or too short.
            UnsafeInputError: it is not a regular file, or lies outside the folder.
        """
        for name, size in expected_bytes.items():
            actual = 0
            try:
                actual = self.file(name).size
                if actual < size:
                    raise DamagedFileError(name, "the file is too short", actual_bytes=actual)
            except DamagedFileError as error:
                lost = missing_files(self._folder, expected_bytes) if not actual else ""
                known = DamagedFileError(name, lost) if lost else error
                raise known.while_reading(first_key_past(name, actual), size) from None

    def is_record(self, chunk: Chunk) -> bool:
        """Return whether it is a `torch.save` record; otherwise it is in safetensors data."""
        prefix = bytearray(4)
        self.file(chunk.file).read_into(chunk.offset, memoryview(prefix))
        return prefix == ZIP_MAGIC

    def sample(self, name: str) -> bytes:
        """Return name, size and a few KB of a file: enough to tell two checkpoints apart."""
        file = self.file(name)
        samples = [f"{name}\0{file.size}\0".encode()]
        for number in range(_SAMPLES):
            offset = (file.size - _SAMPLE_BYTES) * number // (_SAMPLES - 1)
            data = bytearray(min(_SAMPLE_BYTES, file.size))
            file.read_into(max(0, offset), memoryview(data))
            samples.append(bytes(data))
        return b"".join(samples)

    def sample_chunk(self, chunk: Chunk) -> bytes:
        """Return the middle of what is stored of a chunk, or all of it if that is little."""
        data = bytearray(min(_SAMPLE_BYTES, chunk.length))
        offset = chunk.offset + (chunk.length - len(data)) // 2
        self.file(chunk.file).read_into(offset, memoryview(data))
        return bytes(data)

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
            if chunk.codecs:
                return find_in_compressed(file, chunk, dtype)
            if self.is_record(chunk):
                return find_in_record(file, chunk, dtype)
            return find_entry(file, self._entries(chunk), chunk, key, dtype)
        except DamagedFileError as error:
            raise error.while_reading(key) from None
        except UnsafeInputError as error:
            raise UnsafeInputError(f"{error}, while reading {key!r}", error.hint) from None

    def _entries(self, chunk: Chunk) -> Entries:
        """Read the header of the safetensors data that the chunk is in, once for all of them."""
        # Pickled objects may stand before the safetensors data: these begin where the chunk says.
        place = chunk.file, chunk.offset
        with self._headers_lock:
            if place not in self._headers:
                try:
                    self._headers[place] = self.file(chunk.file).safetensors_at(chunk.offset)
                except CheckpointError as error:
                    raise DamagedFileError(
                        chunk.file, f"holds neither a record nor safetensors data there ({error})"
                    ) from None
            return self._headers[place]
