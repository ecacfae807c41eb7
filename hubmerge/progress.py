"""How the library reports what it is doing: silent unless the caller listens."""

from __future__ import annotations


class Progress:
    """Receives events; this base class ignores them all. Calls may come from any thread."""

    def status(self, text: str) -> None:
        """Something is going on that may take seconds, until the next event but a note."""

    def start(self, total_bytes: int, total_shards: int) -> None:
        """Work begins, with this many bytes of output, in this many shards."""

    def converted(self, size_bytes: int) -> None:
        """So many more bytes of output are written (or were already there)."""

    def uploaded(self, filename: str) -> None:
        """The Hub has the shard `filename`."""

    def uploaded_bytes(self, size_bytes: int) -> None:
        """So many more bytes of shards are uploaded: an estimate until a shard is complete."""

    def waiting(self, is_waiting: bool) -> None:
        """The conversion waits for uploads to free staging space, or goes on."""

    def note(self, text: str) -> None:
        """A harmless fact, in one sentence."""

    def warn(self, text: str) -> None:
        """Something that the user should act on, in one sentence."""


SILENT = Progress()
