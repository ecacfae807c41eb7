"""Scan a pickle's opcodes before anything is unpickled; refuse some, replace others.

- For some opcodes, the C unpickler allocates before it checks how much data there is (a memo index
  of 2**31 costs 32 GB): every length and index is checked against the size of the data.
- Opcodes that torch's writers never use are refused.
- Building a dict hashes its keys, and nested tuples that share one another keep Python's `hash`
  busy forever, or crash the process if they are nested ten thousand levels deep. So no dict is
  built: opcodes for dicts become those for lists. ``{k: v, l: w}`` becomes ``[k, v, l, w]``, or
  ``[(k, v)]`` if the pickler added a single entry.
"""

from __future__ import annotations

import re

from hubmerge.errors import CheckpointError, UnsafeInputError

# Opcodes that torch's writers use, by the bytes that follow them. The bound on repeats limits the
# memory of the matcher.
_OTHERS = (
    rb"(?:[\x93\x94)(\x81RbN\x88\x89t\x85\x86\x87\]aeQ]+"
    rb"|[Khq\x80]."
    rb"|M.."
    rb"|[Jj].{4}"
    rb"|G.{8}"
    rb"){0,4096}"
)
# Everything up to a string, or to the end of a dict. Matched in one go, since a checkpoint of a
# million chunks has a hundred million opcodes.
_RUN = re.compile(_OTHERS + rb"(\})?" + _OTHERS + rb"([us])?", re.DOTALL)
_LENGTH_BYTES = {
    0x8C: 1,  # SHORT_BINUNICODE
    0x58: 4,  # BINUNICODE
    0x8D: 8,  # BINUNICODE8
    0x43: 1,  # SHORT_BINBYTES
    0x42: 4,  # BINBYTES
    0x8A: 1,  # LONG1
}
_GLOBAL, _LONG_BINPUT, _STOP, _FRAME = 0x63, 0x72, 0x2E, 0x95
_FRAME_BYTES = 9  # the opcode and the length of the frame
_IN_RUN_WITH_OPERAND = b"Khq\x80MJjG"

_EMPTY_LIST, _SETITEMS, _APPENDS = 0x5D, 0x75, 0x65
_TUPLE2_APPEND = b"\x86a"  # replaces SETITEM


def without_dicts(data: bytes, label: str) -> bytes:
    """Check the whole pickle, and return it with lists in place of its dicts.

    Args:
        label: the file's name, for messages.

    Raises:
        UnsafeInputError: it uses an opcode that no checkpoint needs, or too large a memo index.
        CheckpointError: it ends too early.
    """
    changed = bytearray(data)
    single_entries: list[int] = []
    frames: list[int] = []
    position, end = 0, len(data)
    while position < end:
        run = _RUN.match(data, position)
        if run and run.end() > position:
            position = run.end()
            empty_dict = run.start(1)
            if empty_dict >= 0:
                changed[empty_dict] = _EMPTY_LIST
            if run.lastindex == 2:
                if data[position - 1] == _SETITEMS:
                    changed[position - 1] = _APPENDS
                else:
                    single_entries.append(position - 1)
        elif data[position] == _STOP:
            return _with_pairs(changed, single_entries, frames)
        elif data[position] == _FRAME:
            frames.append(position)
            position += _FRAME_BYTES
        else:
            position = _end_of_opcode(data, position, label)
    raise CheckpointError(
        f"{label}: the pickle ends too early, after {end:,} bytes",
        "The save was interrupted or the copy is incomplete; use an earlier step.",
    )


def _end_of_opcode(data: bytes, position: int, label: str) -> int:
    """Return the end of an opcode outside a run, operand included."""
    opcode, end = data[position], len(data)
    if opcode in _LENGTH_BYTES:
        start = position + 1 + _LENGTH_BYTES[opcode]
        return start + int.from_bytes(data[position + 1 : start], "little")
    if opcode == _GLOBAL:
        module_end = data.find(b"\n", position)
        name_end = data.find(b"\n", module_end + 1)
        return name_end + 1 if position < module_end < name_end else end
    if opcode == _LONG_BINPUT:
        index = int.from_bytes(data[position + 1 : position + 5], "little")
        if index > end:
            raise UnsafeInputError(f"{label}: the pickle asks for a memo of {index:,} entries")
        return position + 5
    if opcode in _IN_RUN_WITH_OPERAND:
        return end  # its operand is cut off
    raise UnsafeInputError(
        f"{label}: the pickle has opcode 0x{opcode:02x} at byte {position:,}, "
        "which no checkpoint needs",
        "Nothing was executed. Do not use this checkpoint unless you know who wrote it.",
    )


def _with_pairs(changed: bytearray, single_entries: list[int], frames: list[int]) -> bytes:
    """Replace each SETITEM with the two opcodes that append a pair.

    This makes frames longer than they declare, and the unpickler would drop the excess. Frames are
    optional, so they are removed.
    """
    if not single_entries:
        return bytes(changed)
    changes = [(position, 1, _TUPLE2_APPEND) for position in single_entries]
    changes += [(position, _FRAME_BYTES, b"") for position in frames]
    spans: list[bytes | bytearray] = []
    begin = 0
    for position, length, replacement in sorted(changes):
        spans += [changed[begin:position], replacement]
        begin = position + length
    return b"".join([*spans, changed[begin:]])
