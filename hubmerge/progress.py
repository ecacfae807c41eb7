"""How the library reports what it is doing: silent unless the caller listens."""

from __future__ import annotations


class Progress:
    """A receiver of events; this base class ignores them. Calls may come from any thread."""

    def status(self, text: str) -> None:
        """Report an activity that may take seconds; any later event but a note ends it."""

    def start(self, total_bytes: int, total_shards: int) -> None:
        """Report that work begins on this many bytes of output in this many shards."""

    def converted(self, size_bytes: int) -> None:
        """Report that this many more bytes of output are written (or already existed)."""

    def uploaded(self, filename: str) -> None:
        """Report that the Hub has the shard `filename`."""

    def uploaded_bytes(self, size_bytes: int) -> None:
        """Report that this many more bytes are uploaded: an estimate until a shard is complete."""

    def waiting(self, is_waiting: bool) -> None:
        """Report whether the conversion waits for uploads to free staging space."""

    def note(self, text: str) -> None:
        """Report a harmless fact, in one sentence."""

    def warn(self, text: str) -> None:
        """Report something that the user should act on, in one sentence."""


SILENT = Progress()
