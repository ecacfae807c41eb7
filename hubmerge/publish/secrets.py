"""Find tokens and keys that must not be published."""

from __future__ import annotations

import re

from hubmerge.errors import UnsafeInputError

_PATTERNS = {
    "a Hugging Face token": re.compile(rb"\bhf_[A-Za-z0-9]{30,}\b"),
    "an AWS access key": re.compile(rb"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b"),
    "a GitHub token": re.compile(rb"\b(?:gh[pousr]_[A-Za-z0-9]{36,}|github_pat_\w{60,})\b"),
    "a private key": re.compile(rb"-----BEGIN (?:[A-Z]+ )*PRIVATE KEY-----"),
}

# A vocabulary holds any text; a tokenizer library wrote it.
_VOCABULARIES = ("tokenizer.json", "vocab.json", "vocab.txt", "merges.txt")


def check_no_secrets(files: dict[str, bytes]) -> None:
    """Raise UnsafeInputError, with file and line, if a text holds a secret."""
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
