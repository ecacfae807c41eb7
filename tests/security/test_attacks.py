"""Hostile checkpoints are refused by name, in little time and memory, and nothing of them runs."""

from __future__ import annotations

import functools
import json
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

import hubmerge
from hubmerge.checkpoint import metadata, record_pickle
from hubmerge.checkpoint.boxes import BLOCK_BYTES, cut, same_elements
from hubmerge.checkpoint.data_files import DataFiles
from hubmerge.checkpoint.metadata import read_checkpoint
from hubmerge.checkpoint.schema import Box, Chunk, StoredTensor
from hubmerge.conversion.slabs import slabs
from hubmerge.errors import CheckpointError
from hubmerge.hf_format.dtypes import BY_NAME
from hubmerge.names.views import TensorView
from hubmerge.planning.plan import PlannedTensor
from tests.security.attacks import records
from tests.security.attacks.checkpoints import (
    FILE,
    RECORD,
    Attack,
    of_data,
    of_description,
    of_metadata,
)
from tests.security.attacks.pickles import (
    chunk,
    dict_of,
    index,
    info,
    list_of,
    number,
    one_tensor,
    size,
    tensor_entry,
    text,
    tuple_of,
)
from tests.security.attacks.pickles import metadata as description
from tests.security.attacks.run import MEMORY_BYTES, SECONDS, used_bytes
from tests.support.faults.calls import in_child

REPOSITORY = Path(__file__).parents[2]
DESCRIPTIONS, DATA = of_description(), of_data()


@functools.cache
def scratch() -> tempfile.TemporaryDirectory[str]:
    """Where the hostile checkpoints are, and where their commands run."""
    return tempfile.TemporaryDirectory(prefix="hubmerge-attacks-")


