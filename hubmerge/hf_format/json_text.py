"""Edit single entries of a JSON text; every other byte stays as it was written.

A config is published as its author wrote it: parsed and written again, the form of its numbers, its
order and its layout would change without need.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

_WHITESPACE = re.compile(r"[ \t\n\r]*")
_DECODER = json.JSONDecoder()

# Configs nest three or four levels deep; no library reads entries below this level.
_MAX_DEPTH = 8


class Entry(NamedTuple):
    """One entry of an object in a JSON text.

    Attributes:
        path: the keys that lead to it, its own last.
        value: parsed.
        start: where its key begins in the text.
        value_start, end: where its value begins and ends.
    """

    path: tuple[str, ...]
    value: Any
    start: int
    value_start: int
    end: int

    @property
    def key(self) -> str:
        return self.path[-1]

    @property
    def name(self) -> str:
        """The keys as a person writes them."""
        return ".".join(self.path)


def entries(text: str) -> list[Entry]:
    """Return the entries of all objects that are reached through objects, outer ones first.

    Args:
        text: valid JSON, an object.
    """
    return [entry for siblings in _objects(text) for entry in siblings]


def replace_values(text: str, new_value: Callable[[Entry], str | None]) -> str:
    """Replace values with other text; keep an entry for which `new_value` returns None."""
    edits = [
        (entry.value_start, entry.end, new)
        for entry in entries(text)
        if (new := new_value(entry)) is not None
    ]
    return _apply(text, edits)


def remove_entries(text: str, is_unwanted: Callable[[Entry], bool]) -> str:
    """Remove entries, each with its comma."""
    edits = []
    for siblings in _objects(text):
        position = 0
        while position < len(siblings):
            first = position
            while position < len(siblings) and is_unwanted(siblings[position]):
                position += 1
            if position > first:
                edits.append((*_span(siblings, first, position), ""))
            position += 1
    return _apply(text, edits)


def _span(siblings: list[Entry], first: int, after: int) -> tuple[int, int]:
    """Return the span of adjacent entries, including the comma to remove with them."""
    if after < len(siblings):
        return siblings[first].start, siblings[after].start
    start = siblings[first - 1].end if first else siblings[first].start
    return start, siblings[after - 1].end


def _apply(text: str, edits: list[tuple[int, int, str]]) -> str:
    """Apply the edits; an outer one replaces those inside it."""
    parts, position = [], 0
    for start, end, new in sorted(edits, key=lambda edit: (edit[0], -edit[1])):
        if start < position:
            continue
        parts += [text[position:start], new]
        position = end
    return "".join([*parts, text[position:]])


def _objects(text: str) -> Iterator[list[Entry]]:
    waiting: list[tuple[tuple[str, ...], int]] = [((), _skip(text, 0))]
    while waiting:
        path, start = waiting.pop(0)
        siblings = list(_entries(text, start, path))
        yield siblings
        if len(path) < _MAX_DEPTH - 1:
            waiting += [(e.path, e.value_start) for e in siblings if isinstance(e.value, dict)]


def _entries(text: str, start: int, path: tuple[str, ...]) -> Iterator[Entry]:
    """Yield the entries of the object that begins at `start`."""
    position = _skip(text, start + 1)
    while text[position] != "}":
        key_start = position
        key, position = _DECODER.raw_decode(text, key_start)
        value_start = _skip(text, _skip(text, position) + 1)
        value, position = _DECODER.raw_decode(text, value_start)
        yield Entry((*path, key), value, key_start, value_start, position)
        position = _skip(text, position)
        if text[position] == ",":
            position = _skip(text, position + 1)


def _skip(text: str, position: int) -> int:
    match = _WHITESPACE.match(text, position)
    assert match is not None
    return match.end()
