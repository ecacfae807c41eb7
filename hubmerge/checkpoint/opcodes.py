"""Walk over a pickle's opcodes before anything is unpickled; refuse some, replace others.

- The C unpickler allocates what some opcodes ask for before it looks at how much there is (a memo
  index of 2**31 costs 32 GB): every length and index is checked against the data.
- Opcodes that torch's writers never use are refused.
- A dict's keys would be hashed, and a tuple of tuples that share one another keeps Python's `hash`
  busy for ever, or ends the process if they are nested ten thousands deep. So no dict is built:
  the opcodes for dicts become those for lists. Of ``{k: v, l: w}`` comes ``[k, v, l, w]``, and
  ``[(k, v)]`` if the pickler added one entry alone.
"""

from __future__ import annotations

import re

from hubmerge.errors import CheckpointError, UnsafeInputError

# Opcodes that torch's writers use, by the bytes that follow them. The bound on the repeats keeps
# the matcher's own memory small.
_OTHERS = (
    rb"(?:[\x93\x94)(\x81RbN\x88\x89t\x85\x86\x87\]aeQ]+"
    rb"|[Khq\x80]."
    rb"|M.."
    rb"|[Jj].{4}"
    rb"|G.{8}"
    rb"){0,4096}"
)
# All up to a text, or to the end of a dict. Matched in one go, since a checkpoint of a million
# chunks has a hundred million opcodes.
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
_FRAME_BYTES = 9  # the opcode, and how long the frame is
_IN_RUN_WITH_OPERAND = b"Khq\x80MJjG"

_EMPTY_LIST, _SETITEMS, _APPENDS = 0x5D, 0x75, 0x65
_TUPLE2_APPEND = b"\x86a"  # what SETITEM becomes


def without_dicts(data: bytes, label: str) -> bytes:
    """Return the pickle with lists in place of its dicts, once all of it is found harmless.

    Args:
        label: the file's name, for messages.

    Raises:
        UnsafeInputError: it uses an opcode that no checkpoint needs, or a memo beyond its size.
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
            position = _beyond(data, position, label)
    raise CheckpointError(
        f"{label}: the pickle ends too early, after {end:,} bytes",
        "The save was interrupted or the copy is incomplete; use an earlier step.",
    )


def _beyond(data: bytes, position: int, label: str) -> int:
    """Return where an opcode outside a run ends, together with its operand."""
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
        return end  # its operand lies beyond the end
    raise UnsafeInputError(
        f"{label}: the pickle has opcode 0x{opcode:02x} at byte {position:,}, "
        "which no checkpoint needs",
        "Nothing was executed. Do not use this checkpoint unless you know who wrote it.",
    )


def _with_pairs(changed: bytearray, single_entries: list[int], frames: list[int]) -> bytes:
    """Put the two opcodes that append a pair in place of each SETITEM.

    A frame would then be longer than it says, and the unpickler would lose what is beyond; no
    pickle needs frames, so they go.
    """
    if not single_entries:
        return bytes(changed)
    changes = [(place, 1, _TUPLE2_APPEND) for place in single_entries]
    changes += [(place, _FRAME_BYTES, b"") for place in frames]
    pieces: list[bytes | bytearray] = []
    begin = 0
    for place, length, instead in sorted(changes):
        pieces += [changed[begin:place], instead]
        begin = place + length
    return b"".join([*pieces, changed[begin:]])
