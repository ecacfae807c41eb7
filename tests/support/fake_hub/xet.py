"""Xet: the real hf_xet client writes into a folder of ours, and the Hub reads what it finds there.

The token endpoints answer with `casUrl: "local://<folder>"`, which hf_xet takes for a store on this
machine. An upload locks that store, so two processes can upload over xet only one after the other;
downloads are handed a view of their own and may run beside anything. Nothing of an upload goes over
HTTP, so there is no bandwidth to limit and no request to fault but the tokens.

A real store outlives its clients. This one is opened by the client itself, and one that is killed
while it creates the store's database leaves a file that none can open: so it is here beforehand.
"""

from __future__ import annotations

import functools
import itertools
import os
import shutil
import struct
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from starlette.responses import JSONResponse, Response

from .call import Call

_HEADER, _RECORD, _END = 48, 48, b"\xff" * 32
_WITH_VERIFICATION, _WITH_SHA256 = 0x80000000, 0x40000000
_XORBS = Path("xet/xorbs")
_DATABASE = "global_dedup_lookup.redb"

# Opens a store, which creates its database, and fetches the files that are named: maybe none.
_FETCH = """
import sys, time, hf_xet
url, *files = sys.argv[1:]
group = hf_xet.XetSession().new_file_download_group(
    endpoint=url, token="-", token_expiry_unix_secs=int(time.time()) + 3600
)
with group:
    for file_hash, size, target in zip(files[::3], files[1::3], files[2::3]):
        group.start_download_file(hf_xet.XetFileInfo(file_hash, int(size)), target)
"""


@dataclass(frozen=True)
class XetBlob:
    """A file that xet holds."""

    sha256: str
    xet_hash: str
    size: int


def _hex(raw: bytes) -> str:
    # Xet prints hashes as four little-endian numbers.
    return "".join(f"{number:016x}" for number in struct.unpack("<4Q", raw))


def read_shard(data: bytes) -> list[XetBlob]:
    """The files that a shard describes: its header, then for each file a header and records."""
    blobs, at = [], _HEADER
    while data[at : at + 32] != _END:
        file_hash = _hex(data[at : at + 32])
        flags, count = struct.unpack_from("<II", data, at + 32)
        segments = at + _RECORD
        size = sum(
            struct.unpack_from("<I", data, segments + _RECORD * i + 36)[0] for i in range(count)
        )
        at = segments + _RECORD * count * (2 if flags & _WITH_VERIFICATION else 1)
        if flags & _WITH_SHA256:
            blobs.append(XetBlob(_hex(data[at : at + 32]), file_hash, size))
            at += _RECORD
    return blobs


def _open(url: str, home: Path, *files: str) -> None:
    # In a process of its own: hf_xet writes logs under HF_HOME and keeps threads alive.
    env = {**os.environ, "HF_HOME": str(home)}
    subprocess.run([sys.executable, "-c", _FETCH, url, *files], check=True, env=env, timeout=120)


@functools.cache
def _new_database() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        _open(f"local://{folder}", Path(folder) / "home")
        return (Path(folder) / _XORBS / _DATABASE).read_bytes()


class XetStore:
    """The folder that hf_xet writes to, read from outside."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "cas"
        self.views = folder / "views"
        self._xorbs = self.folder / _XORBS
        for name in ("shards", "xorbs"):
            (self._xorbs / name).mkdir(parents=True, exist_ok=True)
        if not (self._xorbs / _DATABASE).exists():
            (self._xorbs / _DATABASE).write_bytes(_new_database())
        self.token_seconds = 3600
        self._shards: dict[Path, list[XetBlob]] = {}
        self._lost: dict[str, set[Path]] = {}
        self._view = itertools.count(1)

    @property
    def url(self) -> str:
        """What to send uploads to."""
        return f"local://{self.folder}"

    def blobs(self) -> dict[str, XetBlob]:
        """All files in the store, by sha256."""
        for path in (self._xorbs / "shards").glob("*.mdb"):
            if path not in self._shards:
                self._shards[path] = read_shard(path.read_bytes())
        return {
            blob.sha256: blob
            for path, shard in self._shards.items()
            for blob in shard
            if path not in self._lost.get(blob.sha256, ())
        }

    def stored_bytes(self) -> int:
        """What the store takes on disk: grows only by content that was not there before."""
        return sum(path.stat().st_size for path in (self._xorbs / "xorbs").glob("default.*"))

    def forget(self, sha256: str) -> None:
        """Lose a blob, as the Hub loses those that nobody commits within a day or so."""
        # hf_xet writes another shard when the same content is sent again: only those are believed.
        self.blobs()
        self._lost[sha256] = set(self._shards)

    def view(self) -> str:
        """A store for one reader: the same content, but a lock database of its own."""
        folder = self.views / str(next(self._view))
        inner = folder / _XORBS
        inner.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(self._xorbs / _DATABASE, inner / _DATABASE)
        for name in ("shards", "xorbs"):
            (inner / name).symlink_to(self._xorbs / name)
        return f"local://{folder}"

    def fetch(self, blob: XetBlob, target: Path) -> None:
        """Write a blob's content to a file, for readers that do not speak xet."""
        part = target.with_name(f".{target.name}.{next(self._view)}")
        _open(self.view(), self.views / "home", blob.xet_hash, str(blob.size), str(part))
        part.replace(target)


def _grant(call: Call, url: str) -> Response:
    expires = int(time.time()) + call.hub.xet.token_seconds
    headers = {
        "X-Xet-Cas-Url": url,
        "X-Xet-Access-Token": "xet-token",
        "X-Xet-Token-Expiration": str(expires),
    }
    body = {"casUrl": url, "exp": expires, "accessToken": "xet-token"}
    return JSONResponse(body, headers=headers)


async def write_token(call: Call) -> Response:
    """GET /api/models/{repo}/xet-write-token/{revision}"""
    create_pr = call.flag("create_pr")
    repo = call.repo("read" if create_pr else "write")
    call.user()
    # With create_pr the client knows no revision and sends the word None.
    if not create_pr:
        repo.resolve(call.params["revision"])
    return _grant(call, call.hub.xet.url)


async def read_token(call: Call) -> Response:
    """GET /api/models/{repo}/xet-read-token/{revision}"""
    repo = call.repo()
    call.hub.accounts.check_content(call.token(), repo)
    repo.resolve(call.params["revision"])
    return _grant(call, call.hub.xet.view())
