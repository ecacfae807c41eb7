"""The Hub itself: its state, its life as a thread of the test process, and what tests ask of it.

with Hub(tmp_path) as hub:
    subprocess.run([...], env=hub.env())
    hub.files("alice/model", "main")
"""

from __future__ import annotations

import asyncio
import os
import socket
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal

import uvicorn
from starlette.requests import Request
from starlette.routing import Router
from starlette.types import ASGIApp, Receive, Scope, Send

from . import rules
from .accounts import STRANGER, USER, Accounts
from .call import Bandwidth
from .faults import Faults
from .gate import Protocol
from .lfs import LfsStore
from .log import RequestLog
from .repo import HEADS, Commit, Edit, FileEntry, Files, Repo
from .routes import ENDPOINTS, routes
from .xet import XetStore

if TYPE_CHECKING:
    from huggingface_hub import HfApi

Transport = Literal["xet", "lfs"]
MIB = 1024 * 1024


@dataclass(frozen=True)
class State:
    """What a reader of a branch could have seen from `time` on."""

    time: float
    sha: str
    files: Files


class _Server(uvicorn.Server):
    """uvicorn without its polling: a test suite stops a hundred Hubs."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.stopping = asyncio.Event()

    async def main_loop(self) -> None:
        """Serve until told to stop."""
        await self.stopping.wait()


class Hub:
    """A Hugging Face Hub on loopback. Nothing outlives it: the repos are in memory."""

    def __init__(
        self,
        folder: Path,
        transport: Transport = "xet",
        *,
        port: int = 0,
        part_size: int = 1 * MIB,
        lfs_threshold: int = 10 * MIB,
        page_size: int = 1000,
    ) -> None:
        """`part_size`: LFS files above it go multipart; `page_size`: entries per listing page."""
        self.folder = Path(folder).resolve()
        self.transport = transport
        self.lfs_threshold = lfs_threshold
        self.page_size = page_size
        #: How long a commit takes; it refuses others to the same repo for so long.
        self.commit_seconds = 0.0
        self.accounts = Accounts()
        self.log = RequestLog()
        self.faults = Faults(ENDPOINTS)
        self.bandwidth = Bandwidth()
        self.repos: dict[str, Repo] = {}
        self.signed: dict[str, FileEntry] = {}
        self.lfs = LfsStore(self.folder / "lfs", part_size)
        self.xet = XetStore(self.folder / "xet")
        self._sockets = [_listen(port), _listen(0)]
        self._transports: dict[Any, Any] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._server = self._make_server()
        self._thread = threading.Thread(target=self._serve, name="hub", daemon=True)

    # -- life ------------------------------------------------------------------------------------

    def _make_server(self) -> _Server:
        protocol = type("HubProtocol", (Protocol,), {"transports": self._transports})
        config = uvicorn.Config(
            _raw_paths(Router(routes(self), redirect_slashes=False)),
            http=protocol,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            timeout_keep_alive=60,
            timeout_graceful_shutdown=1,
        )
        return _Server(config)

    def _serve(self) -> None:
        asyncio.run(self._run())

    async def _run(self) -> None:
        self._loop = asyncio.get_running_loop()
        await self._server.serve(sockets=self._sockets)

    def start(self) -> Hub:
        """Accept requests."""
        self._thread.start()
        deadline = time.monotonic() + 120
        while not self._server.started:
            if time.monotonic() > deadline or not self._thread.is_alive():
                raise RuntimeError("the test Hub did not start")
            time.sleep(0.005)
        return self

    def stop(self, wait: bool = True) -> None:
        """Close every connection and end the thread."""
        if self._thread.is_alive() and self._loop is not None:
            self._loop.call_soon_threadsafe(self._hang_up)
        if wait:
            self._thread.join(10)

    def _hang_up(self) -> None:
        # Idle connections of clients would otherwise be waited for.
        for transport in list(self._transports.values()):
            transport.abort()
        self._server.stopping.set()

    def __enter__(self) -> Hub:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def transport_of(self, request: Request) -> Any:
        """The connection of a request, for faults that cut it."""
        return self._transports.get(tuple(request.client) if request.client else None)

    # -- how to reach it -------------------------------------------------------------------------

    @property
    def url(self) -> str:
        """The endpoint."""
        return f"http://127.0.0.1:{self._sockets[0].getsockname()[1]}"

    @property
    def storage_url(self) -> str:
        """The origin that stands for S3 and the CDN; the client sends no token there."""
        return f"http://127.0.0.1:{self._sockets[1].getsockname()[1]}"

    @property
    def token(self) -> str:
        """A token of `alice` that may write to her repos and to those of `acme`."""
        return self.tokens["write"]

    @property
    def tokens(self) -> dict[str, str]:
        """All tokens: write, read, fine_user (not `acme`), fine_org, stranger, revoked."""
        return {name: token.value for name, token in self.accounts.tokens.items()}

    def env(self, token: str | None = "write", **extra: str) -> dict[str, str]:
        """An environment for a subprocess whose Hub is this one; `token` by its name or None."""
        kept = {
            key: value
            for key, value in os.environ.items()
            if not key.startswith(("HF_", "HUGGING", "TRANSFORMERS_OFFLINE"))
        }
        kept |= {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(self.folder / "home"),
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_UPDATE_CHECK": "1",
            "NO_PROXY": "127.0.0.1,localhost",
            "no_proxy": "127.0.0.1,localhost",
        }
        if token is not None:
            kept["HF_TOKEN"] = self.tokens[token]
        if self.transport == "lfs":
            kept["HF_HUB_DISABLE_XET"] = "1"
        return kept | extra

    def api(self, token: str | Literal[False] = "write") -> HfApi:
        """A client in this process; `token` by its name, or False for none."""
        from huggingface_hub import HfApi

        value = self.tokens[token] if isinstance(token, str) else False
        return HfApi(endpoint=self.url, token=value)

    # -- what is in it ---------------------------------------------------------------------------

    def repo(self, repo_id: str) -> Repo:
        """A repo."""
        return self.repos[repo_id]

    def create_repo(self, repo_id: str, private: bool = False, author: str = USER) -> Repo:
        """Add a repo, as one that was there before the test began."""
        self.repos[repo_id] = Repo(repo_id, author, private)
        return self.repos[repo_id]

    def head(self, repo_id: str, revision: str = "main") -> str:
        """The sha of a revision."""
        return self.repo(repo_id).resolve(revision).sha

    def files(self, repo_id: str, revision: str = "main") -> Files:
        """The file tree of a revision."""
        return self.repo(repo_id).resolve(revision).files

    def read(self, repo_id: str, path: str, revision: str = "main") -> bytes:
        """A file's content, LFS or not."""
        return self.content(self.files(repo_id, revision)[path])

    def commit(
        self,
        repo_id: str,
        changes: Mapping[str, bytes | None],
        branch: str = "main",
        title: str = "somebody else's commit",
    ) -> Commit:
        """Commit behind the client's back: bytes, or None for a deletion."""
        repo = self.repo(repo_id)
        edits = [Edit(path, self._stored(repo, path, data)) for path, data in changes.items()]
        return repo.commit(HEADS + branch, edits, title, author=STRANGER)

    def _stored(self, repo: Repo, path: str, data: bytes | None) -> FileEntry | None:
        if data is None:
            return None
        if not rules.goes_to_lfs(
            rules.DEFAULT_GITATTRIBUTES, path, len(data), data[:512], self.lfs_threshold
        ):
            return FileEntry.regular(data)
        oid = self.lfs.put(data)
        repo.lfs_objects.add(oid)
        return FileEntry.lfs(oid, len(data))

    def content(self, entry: FileEntry) -> bytes:
        """The bytes of a file."""
        return entry.content if entry.content is not None else self.spool(entry).read_bytes()

    def spool(self, entry: FileEntry) -> Path:
        """A file on disk with the entry's bytes."""
        if entry.xet_hash is None and entry.sha256 is not None:
            return self.lfs.path(entry.sha256)
        path = self.folder / "spool" / entry.oid
        if not path.exists():
            path.parent.mkdir(exist_ok=True)
            if entry.content is not None:
                path.write_bytes(entry.content)
            else:
                self.xet.fetch(self.xet.blobs()[entry.oid], path)
        return path

    def forget_blob(self, sha256: str) -> None:
        """Lose an uploaded blob, as the Hub does with those that stay uncommitted for a day."""
        self.lfs.forget(sha256)
        self.xet.forget(sha256)

    # -- what has happened -----------------------------------------------------------------------

    def states(self, repo_id: str, branch: str = "main") -> list[State]:
        """Every tree that a reader of the branch could have seen, oldest first."""
        repo = self.repo(repo_id)
        moves = [m for m in repo.moves if m.ref == HEADS + branch and m.new is not None]
        return [State(m.time, str(m.new), repo.commits[str(m.new)].files) for m in moves]

    @property
    def uploaded_bytes(self) -> int:
        """All LFS bytes that were received, of finished uploads and others."""
        return sum(self.lfs.received.values())

    @property
    def upload_bytes_per_s(self) -> float | None:
        """A limit on LFS uploads, all of them together. Xet does not pass through the Hub."""
        return self.bandwidth.bytes_per_s

    @upload_bytes_per_s.setter
    def upload_bytes_per_s(self, value: float | None) -> None:
        self.bandwidth.bytes_per_s = value

    def check(self) -> None:
        """Fail if the Hub itself has a bug, or was asked for something that it does not have."""
        if self.log.crashes:
            raise AssertionError("the test Hub crashed:\n" + "\n".join(self.log.crashes))
        unknown = [entry.path for entry in self.log.select("unknown")]
        if unknown:
            raise AssertionError(f"requests that the test Hub does not know: {unknown}")


def _listen(port: int) -> socket.socket:
    # With the protocol named, asyncio turns Nagle's algorithm off: else 40 ms for every request.
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    # A large buffer would swallow megabytes of an upload that is meant to be slow.
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 256 * 1024)
    sock.bind(("127.0.0.1", port))
    return sock


def _raw_paths(app: ASGIApp) -> ASGIApp:
    """Route on the path as it was sent, where %2F is not a slash."""

    async def wrapped(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            scope = {**scope, "path": scope["raw_path"].decode("ascii")}
        await app(scope, receive, send)

    return wrapped