@functools.cache
def outcomes(what: str) -> dict[str, dict[str, Any]]:
    """How each attack ended, by its name; all of them share a process until one kills it."""
    attacks = DESCRIPTIONS if what == "inspect" else DATA
    root = Path(scratch().name) / what
    for name, attack in attacks.items():
        attack.write(root / name)
    waiting = list(attacks)
    found: dict[str, dict[str, Any]] = {}
    while waiting:
        command = [sys.executable, "-m", "tests.security.attacks.run", what]
        done = subprocess.run(
            [*command, *(str(root / name) for name in waiting)],
            cwd=scratch().name,
            env={"PYTHONPATH": str(REPOSITORY), "PATH": "", "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
        results = [json.loads(line) for line in done.stdout.splitlines()]
        found |= {result["name"]: result for result in results}
        waiting = waiting[len(results) :]
        if waiting:  # the next one has killed the process, or took too long
            found[waiting[0]] = {"died": done.returncode, "stderr": done.stderr[-3000:]}
            waiting = waiting[1:]
    return found


def check(attack: Attack, outcome: dict[str, Any]) -> None:
    """The outcome is a refusal with the right exit code and words, soon, and no canary."""
    assert "died" not in outcome, outcome
    assert outcome["code"] == attack.code, outcome
    assert attack.words in outcome["message"], outcome
    assert len(outcome["message"]) < 5000
    assert outcome["message"].replace("\n", " ").isprintable()
    assert "MemoryError" not in outcome["message"]
    assert outcome["seconds"] < SECONDS
    assert not list(Path(scratch().name).rglob("CANARY"))


@pytest.mark.parametrize("name", DESCRIPTIONS)
def test_a_hostile_description_is_refused(name: str) -> None:
    """Whatever a `.metadata` or a header asks for, `inspect` answers with our error alone."""
    check(DESCRIPTIONS[name], outcomes("inspect")[name])


@pytest.mark.parametrize("name", DATA)
def test_hostile_data_are_refused(name: str) -> None:
    """Whatever the data files hold, `convert` answers with our error alone."""
    check(DATA[name], outcomes("convert")[name])


def test_a_hostile_pickle_leaves_no_trace_in_the_stand_ins(tmp_path: Path) -> None:
    """After every BUILD attack the classes are what they were, and an honest load still works."""
    kinds = [value for module in (metadata, record_pickle)
             for value in module._STAND_INS.values() if isinstance(value, type)]  # fmt: skip
    before = [dict(vars(kind)) for kind in kinds]
    for name in DESCRIPTIONS:
        if name.startswith("build-"):
            DESCRIPTIONS[name].write(tmp_path / name)
            with pytest.raises(hubmerge.HubmergeError):
                hubmerge.inspect(tmp_path / name)
    assert [dict(vars(kind)) for kind in kinds] == before
    of_metadata(one_tensor(len(RECORD)), 0).write(tmp_path / "honest")
    assert hubmerge.inspect(tmp_path / "honest").largest[0]["shape"] == (4, 4)


# ---- Shapes ----

HUGE = size(10**9, 2**22)


def two_tensors(shape: bytes, chunks: list[tuple[bytes, bytes, str, int]], data: bytes) -> Attack:
    """An embedding and a head of one shape and the same chunks: offsets, sizes, file and place."""
    keys = [text("model.model.embed_tokens.weight"), text("model.lm_head.weight")]
    boxes = list_of(*(chunk(offsets, sizes) for offsets, sizes, _, _ in chunks))
    length = number(len(data) // 2)
    places = [(index(key, offsets), info(text(file), number(place + turn), length))
              for turn, key in zip((0, len(data) // 2), keys, strict=True)
              for offsets, _, file, place in chunks]  # fmt: skip
    entries = dict_of(*((key, tensor_entry(shape, boxes)) for key in keys))
    return Attack({".metadata": description(entries, dict_of(*places)), FILE: data}, 3)


def test_tied_tensors_of_a_hostile_shape_cost_no_memory(tmp_path: Path) -> None:
    """A hundred bytes that claim 16 petabytes, twice, under a config that ties them: refused."""
    two_tensors(HUGE, [(size(0, 0), HUGE, FILE, 0)], b"\0" * 200).write(tmp_path / "checkpoint")
    (tmp_path / "assets").mkdir()
    (tmp_path / "assets/config.json").write_text('{"tie_word_embeddings": true}')

    def convert() -> None:
        with pytest.raises(CheckpointError, match=FILE):
            hubmerge.convert(tmp_path / "checkpoint", tmp_path / "out",
                             model_assets_dir=tmp_path / "assets")  # fmt: skip

    assert in_little_memory(convert) == 0


def test_a_hostile_shape_is_cut_one_slab_at_a_time() -> None:
    """The first slabs of a tensor of 16 petabytes are there at once."""
    shape = (10**9, 2**22)
    stored = StoredTensor("a", "float32", shape, [Chunk((0, 0), shape, FILE, 0, 100)])

    def cut_it() -> None:
        first = list(islice(cut(Box((0, 0), shape), BLOCK_BYTES // 4), 9))
        assert [box.offsets for box in first[:2]] == [(0, 0), (0, BLOCK_BYTES // 4)]
        assert first[8].offsets == (1, 0)
        fp32 = BY_NAME["float32"]
        planned = PlannedTensor("a", fp32, shape, fp32, TensorView.whole(stored).parts)
        assert [slab.start for slab in islice(slabs(planned), 3)] == [0, 2**19, 2**20]

    assert in_little_memory(cut_it) == 0


def test_tensors_are_compared_once_all_their_parts_are_there(tmp_path: Path) -> None:
    """A part that is missing is told, and not a difference in an earlier one."""
    row = BLOCK_BYTES  # more elements than are read at a time
    pickle = records.tensor(sizes=tuple_of(number(1), number(row)), count=number(row),
                            strides=tuple_of(number(row), number(1)))  # fmt: skip
    rows = [records.record(pickle, bytes([n]) * row * 4) for n in range(2)]
    chunks = [(size(n, 0), size(1, row), file, 0) for n, file in enumerate((FILE, "__1_0.distcp"))]
    two_tensors(size(2, row), chunks, b"".join(rows)).write(tmp_path / "checkpoint")
    left, right = read_checkpoint(tmp_path / "checkpoint").tensors.values()
    with pytest.raises(CheckpointError, match=r"__1_0.distcp: .*embed_tokens"):
        same_elements(left, right, DataFiles(tmp_path / "checkpoint"))


def in_little_memory(work: Callable[[], None]) -> int:
    """Run it in a process of its own that may take what an attack may; see `in_child`."""

    def limited() -> None:
        limit = used_bytes() + MEMORY_BYTES
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        work()

    return in_child(limited)


# ---- The assets folder ----

DEEP = "[" * 200_000
BAD_CONFIGS = {
    "deep": DEEP.encode(),
    "deep-objects": b'{"a":' * 200_000,
    "cut": b'{"a": 1',
    "array": b"[]",
    "text": b'"x"',
    "empty": b"",
    "utf16": '{"dtype": "float32"}'.encode("utf-16"),
    "latin1": '{"a": "\xe9"}'.encode("latin-1"),
    "long-number": b'{"a": ' + b"9" * 100_000 + b"}",
    "too-large": b'{"a": "' + b" " * (64 * 2**20) + b'"}',
}


def honest_checkpoint(tmp_path: Path) -> Path:
    """A folder with one tensor."""
    of_metadata(one_tensor(len(RECORD)), 0).write(tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json"])
@pytest.mark.parametrize("kind", BAD_CONFIGS)
def test_a_hostile_config_is_refused(kind: str, file: str, tmp_path: Path) -> None:
    """A config that is no JSON object of a sane size and depth is a usage error that names it."""
    assets = tmp_path / "assets"
    assets.mkdir()
    (assets / file).write_bytes(BAD_CONFIGS[kind])
    with pytest.raises(hubmerge.HubmergeError) as refusal:
        hubmerge.convert(honest_checkpoint(tmp_path), tmp_path / "out", model_assets_dir=assets)
    assert refusal.value.exit_code == 2
    assert file in str(refusal.value)
    assert not (tmp_path / "out").exists()


AUTO_MAPS = [
    "../../outside.Class", "../outside.Class", "/etc/passwd.Class", "..\\outside.Class",
    "sub/inside.Class", "a.b.c.Class", "", ".", "..", "\0.Class", "x" * 100_000 + ".Class",
    ["../../outside.Class", None], {"a": "../../outside.Class"}, 1, None, True,
    ["ok.Class"] * 100_000,
]  # fmt: skip


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json"])
def test_auto_map_takes_no_file_from_elsewhere(file: str, tmp_path: Path) -> None:
    """No `auto_map` and no import brings in a file but a plain module of the assets folder."""
    assets = tmp_path / "in" / "assets"
    (assets / "sub").mkdir(parents=True)
    for place in (tmp_path, tmp_path / "in", assets / "sub"):
        (place / "outside.py").write_text("secret = 1")
        (place / "inside.py").write_text("secret = 1")
    # Deep enough to exhaust the parser, then imports that lead out.
    (assets / "ok.py").write_text("from .bad import x\nfrom .. import outside\nimport os\n")
    (assets / "bad.py").write_text("x = " + "(" * 5_000 + ")" * 5_000)
    auto_map = {str(number): value for number, value in enumerate(AUTO_MAPS)}
    (assets / file).write_text(json.dumps({"auto_map": auto_map}))
    hubmerge.convert(honest_checkpoint(tmp_path), tmp_path / "out", model_assets_dir=assets)
    written = {p.name for p in (tmp_path / "out").iterdir()}
    weights = {"model.safetensors", "README.md", ".hubmerge.json"}
    assert written == {file, "ok.py", "bad.py", *weights}
