"""Downloads: where a file is (`resolve`), and its bytes.

The detours are those of the real Hub: a regular file is reached by a redirect on the same origin,
which the client follows on HEAD; LFS content by one to another origin, which it does not follow,
because the metadata is on the redirect and the token must not leave the Hub.
"""

from __future__ import annotations

import asyncio
import secrets
from urllib.parse import quote

from starlette.responses import FileResponse, PlainTextResponse, Response

from . import errors
from .call import Call
from .repo import FileEntry, Repo


def _entry(call: Call) -> tuple[Repo, str, FileEntry]:
    repo = call.repo()
    call.hub.accounts.check_content(call.token(), repo)
    commit, path = repo.resolve(call.params["revision"]), call.params["path"]
    if path not in commit.files:
        raise errors.entry_not_found("Entry not found", commit.sha)
    return repo, commit.sha, commit.files[path]


async def resolve(call: Call) -> Response:
    """GET or HEAD /{repo}/resolve/{revision}/{path}"""
    repo, sha, entry = _entry(call)
    headers = {"X-Repo-Commit": sha, "Accept-Ranges": "bytes", "X-Linked-Etag": f'"{entry.oid}"'}
    if entry.sha256 is None:
        target = f"/api/resolve-cache/models/{repo.id}/{sha}/{quote(call.params['path'])}"
        return _redirect(307, target, headers)
    headers |= {"X-Linked-Size": str(entry.size), "Cache-Control": "no-store"}
    if entry.xet_hash is not None:
        token_url = f"{call.hub.url}/api/models/{repo.id}/xet-read-token/{sha}"
        headers["X-Xet-Hash"] = entry.xet_hash
        headers["Link"] = f'<{token_url}>; rel="xet-auth"'
    # Whoever holds the URL may read: it stands for a signed one.
    key = secrets.token_hex(16)
    call.hub.signed[key] = entry
    return _redirect(302, f"{call.hub.storage_url}/content/{key}", headers)


def _redirect(status: int, target: str, headers: dict[str, str]) -> Response:
    text = f"Redirecting to {target}"
    return PlainTextResponse(text, status, headers={**headers, "Location": target})


async def cached(call: Call) -> Response:
    """GET or HEAD of a regular file's bytes"""
    _, sha, entry = _entry(call)
    path = call.hub.spool(entry)
    headers = {"X-Repo-Commit": sha, "ETag": f'"{entry.blob_id}"'}
    return FileResponse(path, headers=headers, media_type="text/plain")


async def content(call: Call) -> Response:
    """GET or HEAD of an LFS blob's bytes, on the storage origin"""
    entry = call.hub.signed.get(call.params["key"])
    if entry is None:
        raise errors.forbidden("Request has expired")
    path = await asyncio.to_thread(call.hub.spool, entry)
    headers = {"ETag": f'"{entry.sha256}"'}
    return FileResponse(path, headers=headers, media_type="application/octet-stream")
