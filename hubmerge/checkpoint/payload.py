"""What every storage format comes down to: readable bytes, and where a chunk is in them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


class ByteSource(Protocol):
    """Bytes that can be read at an offset; a compressed record only cheaply forward."""

    name: str
    """The file, for messages."""

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` with the bytes from `offset` on."""

    def view(self, offset: int, length: int) -> memoryview:
        """Return the bytes from `offset` on, writable, without a promise about memory."""


@dataclass(frozen=True, slots=True)
class Payload:
    """The elements of a chunk.

    Attributes:
        source: the bytes that they are in.
        offset: where the first element is, in bytes.
        strides: in elements, if they are not row-major (channels_last); else None.
        extent: elements from the first to the last, both included.
    """

    source: ByteSource
    offset: int
    strides: tuple[int, ...] | None
    extent: int
