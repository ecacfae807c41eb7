"""The highest id that a tokenizer can give, read from its files."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, NamedTuple

from hubmerge.errors import UsageError
from hubmerge.hf_format.asset_names import ADDED_TOKENS, TOKENIZER, TOKENIZER_CONFIG
from hubmerge.hf_format.assets import MAX_JSON_BYTES, Assets

# No vocabulary has ids of more digits.
_MAX_DIGITS = 10


class Token(NamedTuple):
    """A token of a vocabulary."""

    id: int
    text: str


def highest_token(assets: Assets) -> Token | None:
    """Return the token with the highest id; None if the files tell none."""
    readers = {
        TOKENIZER: _of_tokenizer,
        "vocab.json": _of_mapping,
        ADDED_TOKENS: _of_mapping,
        TOKENIZER_CONFIG: _of_tokenizer_config,
    }
    tokens = [
        token
        for name, read in readers.items()
        if (content := _parsed(assets, name)) is not None
        for token in read(content)
    ]
    asset = assets.get("vocab.txt")
    if asset is not None and TOKENIZER not in assets.names:
        lines = asset.read().splitlines()
        if lines:
            tokens.append(Token(len(lines) - 1, lines[-1].decode(errors="replace")))
    return max(tokens, default=None)


def _parsed(assets: Assets, name: str) -> dict[str, Any] | None:
    asset = assets.get(name)
    if asset is None or asset.source.stat().st_size > MAX_JSON_BYTES:
        return None
    try:
        value = json.loads(asset.read())
    except (ValueError, RecursionError):
        raise UsageError(
            f"{asset.source}: is not valid JSON", "Replace the file, or remove it from the folder."
        ) from None
    return value if isinstance(value, dict) else None


def _of_tokenizer(content: dict[str, Any]) -> Iterator[Token]:
    model = content.get("model")
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    if isinstance(vocabulary, dict):
        yield from _of_mapping(vocabulary)
    elif isinstance(vocabulary, list) and vocabulary:  # pairs of a token and its score
        last = vocabulary[-1]
        yield Token(len(vocabulary) - 1, str(last[0] if isinstance(last, list) and last else last))
    added = content.get("added_tokens")
    for entry in added if isinstance(added, list) else ():
        if isinstance(entry, dict) and type(entry.get("id")) is int:
            yield Token(entry["id"], str(entry.get("content")))


def _of_mapping(vocabulary: dict[str, Any]) -> Iterator[Token]:
    ids = [(number, text) for text, number in vocabulary.items() if type(number) is int]
    if ids:
        yield Token(*max(ids))


def _of_tokenizer_config(content: dict[str, Any]) -> Iterator[Token]:
    added = content.get("added_tokens_decoder")
    for number, entry in added.items() if isinstance(added, dict) else ():
        if number.isdecimal() and len(number) < _MAX_DIGITS:
            yield Token(int(number), str(entry.get("content") if isinstance(entry, dict) else ""))
