"""Read the two pickles of a checkpoint without executing anything from them.

`.metadata` and the `data.pkl` of each record are pickles, and a pickle is a program: it names
callables and calls them. Here a name is never imported, but looked up in the caller's table of
stand-ins; any other name is refused. The stand-ins are inert: they keep their arguments and do
nothing.

Before that, `hubmerge.checkpoint.opcodes` checks the whole pickle and replaces dicts with lists,
which `pairs` and `fields` read.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable, Mapping
from itertools import islice
from typing import Any

from hubmerge.checkpoint.opcodes import without_dicts
from hubmerge.errors import CheckpointError, UnsafeInputError

# More arguments than any writer passes; a hostile file could have a long tuple copied at each call.
_MAX_ARGS = 256

# Names and values: more than any object has. A hostile file could share a large state among many.
_MAX_STATE = 128
_TEXT = {str}


class Inert:
    """A stand-in for any class or function: keeps its arguments and its state, does nothing.

    The state is kept by reference and never turned into attributes: a pickle can set no attribute
    of anything, and a large state that many objects share is not copied for each.
    """

    __slots__ = ("args", "state")

    args: tuple[Any, ...]
    """Missing if the pickle made the object without a call; so is `state` without a state."""
    state: Any

    def __init__(self, *args: Any) -> None:
        if len(args) > _MAX_ARGS:
            raise pickle.UnpicklingError(f"{type(self).__name__} gets {len(args):,} arguments")
        self.args = args

    def __setstate__(self, state: Any) -> None:
        self.state = state


# Stands in for `torch.Size`: returns the tuple that it is given. (`tuple` itself would also copy a
# long string or list at each call, and a file of a megabyte can call it a million times.)
same_tuple: Callable[[Any], Any] = ().__add__

# Stands in for `collections.OrderedDict`, whose items come after the call.
new_dict: Callable[[], Any] = list[Any]().copy


def pairs(items: Any) -> list[tuple[Any, Any]] | None:
    """Return the entries of a dict, which `load` returns as a list; None if it is not one."""
    if type(items) is not list:
        return None
    found = []
    rest = iter(items)
    for first in rest:
        pair = first if type(first) is tuple else (first, *islice(rest, 1))
        if len(pair) != 2:
            return None
        found.append(pair)
    return found


def fields(thing: Any) -> dict[str, Any] | None:
    """Return the attributes in an object's state; None if it is not a dict of a sane size."""
    state = getattr(thing, "state", None)
    if type(state) is not list or len(state) > _MAX_STATE:
        return None
    names = state[::2]
    if set(map(type, names)) == _TEXT and len(state) % 2 == 0:  # the common case, made fast
        return dict(zip(names, state[1::2], strict=True))
    entries = pairs(state)
    if entries is None or any(type(name) is not str for name, _ in entries):
        return None
    return dict(entries)


class _Unpickler(pickle.Unpickler):
    """The unpickler behind `load`; its data no longer has dicts."""

    def __init__(
        self,
        data: bytes,
        label: str,
        stand_ins: Mapping[tuple[str, str], Any],
        other: Callable[[str, str], Any],
        load_persistent: Callable[[Any], Any] | None,
    ) -> None:
        super().__init__(io.BytesIO(data))
        self._label, self._stand_ins, self._other = label, stand_ins, other
        self._load_persistent = load_persistent

    def find_class(self, module: str, name: str) -> Any:
        found = self._stand_ins.get((module, name))
        if found is None:
            found = self._other(module, name)
        if found is None:
            raise UnsafeInputError(
                f"{self._label}: refused to load {module}.{name}, which no checkpoint needs",
                "Nothing was executed. If you trust the writer, save the model's plain "
                "tensors again with dcp.save.",
            )
        return found

    def persistent_load(self, pid: Any) -> Any:
        if self._load_persistent is None:
            raise UnsafeInputError(f"{self._label}: refused a persistent id")
        return self._load_persistent(pid)


def load(
    data: bytes,
    label: str,
    stand_ins: Mapping[tuple[str, str], Any],
    other: Callable[[str, str], Any] = lambda _module, _name: None,
    persistent_load: Callable[[Any], Any] | None = None,
) -> Any:
    """Unpickle `data` with `stand_ins` for everything that it names, and lists for dicts.

    Args:
        label: the file's name, for messages.
        stand_ins: the stand-in for each (module, name).
        other: called for a name that `stand_ins` lacks; refuses it by returning None.
        persistent_load: called for persistent ids; without it they are refused.

    Raises:
        UnsafeInputError: the pickle names anything else, or uses an opcode that none needs.
        CheckpointError: the pickle is damaged.
    """
    harmless = without_dicts(data, label)
    try:
        return _Unpickler(harmless, label, stand_ins, other, persistent_load).load()
    except (UnsafeInputError, CheckpointError):
        raise
    except Exception as error:  # noqa: BLE001 - whatever a damaged pickle makes the unpickler raise
        raise CheckpointError(
            f"{label}: the pickle is damaged ({type(error).__name__}: {error})",
        ) from None
