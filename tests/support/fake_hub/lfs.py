"""Git LFS: the blob store and the two ways to upload into it.

Upload URLs lie on the storage origin and need no token, like the presigned S3 URLs that they stand
for. Every byte that arrives is counted per oid, also of uploads that never finish: that is how a
test sees that nothing was sent twice.
"""

from __future__ import annotations

import asyncio
import hashlib
import secrets
from collections import Counter
from dataclasses import dataclass, field
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from starlette.responses import JSONResponse, Response

from . import errors
from .call import Call

if TYPE_CHECKING:
    from .repo import Repo

LFS_JSON = "application/vnd.git-lfs+json"


@dataclass
class Upload:
    """An upload that was announced; `parts` holds the ETags of the parts that have arrived."""

    id: str
    repo: Repo
    oid: str
    size: int
    part_size: int | None
    parts: dict[int, str] = field(default_factory=dict)

    @property
    def part_count(self) -> int:
        """How many parts the client must send."""
        return ceil(self.size / self.part_size) if self.part_size else 1


class LfsStore:
    """Blobs by sha256, on disk; one store for all repos, which each know their own oids."""

    def __init__(self, folder: Path, part_size: int) -> None:
        self.folder = folder
        self.part_size = part_size
        self.uploads: dict[str, Upload] = {}
        #: Bytes that arrived for an oid, finished or not.
        self.received: Counter[str] = Counter()
        #: How many times an oid was uploaded completely.
        self.completed: Counter[str] = Counter()
        folder.mkdir(parents=True, exist_ok=True)

    def path(self, oid: str) -> Path:
        """Where the blob is or will be."""
        return self.folder / oid

    def size(self, oid: str) -> int | None:
        """The blob's size, None if it is not there."""
        path = self.path(oid)
        return path.stat().st_size if path.exists() else None

    def put(self, content: bytes) -> str:
        """Store bytes that did not come over the wire; returns their oid."""
        oid = hashlib.sha256(content).hexdigest()
        self.path(oid).write_bytes(content)
        return oid

    def forget(self, oid: str) -> None:
        """Lose a blob, as the Hub loses those that nobody commits within a day or so."""
        self.path(oid).unlink(missing_ok=True)

    def announce(self, repo: Repo, oid: str, size: int, multipart: bool) -> Upload:
        """Expect an upload."""
        part_size = self.part_size if multipart and size > self.part_size else None
        upload = Upload(secrets.token_hex(16), repo, oid, size, part_size)
        self.uploads[upload.id] = upload
        return upload

    async def receive(self, call: Call, upload: Upload, name: str) -> tuple[Path, str]:
        """Write a request's body to a file of its own; returns that and the body's sha256."""
        path = self.folder / f".{upload.id}.{name}.{secrets.token_hex(4)}"
        digest = hashlib.sha256()
        try:
            with path.open("wb") as file:
                async for chunk in call.stream():
                    self.received[upload.oid] += len(chunk)
                    digest.update(chunk)
                    file.write(chunk)
        except BaseException:
            path.unlink(missing_ok=True)
            raise
        return path, digest.hexdigest()

    def finish(self, upload: Upload, path: Path, digest: str) -> None:
        """Give a received file its name, if it is what was announced."""
        if digest != upload.oid or path.stat().st_size != upload.size:
            path.unlink()
            raise errors.bad_request("The content does not match the announced oid and size")
        path.replace(self.path(upload.oid))
        self.completed[upload.oid] += 1
        upload.repo.lfs_objects.add(upload.oid)

    def part_path(self, upload: Upload, number: int) -> Path:
        """Where a part waits for the others."""
        return self.folder / f".{upload.id}.part{number}"

    def join(self, upload: Upload) -> None:
        """Put the parts together."""
        whole = self.folder / f".{upload.id}.whole"
        digest = hashlib.sha256()
        with whole.open("wb") as file:
            for number in range(1, upload.part_count + 1):
                part = self.part_path(upload, number)
                content = part.read_bytes()
                digest.update(content)
                file.write(content)
                part.unlink()
        self.finish(upload, whole, digest.hexdigest())


