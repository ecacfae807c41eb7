"""Reading the two pickles of a checkpoint without executing anything from them.

`.metadata` and the `data.pkl` of each record are pickles, and a pickle is a program: it names
callables and calls them. Here a name is looked up in a table of stand-ins that the caller gives,
never imported; what is not in the table is refused. The stand-ins are inert: they hold what they
are given and do nothing.

The opcodes are walked once before that, because the C unpickler allocates what some of them ask
for before it looks at how much there is (a memo index of 2**31 costs 32 GB). The walk also refuses
every opcode that torch's writers never use.

One thing this does not bound: a tuple of tuples that share one another, used as a dict's key, can
keep Python's `hash` busy for ever, or end the process where they are nested ten thousands deep
(before Python 3.14, which remembers a tuple's hash). That stops a conversion; it executes nothing.
"""

from __future__ import annotations

import io
import pickle
import re
from collections.abc import Callable, Mapping
from typing import Any

from hubmerge.errors import CheckpointError, UnsafeInputError

# More arguments than any writer gives; a hostile file could have a long tuple copied at each call.
_MAX_ARGS = 256


class Inert:
    """Stands in for any class or function: keeps its arguments and its state, does nothing.

    The state is kept by reference and never spread over attributes: a pickle can set no attribute
    of anything, and a large state that is given to many objects is not copied for each.
    """

    __slots__ = ("args", "state")

    args: tuple[Any, ...]
    """Missing where the pickle made the object without a call; so is `state` without a state."""
    state: Any

    def __init__(self, *args: Any) -> None:
        if len(args) > _MAX_ARGS:
            raise pickle.UnpicklingError(f"{type(self).__name__} gets {len(args):,} arguments")
        self.args = args

    def __setstate__(self, state: Any) -> None:
        self.state = state


# Stands in for `torch.Size`: gives back the tuple that it is given. (`tuple` itself would also copy
# a long text or list at each call, and a file of a megabyte can call it a million times.)
same_tuple: Callable[[Any], Any] = ().__add__

# Stands in for `collections.OrderedDict`, whose items come after the call.
new_dict: Callable[[], Any] = dict[Any, Any]().copy


# Opcodes that torch's writers use, by the bytes that follow them. A run without text is matched
# in one go, since a checkpoint of a million chunks has a hundred million opcodes. The bound on the
# repeats keeps the matcher's own memory small.
_RUN = re.compile(
    rb"(?:[\x93\x94})(\x81RbN\x88\x89t\x85\x86\x87\]aesuQ]+"
    rb"|[Khq\x80]."
    rb"|M.."
    rb"|[Jj].{4}"
    rb"|[G\x95].{8}"
    rb"){0,4096}",
    re.DOTALL,
)
_LENGTH_BYTES = {
    0x8C: 1,  # SHORT_BINUNICODE
    0x58: 4,  # BINUNICODE
    0x8D: 8,  # BINUNICODE8
    0x43: 1,  # SHORT_BINBYTES
    0x42: 4,  # BINBYTES
    0x8A: 1,  # LONG1
}
_GLOBAL, _LONG_BINPUT, _STOP = 0x63, 0x72, 0x2E
_IN_RUN_WITH_OPERAND = b"Khq\x80MJjG\x95"


def _check_opcodes(data: bytes, label: str) -> None:
    """Walk all opcodes: only known ones, no length beyond the data, no memo index beyond it."""
    position, end = 0, len(data)
    while position < end:
        run = _RUN.match(data, position)
        if run and run.end() > position:
            position = run.end()
            continue
        opcode = data[position]
        if opcode in _LENGTH_BYTES:
            start = position + 1 + _LENGTH_BYTES[opcode]
            position = start + int.from_bytes(data[position + 1 : start], "little")
        elif opcode == _GLOBAL:
            module_end = data.find(b"\n", position)
            name_end = data.find(b"\n", module_end + 1)
            position = name_end + 1 if position < module_end < name_end else end
        elif opcode == _LONG_BINPUT:
            index = int.from_bytes(data[position + 1 : position + 5], "little")
            if index > end:
                raise UnsafeInputError(f"{label}: the pickle asks for a memo of {index:,} entries")
            position += 5
        elif opcode == _STOP:
            return
        elif opcode in _IN_RUN_WITH_OPERAND:
            break  # its operand lies beyond the end
        else:
            raise UnsafeInputError(
                f"{label}: the pickle has opcode 0x{opcode:02x} at byte {position:,}, "
                "which no checkpoint needs",
                "Nothing was executed. Do not use this checkpoint unless you know who wrote it.",
            )
    raise CheckpointError(
        f"{label}: the pickle ends too early, after {end:,} bytes",
        "The save was interrupted or the copy is incomplete; use an earlier step.",
    )


def load(
    data: bytes,
    label: str,
    stand_ins: Mapping[tuple[str, str], Any],
    other: Callable[[str, str], Any] = lambda _module, _name: None,
    persistent_load: Callable[[Any], Any] | None = None,
) -> Any:
    """Unpickle `data` with `stand_ins` in place of everything that it names.

    Args:
        label: the file's name, for messages.
        stand_ins: what to use for each (module, name).
        other: asked for a name that `stand_ins` lacks; None means refuse.
        persistent_load: what to use for persistent ids; without it they are refused.

    Raises:
        UnsafeInputError: the pickle names anything else, or uses an opcode that none needs.
        CheckpointError: the pickle is damaged.
    """
    _check_opcodes(data, label)

    class Unpickler(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            found = stand_ins.get((module, name))
            if found is None:
                found = other(module, name)
            if found is None:
                raise UnsafeInputError(
                    f"{label}: refused to load {module}.{name}, which no checkpoint needs",
                    "Nothing was executed. If you trust the writer, save the model's plain "
                    "tensors again with dcp.save.",
                )
            return found

        def persistent_load(self, pid: Any) -> Any:
            if persistent_load is None:
                raise UnsafeInputError(f"{label}: refused a persistent id")
            return persistent_load(pid)

    try:
        return Unpickler(io.BytesIO(data)).load()
    except (UnsafeInputError, CheckpointError):
        raise
    except Exception as error:  # noqa: BLE001 - whatever a damaged pickle makes the unpickler raise
        raise CheckpointError(
            f"{label}: the pickle is damaged ({type(error).__name__}: {error})",
            "Copy the checkpoint again from where it was written, or use an earlier step.",
        ) from None
