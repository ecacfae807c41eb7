"""How the library tells a caller what it is doing: silent unless the caller listens."""

from __future__ import annotations


class Progress:
    """Receives events; this base class ignores them all. Calls may come from any thread."""

    def start(self, total_bytes: int, total_shards: int) -> None:
        """Work begins: this many bytes of output, in this many shards."""

    def converted(self, size_bytes: int) -> None:
        """So many more bytes of output are written (or were already there)."""

    def uploaded(self, filename: str) -> None:
        """The Hub has the shard `filename`."""

    def note(self, text: str) -> None:
        """Something that a person may want to know, one sentence."""

    def warn(self, text: str) -> None:
        """Something that a person should know, one sentence."""


SILENT = Progress()
