"""One request on its way through the Hub: who asks, for what, and the bytes as they come in."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, unquote

from starlette.requests import Request
from starlette.types import Message, Receive, Scope

from . import errors

if TYPE_CHECKING:
    from .accounts import Access, Token
    from .faults import Fault
    from .repo import Repo
    from .server import Hub


class Bandwidth:
    """A limit shared by all uploads, like a machine's uplink. None means no limit."""

    def __init__(self) -> None:
        self.bytes_per_s: float | None = None
        self._free_at = 0.0

    async def take(self, count: int) -> None:
        """Wait until the line has carried `count` more bytes."""
        if not self.bytes_per_s:
            return
        now = time.monotonic()
        self._free_at = max(now, self._free_at) + count / self.bytes_per_s
        await asyncio.sleep(self._free_at - now)


class Call:
    """What a handler sees of a request."""

    def __init__(self, hub: Hub, endpoint: str, scope: Scope, receive: Receive) -> None:
        self.hub = hub
        self.endpoint = endpoint
        self.received = 0
        self.complete = False
        self.fault: Fault | None = None
        self.line: Bandwidth | None = None
        self._receive = receive
        self.request = Request(scope, self._counting_receive)
        # Routing happens on the path as sent: a branch's slash arrives as %2F and must stay one
        # segment. Only here is it decoded.
        self.params = {key: unquote(value) for key, value in scope["path_params"].items()}

    async def _counting_receive(self) -> Message:
        message = await self._receive()
        size = len(message.get("body", b""))
        self.received += size
        self.complete = self.complete or not message.get("more_body", False)
        if size and self.line is not None:
            await self.line.take(size)
        return message

    # -- what is asked ---------------------------------------------------------------------------

    @property
    def method(self) -> str:
        """The HTTP method."""
        return self.request.method

    @property
    def path(self) -> str:
        """The path and query as sent."""
        query = self.request.url.query
        return f"{self.request.scope['path']}?{query}" if query else str(self.request.scope["path"])

    @property
    def repo_id(self) -> str | None:
        """The repo in the URL."""
        namespace, name = self.params.get("namespace"), self.params.get("name")
        return f"{namespace}/{name}" if namespace and name else None

    @property
    def revision(self) -> str | None:
        """The revision in the URL."""
        return self.params.get("revision")

    def flag(self, name: str) -> bool:
        """A boolean of the query."""
        return self.request.query_params.get(name, "").lower() in ("1", "true")

    # -- who asks --------------------------------------------------------------------------------

    def token(self) -> Token | None:
        """The request's token, None if it has none; refuses bad ones."""
        return self.hub.accounts.authenticate(self.request.headers.get("authorization"))

    def user(self) -> str:
        """The user behind the request; refuses anonymous ones."""
        token = self.token()
        if token is None:
            raise errors.ApiError(401, errors.NOT_LOGGED_IN)
        return token.user

    def repo(self, access: Access = "read") -> Repo:
        """The repo in the URL, if the request may read (or write) it."""
        token = self.token()
        repo = self.hub.repos.get(self.repo_id or "")
        if repo is None:
            raise errors.login_required() if token is None else errors.repo_not_found()
        self.hub.accounts.check(token, repo, access)
        return repo

    # -- what is sent ----------------------------------------------------------------------------

    def stream(self) -> AsyncIterator[bytes]:
        """The body in pieces."""
        return self.request.stream()

    async def body(self) -> bytes:
        """The whole body."""
        return await self.request.body()

    async def json(self) -> dict[str, Any]:
        """The body as a JSON object."""
        try:
            value = json.loads(await self.body() or b"{}")
        except ValueError as error:
            raise errors.bad_request(f"Invalid JSON: {error}") from error
        if not isinstance(value, dict):
            raise errors.bad_request("Expected a JSON object")
        return value

    async def form(self) -> dict[str, list[str]]:
        """The body as an URL-encoded form."""
        return parse_qs((await self.body()).decode())

    async def drain(self) -> None:
        """Read what is left of the body: a reply sent before that can be lost in a reset."""
        while not self.complete:
            if (await self._counting_receive())["type"] == "http.disconnect":
                return
