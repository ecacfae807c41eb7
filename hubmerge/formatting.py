"""Numbers and lists as a person reads them."""

from __future__ import annotations

from collections.abc import Sequence


def human_bytes(count: float) -> str:
    """Return a size for a person: 1,500,000,000 is '1.5 GB' (units of 1000, as on the Hub)."""
    for unit in ("B", "KB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def plural(count: int, noun: str) -> str:
    """Return a number of things: '1 file', '1,200 files'."""
    return f"{count:,} {noun}{'s' * (count != 1)}"


def format_list(items: Sequence[str], most: int = 10) -> str:
    """Return the first few of these, and how many more there are."""
    more = len(items) - most
    return ", ".join(items[:most]) + (f" and {more} more" if more > 0 else "")
