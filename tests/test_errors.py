"""The errors: messages that are safe to print, and hints that say what to do."""

from __future__ import annotations

import pytest

import hubmerge
from hubmerge import errors
from tests.support.faults.conversion import (
    TOKEN,
)


@pytest.mark.parametrize("text", ["\x1b[2Jx", "a\rb", "\ud800", "\x07", "\u202e", "x" * 100_000])
def test_messages_are_safe_for_a_terminal(text: str) -> None:
    """Whatever stands in a file, a message neither moves the cursor nor fills the screen."""
    shown = str(errors.HubmergeError(f"file {text}"))
    assert shown.startswith("file ")
    assert shown.isprintable()
    assert len(shown) < 5000
    shown.encode()


def test_every_error_says_what_to_do_next() -> None:
    """What fits the case, or else what fits the class; and a token in a message is no token."""
    kinds = [kind for kind in vars(errors).values()
             if isinstance(kind, type) and issubclass(kind, hubmerge.HubmergeError)]  # fmt: skip
    for kind in kinds:
        error = kind("file", f"Bearer {TOKEN}") if kind is errors.DamagedFileError else kind(TOKEN)
        assert error.hint.endswith(".")
        assert TOKEN not in str(error)
    assert errors.UsageError("x", "Use y.").hint == "Use y."
