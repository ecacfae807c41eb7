"""Whatever bytes a file holds, nothing but our errors comes out: mutated inputs, and the corpus."""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import os
import pickle
import pickletools
import struct
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import hubmerge
from hubmerge.checkpoint import unpickle
from hubmerge.errors import CheckpointError, UnsafeInputError
from tests.security.attacks.checkpoints import RECORD, header, of_metadata
from tests.security.attacks.pickles import FILE, one_tensor
from tests.security.attacks.records import tensor
from tests.security.fuzz.seed import real_files
from tests.security.fuzz.targets import CORPUS, TARGETS

# More of them: HUBMERGE_FUZZ=100 pytest tests/security/test_fuzz.py
EFFORT = int(os.environ.get("HUBMERGE_FUZZ", "1"))
CASES = sorted(path.relative_to(CORPUS).as_posix() for path in CORPUS.glob("*/*"))


def examples(count: int) -> Callable[[Any], Any]:
    """The same examples in every run, unless more are asked for."""
    return settings(
        max_examples=count * EFFORT,
        derandomize=EFFORT == 1,
        database=None,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )


@pytest.mark.parametrize("case", CASES)
def test_the_corpus(case: str) -> None:
    """Each input that once was a finding, and each that fuzzing starts from."""
    TARGETS[case.partition("/")[0]]((CORPUS / case).read_bytes())


@st.composite
def mutated(draw: st.DrawFn, honest: bytes) -> bytes:
    """`honest` with a few bytes flipped, cut out, repeated or put in, or with its end cut off."""
    data = bytearray(honest)
    for _ in range(draw(st.integers(1, 6))):
        place = draw(st.integers(0, max(0, len(data) - 1)))
        kind = draw(st.sampled_from(["flip", "set", "cut", "repeat", "insert", "end", "number"]))
        length = draw(st.integers(1, 40))
        if kind == "flip" and data:
            data[place] ^= 1 << draw(st.integers(0, 7))
        elif kind == "set" and data:
            data[place] = draw(st.integers(0, 255))
        elif kind == "cut":
            del data[place : place + length]
        elif kind == "repeat":
            data[place:place] = data[place : place + length]
        elif kind == "insert":
            data[place:place] = draw(st.binary(max_size=8))
        elif kind == "end":
            del data[place:]
        elif kind == "number":
            value = draw(st.sampled_from([0, 1, 2**31, 2**32 - 1, 2**62, 2**63 - 1, 2**64 - 1]))
            packed = struct.pack("<Q", value)[: draw(st.sampled_from([1, 2, 4, 8]))]
            data[place : place + len(packed)] = packed
    return bytes(data)


@functools.cache
def description() -> bytes:
    """The `.metadata` of a real checkpoint."""
    return real_files()[0]


@functools.cache
def operations() -> list[bytes]:
    """The opcodes of a real `.metadata`, each with its operand."""
    data = description()
    places = [place for _, _, place in pickletools.genops(data)] + [len(data)]
    found = [data[a:b] for a, b in itertools.pairwise(places)]
    return [op for op in found if op[0] not in b"\x80\x95."]  # no protocol, frame or stop


@st.composite
def rearranged(draw: st.DrawFn) -> bytes:
    """A real `.metadata` with whole operations left out, swapped, repeated or replaced."""
    program = list(operations())
    extra = [b"N", b"\x88", b"K\x00", b"J\xff\xff\xff\xff", b"\x8a\x09" + b"\x7f" * 9, b"]", b"}",
             b")", b"(", b"t", b"u", b"e", b"b", b"R", b"\x81", b"\x85", b"s", b"a",
             b"\x8c\x02..", b"h\x00", b"h\x05", b"G" + b"\x7f" * 8]  # fmt: skip
    for _ in range(draw(st.integers(1, 8))):
        place = draw(st.integers(0, len(program) - 1))
        kind = draw(st.sampled_from(["drop", "swap", "repeat", "replace", "insert"]))
        if kind == "drop" and len(program) > 1:
            del program[place]
        elif kind == "swap":
            other = draw(st.integers(0, len(program) - 1))
            program[place], program[other] = program[other], program[place]
        elif kind == "repeat":
            program.insert(place, program[place])
        elif kind == "replace":
            program[place] = draw(st.sampled_from(extra))
        else:
            program.insert(place, draw(st.sampled_from(extra)))
    return b"\x80\x04" + b"".join(program) + b"."


@examples(500)
@given(st.data())
def test_mutated_metadata(data: st.DataObject) -> None:
    """Bytes of a real `.metadata` changed at random."""
    TARGETS["inspection"](data.draw(mutated(description())))


