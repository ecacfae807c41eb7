"""Tokens and keys must not be published: what a leaked one looks like, and where it stands."""

from __future__ import annotations

import re

from hubmerge.errors import UnsafeInputError

_PATTERNS = {
    "a Hugging Face token": re.compile(rb"\bhf_[A-Za-z0-9]{30,}\b"),
    "an AWS access key": re.compile(rb"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b"),
    "a GitHub token": re.compile(rb"\b(?:gh[pousr]_[A-Za-z0-9]{36,}|github_pat_\w{60,})\b"),
    "a private key": re.compile(rb"-----BEGIN (?:[A-Z]+ )*PRIVATE KEY-----"),
}

# A vocabulary holds any text at all; it is data that a tokenizer library wrote.
_VOCABULARIES = ("tokenizer.json", "vocab.json", "vocab.txt", "merges.txt")


def refuse_secrets(files: dict[str, bytes]) -> None:
    """Raises UnsafeInputError, naming file and line, where a text file holds a secret."""
    for name, content in files.items():
        if name.endswith(_VOCABULARIES):
            continue
        for kind, pattern in _PATTERNS.items():
            found = pattern.search(content)
            if found:
                line = content.count(b"\n", 0, found.start()) + 1
                raise UnsafeInputError(
                    f"{name}, line {line}: looks like {kind}; nothing was published",
                    "Remove it, and revoke it if it is real.",
                )