def _upload(call: Call) -> Upload:
    upload = call.hub.lfs.uploads.get(call.params["upload"])
    if upload is None:
        raise errors.forbidden("Request has expired")
    return upload


async def batch(call: Call) -> Response:
    """POST /{repo}.git/info/lfs/objects/batch"""
    body = await call.json()
    # Without a ref the upload is for a pull request, which whoever can read may open.
    revision = body.get("ref", {}).get("name")
    repo = call.repo("write" if revision else "read")
    call.user()
    if revision:
        repo.resolve(revision)
    if body.get("operation") != "upload" or len(body["objects"]) > 1000:
        raise errors.bad_request("Expected an upload of at most 1000 objects")
    multipart = "multipart" in body.get("transfers", [])
    objects = [_plan(call, repo, item, multipart) for item in body["objects"]]
    return JSONResponse({"transfer": "basic", "objects": objects}, media_type=LFS_JSON)


def _plan(call: Call, repo: Repo, item: dict[str, Any], multipart: bool) -> dict[str, Any]:
    hub, oid, size = call.hub, item["oid"], item["size"]
    answer: dict[str, Any] = {"oid": oid, "size": size}
    if oid in repo.lfs_objects and hub.lfs.size(oid) is not None:
        return answer
    upload = hub.lfs.announce(repo, oid, size, multipart)
    target = f"{hub.storage_url}/lfs/{upload.id}"
    action: dict[str, Any] = {"href": target}
    if upload.part_size is not None:
        action = {
            "href": f"{hub.url}/api/complete_multipart/{upload.id}",
            "header": {
                "chunk_size": str(upload.part_size),
                **{str(n): f"{target}/{n}" for n in range(1, upload.part_count + 1)},
            },
        }
    verify = {"href": f"{hub.url}/{repo.id}.git/info/lfs/objects/verify"}
    answer["actions"] = {"upload": action, "verify": verify}
    return answer


async def put(call: Call) -> Response:
    """PUT of a whole blob"""
    upload = _upload(call)
    path, digest = await call.hub.lfs.receive(call, upload, "basic")
    call.hub.lfs.finish(upload, path, digest)
    return Response(headers={"ETag": f'"{digest[:32]}"'})


async def put_part(call: Call) -> Response:
    """PUT of one part of a blob"""
    store, upload, number = call.hub.lfs, _upload(call), int(call.params["part"])
    if not 1 <= number <= upload.part_count:
        raise errors.bad_request(f"No part {number}")
    path, digest = await store.receive(call, upload, f"part{number}")
    path.replace(store.part_path(upload, number))
    upload.parts[number] = f'"{digest[:32]}"'
    return Response(headers={"ETag": upload.parts[number]})


async def complete(call: Call) -> Response:
    """POST of the list of parts"""
    upload, body = _upload(call), await call.json()
    sent = {part["partNumber"]: part["etag"] for part in body["parts"]}
    if upload.oid in upload.repo.lfs_objects:
        return JSONResponse({"message": "already complete"})
    if body["oid"] != upload.oid or sent != upload.parts or len(sent) != upload.part_count:
        raise errors.bad_request("The list of parts does not match what was received")
    # In a thread: seconds for a large file, in which other requests must not wait.
    await asyncio.to_thread(call.hub.lfs.join, upload)
    return JSONResponse({"message": "ok"})


async def verify(call: Call) -> Response:
    """POST /{repo}.git/info/lfs/objects/verify"""
    body, repo = await call.json(), call.repo("read")
    call.user()
    if body["oid"] not in repo.lfs_objects or call.hub.lfs.size(body["oid"]) != body["size"]:
        raise errors.ApiError(404, "Object not found")
    return Response(media_type=LFS_JSON)
