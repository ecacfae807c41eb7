"""One function per parser: it takes any bytes and may raise nothing but our errors.

The corpus in `corpus/TARGET/` holds inputs that once did worse, and honest ones to mutate.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import hubmerge
from hubmerge.checkpoint.data_files import DataFiles
from hubmerge.checkpoint.metadata import read_checkpoint
from hubmerge.checkpoint.schema import Chunk
from hubmerge.checkpoint.tiling import covered
from hubmerge.cli.text import as_json
from hubmerge.hf_format.assets import collect_assets
from hubmerge.hf_format.dtypes import BY_NAME
from hubmerge.hf_format.safetensors_header import read_header
from hubmerge.names.reference import read_reference

CORPUS = Path(__file__).parent / "corpus"
Target = Callable[[bytes], None]


@cache
def scratch() -> TemporaryDirectory[str]:
    """Where targets put the files that they feed; in memory where the machine has such a disk."""
    memory = Path("/dev/shm")
    return TemporaryDirectory(prefix="hubmerge-fuzz-", dir=memory if memory.is_dir() else None)


def folder(name: str) -> Path:
    """A target's own folder."""
    path = Path(scratch().name) / name
    path.mkdir(exist_ok=True)
    return path


def metadata(data: bytes) -> None:
    """`.metadata`, read and proved to cover its tensors."""
    place = folder("metadata")
    (place / ".metadata").write_bytes(data)
    with suppress(hubmerge.HubmergeError):
        checkpoint = read_checkpoint(place)
        for tensor in checkpoint.tensors.values():
            with suppress(hubmerge.HubmergeError):
                covered(tensor)


def inspection(data: bytes) -> None:
    """The same through `hubmerge.inspect`, names and all, without its boundary."""
    place = folder("inspection")
    (place / ".metadata").write_bytes(data)
    with suppress(hubmerge.HubmergeError):
        as_json(hubmerge.inspect.__wrapped__(place))  # type: ignore[attr-defined]


def record(data: bytes) -> None:
    """A data file whose one chunk is a 4x4 fp32 tensor, plain."""
    _record(data, ())


def compressed(data: bytes) -> None:
    """The same behind zstd."""
    _record(data, ("stream.zstd/1",))


def _record(data: bytes, codecs: tuple[str, ...]) -> None:
    place = folder("record")
    (place / "x.distcp").write_bytes(data)
    chunk = Chunk((0, 0), (4, 4), "x.distcp", 0, len(data), codecs)
    with suppress(hubmerge.HubmergeError):
        payload = DataFiles(place).payload(chunk, "key", BY_NAME["float32"])
        assert payload.extent <= 2**20
        payload.source.read_into(payload.offset, memoryview(bytearray(4 * payload.extent)))
        payload.source.view(payload.offset, 4 * payload.extent)


def header(data: bytes) -> None:
    """A safetensors file, and one with sharding information."""
    with suppress(hubmerge.HubmergeError):
        read_header(io.BytesIO(data), "x.safetensors")
    place = folder("header")
    (place / "shard-0.safetensors").write_bytes(data)
    with suppress(hubmerge.HubmergeError):
        read_checkpoint(place)


def config(data: bytes) -> None:
    """config.json and tokenizer_config.json of an assets folder."""
    place = folder("config")
    (place / "ok.py").write_text("")
    for name in ("config.json", "tokenizer_config.json"):
        (place / name).write_bytes(data)
    with suppress(hubmerge.HubmergeError):
        names = {asset.name for asset in collect_assets(place, "bfloat16").files}
        assert names <= {"config.json", "tokenizer_config.json", "ok.py"}


def code(data: bytes) -> None:
    """A module that the config's `auto_map` names; it is parsed, not run."""
    place = folder("code")
    (place / "config.json").write_text(json.dumps({"auto_map": {"AutoModel": "ok.Model"}}))
    (place / "ok.py").write_bytes(data)
    with suppress(hubmerge.HubmergeError):
        collect_assets(place, None)


def index(data: bytes) -> None:
    """The index of a base model."""
    place = folder("index")
    (place / "model.safetensors.index.json").write_bytes(data)
    with suppress(hubmerge.HubmergeError):
        read_reference(place)


TARGETS: dict[str, Target] = {
    target.__name__: target
    for target in (metadata, inspection, record, compressed, header, config, code, index)
}
