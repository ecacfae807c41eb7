"""What a run would do, as values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from hubmerge.planning.plan import Plan


@dataclass(frozen=True, slots=True)
class Preview:
    """What a run would do.

    Attributes:
        sizes: the size in bytes of each file that would be written, by its name.
        peak_memory_bytes: the most that the run holds, without what the libraries take.
        push: what a push would do on the Hub (`publish.preview.PushPreview`).
        peak_disk_bytes: the most that would be on this machine's disk at a time.
    """

    plan: Plan
    sizes: Mapping[str, int]
    warnings: tuple[str, ...]
    peak_memory_bytes: int
    peak_disk_bytes: int
    push: object | None = None