@examples(700)
@given(rearranged())
def test_rearranged_metadata(program: bytes) -> None:
    """A valid pickle of the right words in the wrong order."""
    TARGETS["inspection"](program)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.integers(0, 5) | st.floats()
    | st.text(max_size=4)
    | st.sampled_from(["__metadata__", "F32", "dtype", "shape", "data_offsets", "auto_map"]),
    lambda inner: st.lists(inner, max_size=4)
    | st.lists(inner, max_size=3).map(tuple)
    | st.dictionaries(
        st.sampled_from(["a", "dtype", "shape", "data_offsets", "auto_map", "weight_map"])
        | st.text(max_size=3),
        inner,
        max_size=4,
    ),
    max_leaves=12,
)  # fmt: skip


@examples(300)
@given(VALUES)
def test_any_picklable_value_as_metadata(value: Any) -> None:
    """Any plain value where a `Metadata` should be, or in each place within one."""
    TARGETS["inspection"](pickle.dumps(value, protocol=4))
    part = pickle.dumps(value, protocol=4)
    body = part[11:-1] if part[2] == 0x95 else part[2:-1]  # without protocol, frame and stop
    for name in ("key", "shape", "offsets", "sizes", "dtype", "path", "place", "length",
                 "descriptors", "planner"):  # fmt: skip
        TARGETS["inspection"](one_tensor(64, **{name: body}))


@examples(500)
@given(mutated(RECORD))
def test_mutated_records(data: bytes) -> None:
    """Bytes of a record changed at random."""
    TARGETS["record"](data)


@examples(300)
@given(mutated(tensor()))
def test_mutated_record_pickles(data: bytes) -> None:
    """Bytes of a record's pickle changed, in a zip that is whole."""
    TARGETS["record"](RECORD.replace(tensor(), data))


@examples(300)
@given(st.data())
def test_mutated_compressed_records(data: st.DataObject) -> None:
    """Bytes of a compressed record changed, or of the record before it was compressed."""
    packer = zstandard.ZstdCompressor()
    TARGETS["compressed"](data.draw(mutated(packer.compress(RECORD))))
    TARGETS["compressed"](packer.compress(data.draw(mutated(RECORD))))


HEADER = header('{"__metadata__":{"DCP_SHARDING_INFO":"{\\"a\\":{\\"saved_offsets\\":[0]}}"},'
                '"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}', b"\0" * 16)  # fmt: skip


@examples(500)
@given(st.data())
def test_mutated_headers(data: st.DataObject) -> None:
    """Bytes of a safetensors file changed, and its JSON alone with the length put right."""
    TARGETS["header"](data.draw(mutated(HEADER)))
    TARGETS["header"](header(data.draw(mutated(HEADER[8:-16])), b"\0" * 16))


@examples(300)
@given(VALUES)
def test_any_json_as_header_config_and_index(value: Any) -> None:
    """Any JSON value where a header, a config or an index should be."""
    text = json.dumps(value).encode()
    wrapped = json.dumps({"auto_map": value, "weight_map": value}).encode()
    TARGETS["header"](header(text))
    for name in ("config", "index"):
        TARGETS[name](text)
        TARGETS[name](wrapped)


@examples(100)
@given(st.data())
def test_mutated_code(data: st.DataObject) -> None:
    """The bytes of a module that `auto_map` names changed."""
    code = b"from .ok import A\nfrom . import b\nclass A:\n    x = (1, [2])\n"
    TARGETS["code"](data.draw(mutated(code)))


@examples(60)
@given(st.data())
def test_a_mutated_checkpoint_converts_or_fails_well(data: st.DataObject) -> None:
    """The whole way: any change to either file ends in a result or in one of our errors."""
    described = one_tensor(len(RECORD))
    with TemporaryDirectory() as scratch:
        folder = Path(scratch) / "checkpoint"
        of_metadata(described, 0).write(folder)
        name, honest = data.draw(st.sampled_from([(".metadata", described), (FILE, RECORD)]))
        (folder / name).write_bytes(data.draw(mutated(honest)))
        with contextlib.suppress(hubmerge.HubmergeError):
            hubmerge.plan.__wrapped__(folder)  # type: ignore[attr-defined]
            hubmerge.convert.__wrapped__(folder)  # type: ignore[attr-defined]


@examples(2000)
@given(st.binary(max_size=60))
def test_any_bytes_as_a_pickle(data: bytes) -> None:
    """The unpickler itself, on bytes of no shape at all."""
    with contextlib.suppress(CheckpointError, UnsafeInputError):
        unpickle.load(data, "x", {}, lambda _module, _name: unpickle.Inert)


@pytest.mark.parametrize("target", TARGETS)
def test_each_target_has_a_corpus(target: str) -> None:
    """No fuzzer starts from nothing."""
    assert list((CORPUS / target).glob("seed-*"))
