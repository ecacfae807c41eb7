"""Errors of Python and of libraries in a conversion: a caller sees one of hubmerge's own."""

from __future__ import annotations

import functools
import importlib
from pathlib import Path
from typing import Any

import pytest

import hubmerge
from hubmerge import api
from tests.support.faults.conversion import (
    convert,
    scratch,
    source,
    wanted,
)
from tests.support.faults.foreign import FOREIGN

PLACES = [
    (api, "locate"), (api, "read_checkpoint"), (api, "inspect_checkpoint"), (api, "prepare"),
    (api, "convert_plan"),
]  # fmt: skip


@pytest.mark.parametrize("error", FOREIGN, ids=lambda e: type(e).__name__)
def test_no_foreign_error_escapes(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is raised below, a caller sees one of our errors, with the foreign one as cause."""

    def fail(*_args: Any, **_options: Any) -> None:
        raise error

    def both() -> None:
        hubmerge.inspect(source())
        convert(scratch() / "never")

    for module, name in PLACES:
        with monkeypatch.context() as patch:
            patch.setattr(module, name, fail)
            with pytest.raises(hubmerge.HubmergeError) as raised:
                both()
        assert raised.value.__cause__ is error
        assert str(raised.value)
        assert raised.value.hint
        expected = 7 if isinstance(error, MemoryError) else 1
        assert raised.value.exit_code == expected


DEEPER = [
    ("conversion.slabs", "cast"), ("conversion.shard_writer", "_blocks"),
    ("system.disk", "sync_folder"), ("conversion.shard_writer", "_Output.write"),
    ("conversion.to_folder", "fingerprint"), ("conversion.to_folder", "journal_shard"),
]  # fmt: skip


@pytest.mark.parametrize(("module", "name"), DEEPER)
def test_no_foreign_error_escapes_from_the_middle(
    module: str, name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The same from threads and half-written shards: nothing partial stays, the lock is free."""
    wanted()
    for number, error in enumerate(FOREIGN):

        def fail(*_args: Any, error: BaseException = error, **_options: Any) -> None:
            raise error

        with monkeypatch.context() as patch:
            *owners, attribute = name.split(".")
            owner = functools.reduce(getattr, owners, importlib.import_module(f"hubmerge.{module}"))
            patch.setattr(owner, attribute, fail)
            with pytest.raises(hubmerge.HubmergeError) as raised:
                convert(tmp_path / str(number))
        assert not list(tmp_path.glob("*/*.partial"))
        convert(tmp_path / str(number))  # though `raised` still holds the first run's frames
        assert raised.value.exit_code in (1, 7)
