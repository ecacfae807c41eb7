"""Single entries are edited, and every other byte of the text stays."""

from __future__ import annotations

import json

import pytest

from hubmerge.hf_format.json_text import entries, remove_entries, replace_values

TEXT = """{
  "a": 1e-06,
  "x": {"deep": [1, {"x": 2}]},
  "inner" : { "x":"}", "b": {"x": null} },
  "last": "\\u00e9"
}
"""


def test_entries_have_their_place_in_the_text() -> None:
    """Each value's span holds exactly its own text, at every depth."""
    found = {entry.name: TEXT[entry.value_start : entry.end] for entry in entries(TEXT)}
    assert found["a"] == "1e-06"
    assert found["inner.x"] == '"}"'
    assert found["inner.b.x"] == "null"
    assert {name: json.loads(text) for name, text in found.items()} == {
        entry.name: entry.value for entry in entries(TEXT)
    }


def test_an_entry_goes_with_its_comma() -> None:
    """What is left is the same text without the lines of the entry, and valid."""
    removed = remove_entries(TEXT, lambda entry: entry.key == "x")
    assert (
        removed
        == """{
  "a": 1e-06,
  "inner" : { "b": {} },
  "last": "\\u00e9"
}
"""
    )


@pytest.mark.parametrize("unwanted", ["", "a", "b", "c", "ab", "bc", "ac", "abc"])
def test_any_entries_can_go(unwanted: str) -> None:
    """First, middle, last, neighbours and all: the rest is valid and in order."""
    text = '{"a": 1,\n "b": [2, 3],\n "c": {"d": 4}}'
    left = json.loads(remove_entries(text, lambda entry: entry.key in unwanted))
    assert left == {k: v for k, v in json.loads(text).items() if k not in unwanted}
    assert list(left) == [key for key in "abc" if key not in unwanted]


def test_a_value_is_replaced_alone() -> None:
    """No other byte changes, and an outer edit takes the inner ones with it."""
    assert replace_values(TEXT, lambda e: "2" if e.key == "a" else None) == TEXT.replace(
        "1e-06", "2"
    )
    assert replace_values('{"a": {"b": 1}}', lambda e: "0") == '{"a": 0}'
