"""Things that go wrong on demand, picked by endpoint and count.

    hub.faults.add("commit", times=2, status=503, retry_after=1)
    hub.faults.add("lfs_*", reset="in")
    hub.faults.add("commit", lost="reset")            # done, but nobody is told
    hub.faults.add("commit", move_head="main")        # somebody else was faster

The first fault that matches a request takes it; `Fault.hits` tells a test that it happened.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import socket
import struct
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, Literal

from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, Response

from .call import Bandwidth, Call

Reset = Literal["before", "in", "after"]
Hook = Callable[[Call], Any]

KINDS = ("status", "hold", "reset", "lost", "wrong_bytes", "revoke", "move_head", "slow", "hook")


class ConnectionCutError(Exception):
    """The connection has been aborted; nothing more can be sent on it."""


@dataclass
class Fault:
    """One planned failure; see `Faults.add` for the fields."""

    endpoint: str
    times: int | None = 1
    skip: int = 0
    status: int | None = None
    retry_after: int | str | None = None
    headers: dict[str, str] = field(default_factory=dict)
    hold: float | None = None
    reset: Reset | None = None
    lost: Literal["reset"] | int | None = None
    wrong_bytes: str | None = None
    revoke: str | bool | None = None
    move_head: str | None = None
    slow: float | None = None
    hook: Hook | None = None
    repo_id: str | None = None
    revision: str | None = None
    when: Callable[[Call], bool] | None = None
    seen: int = 0
    hits: int = 0

    def __post_init__(self) -> None:
        if not self.kinds or len([kind for kind in self.kinds if kind != "hold"]) > 1:
            raise ValueError(f"a fault needs one of {', '.join(KINDS)}, and only hold beside it")
        if self.wrong_bytes is not None and self.endpoint != "commit":
            raise ValueError("wrong_bytes is for the endpoint commit, where content gets its name")
        if self.reset not in (None, "before", "in", "after"):
            raise ValueError(f"reset must be before, in or after, not {self.reset!r}")

    @property
    def kinds(self) -> list[str]:
        """What it does."""
        return [kind for kind in KINDS if getattr(self, kind) is not None]

    def __str__(self) -> str:
        return ", ".join(f"{kind}={getattr(self, kind)}" for kind in self.kinds)

    @property
    def exhausted(self) -> bool:
        """Whether it has happened as often as planned."""
        return self.times is not None and self.hits >= self.times

    def matches(self, call: Call) -> bool:
        """Whether the request is one of those meant."""
        return (
            not self.exhausted
            and fnmatchcase(call.endpoint, self.endpoint)
            and self.repo_id in (None, call.repo_id)
            and self.revision in (None, call.revision)
            and (self.when is None or self.when(call))
        )

    async def before(self, call: Call) -> Response | None:
        """What happens ahead of the handler; a response replaces it."""
        if self.hold is not None:
            await asyncio.sleep(self.hold)
        if self.revoke is not None:
            self._revoke(call)
        if self.move_head is not None and call.repo_id is not None:
            call.hub.commit(call.repo_id, {"somebody-else.txt": b"hello\n"}, self.move_head)
        if self.slow is not None:
            call.line = Bandwidth()
            call.line.bytes_per_s = self.slow
        if self.reset is not None:
            await self._reset(call)
        if self.status is not None:
            return self._refuse(self.status)
        if self.hook is not None:
            # In a thread, so that a hook may block, kill a process, or even call the Hub itself.
            result = await asyncio.to_thread(self.hook, call)
            result = await result if inspect.isawaitable(result) else result
            return result if isinstance(result, Response) else None
        if self.kinds == ["hold"]:
            await cut(call)
        return None

    async def after(self, call: Call) -> Response | None:
        """What happens once the handler has done its work."""
        if self.lost is None:
            return None
        if isinstance(self.lost, int):
            return self._refuse(self.lost)
        await cut(call)
        return None

    def _refuse(self, status: int) -> Response:
        headers = dict(self.headers)
        if self.retry_after is not None:
            headers["Retry-After"] = str(self.retry_after)
        return JSONResponse({"error": f"injected fault: {status}"}, status, headers)

    def _revoke(self, call: Call) -> None:
        value = call.request.headers.get("authorization", "").removeprefix("Bearer ")
        call.hub.accounts.revoke(self.revoke if isinstance(self.revoke, str) else value)

    async def _reset(self, call: Call) -> None:
        if self.reset == "in":
            expected = int(call.request.headers.get("content-length", 0))
            with contextlib.suppress(ClientDisconnect):
                async for _ in call.stream():
                    if call.received >= expected / 2:
                        break
        elif self.reset == "after":
            await call.drain()
        await cut(call)


class Faults:
    """The faults that are waiting to happen."""

    def __init__(self, endpoints: Sequence[str]) -> None:
        self._endpoints = endpoints
        self._lock = threading.Lock()
        self._faults: list[Fault] = []

    def __iter__(self) -> Iterator[Fault]:
        return iter(list(self._faults))

    def add(self, endpoint: str, **spec: Any) -> Fault:
        """Plan a failure of the next request to `endpoint` (a name or a pattern).

        How often: `times` (None: from now on), after letting `skip` requests pass. Which ones:
        `repo_id`, `revision`, `when(call)`. What, exactly one unless noted:

        - `status`: this answer, after reading the body; with `retry_after`, `headers`
        - `hold`: keep the connection open for so many seconds, then cut it; beside another kind,
          only the delay
        - `reset`: cut the connection ``"before"``, ``"in"`` or ``"after"`` the body, no effect
        - `lost`: the effect takes place, but the answer is a cut (``"reset"``) or this status
        - `wrong_bytes`: files matching this pattern are committed with other content than sent
        - `revoke`: the request's token (True) or the one given is dead from now on
        - `move_head`: somebody else commits to this branch just before the request is handled
        - `slow`: bytes per second for this request's body
        - `hook`: called with the request; a returned Response is the answer
        """
        if not any(fnmatchcase(name, endpoint) for name in self._endpoints):
            raise ValueError(f"no endpoint {endpoint}; there are {', '.join(self._endpoints)}")
        fault = Fault(endpoint, **spec)
        with self._lock:
            self._faults.append(fault)
        return fault

    def take(self, call: Call) -> Fault | None:
        """The fault for this request, if any; counts it."""
        with self._lock:
            for fault in self._faults:
                if fault.matches(call):
                    fault.seen += 1
                    if fault.seen > fault.skip:
                        fault.hits += 1
                        return fault
        return None

    def pending(self) -> list[Fault]:
        """Those that have not happened as often as planned."""
        return [fault for fault in self if fault.times is not None and not fault.exhausted]

    def clear(self) -> None:
        """No faults any more."""
        with self._lock:
            self._faults.clear()


async def cut(call: Call) -> None:
    """Abort the TCP connection (a reset, not an orderly end) and stop handling the request."""
    transport = call.hub.transport_of(call.request)
    if transport is not None:
        sock = transport.get_extra_info("socket")
        if sock is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        transport.abort()
        # Lets uvicorn notice, or it would complain that no response was sent.
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    raise ConnectionCutError
