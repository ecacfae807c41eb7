"""Endpoints about a repository as a whole: who am I, create, info, settings, refs."""

from __future__ import annotations

import re
import time
from typing import Any

import yaml
from starlette.responses import JSONResponse, Response

from . import errors, git
from .call import Call
from .repo import HEADS, PULLS, TAGS, Commit, FileEntry, Repo

_NAME = re.compile(r"(?!.*(--|\.\.))[A-Za-z0-9][\w.-]{0,94}[A-Za-z0-9]|[A-Za-z0-9]")


def timestamp(seconds: float) -> str:
    """A time as the Hub writes it."""
    whole = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
    return f"{whole}.{int(seconds % 1 * 1000):03d}Z"


async def whoami(call: Call) -> Response:
    """GET /api/whoami-v2"""
    token = call.token()
    if token is None:
        raise errors.ApiError(401, errors.NOT_LOGGED_IN)
    return JSONResponse(call.hub.accounts.whoami(token))


async def agent_harnesses(_: Call) -> Response:
    """GET /api/agent-harnesses: each new process of the client asks this first."""
    return JSONResponse({"harnesses": {}})


async def create_repo(call: Call) -> Response:
    """POST /api/repos/create"""
    body, token = await call.json(), call.token()
    namespace = body.get("organization") or (token.user if token else "")
    if body.get("type", "model") != "model":
        raise errors.bad_request("This Hub has models only")
    if not _NAME.fullmatch(str(body.get("name", ""))):
        raise errors.bad_request(f"Invalid repo name: {body.get('name')}")
    call.hub.accounts.check_create(token, namespace)
    repo_id = f"{namespace}/{body['name']}"
    url = f"{call.hub.url}/{repo_id}"
    if repo_id in call.hub.repos:
        raise errors.conflict("You already created this model repo", url=url)
    private = bool(body.get("private")) or body.get("visibility") == "private"
    call.hub.create_repo(repo_id, private=private, author=call.user())
    return JSONResponse({"url": url, "name": repo_id, "id": repo_id})


async def delete_repo(call: Call) -> Response:
    """DELETE /api/repos/delete"""
    body = await call.json()
    namespace = body.get("organization") or call.user()
    call.params.update(namespace=namespace, name=str(body.get("name")))
    del call.hub.repos[call.repo("write").id]
    return Response("OK")


async def settings(call: Call) -> Response:
    """PUT /api/models/{repo}/settings"""
    body, repo = await call.json(), call.repo("write")
    if "visibility" in body:
        repo.private = body["visibility"] == "private"
    if "gated" in body:
        repo.gated = bool(body["gated"])
    return JSONResponse({"private": repo.private, "gated": repo.gated})


async def auth_check(call: Call) -> Response:
    """GET /api/models/{repo}/auth-check[/write]"""
    if call.path.endswith("/write"):
        call.repo("write")
    else:
        call.hub.accounts.check_content(call.token(), call.repo())
    return Response("OK")


async def repo_info(call: Call) -> Response:
    """GET /api/models/{repo}[/revision/{revision}]"""
    repo = call.repo()
    info = describe(repo, repo.resolve(call.revision or "main"), blobs=call.flag("blobs"))
    wanted = call.request.query_params.getlist("expand")
    if wanted:
        info = {key: value for key, value in info.items() if key in ("_id", "id", *wanted)}
    return JSONResponse(info)


def describe(repo: Repo, commit: Commit, blobs: bool) -> dict[str, Any]:
    """What the Hub tells about a repo at a commit."""
    card = commit.files.get("README.md")
    metadata = _metadata(card.content.decode("utf-8", "replace") if card and card.content else "")
    return {
        "_id": format(int(repo.created * 1e6), "024x"),
        "id": repo.id,
        "modelId": repo.id,
        "author": repo.id.partition("/")[0],
        "sha": commit.sha,
        "lastModified": timestamp(commit.time),
        "createdAt": timestamp(repo.created),
        "private": repo.private,
        "gated": "manual" if repo.gated else False,
        "disabled": False,
        "downloads": 0,
        "likes": 0,
        "tags": [*metadata.get("tags", []), "region:us"],
        "library_name": metadata.get("library_name"),
        "cardData": metadata,
        "usedStorage": sum(entry.size for entry in commit.files.values()),
        "siblings": [_sibling(path, commit.files[path], blobs) for path in sorted(commit.files)],
    }


def _metadata(card: str) -> dict[str, Any]:
    block = re.match(r"\A---\n(.*?)\n---", card, re.DOTALL)
    try:
        value = yaml.safe_load(block.group(1)) if block else None
    except yaml.YAMLError:
        value = None
    return value if isinstance(value, dict) else {}


def _sibling(path: str, entry: FileEntry, blobs: bool) -> dict[str, Any]:
    sibling: dict[str, Any] = {"rfilename": path}
    if blobs:
        sibling |= {"size": entry.size, "blobId": entry.blob_id}
        if entry.sha256:
            pointer = len(git.lfs_pointer(entry.sha256, entry.size))
            sibling["lfs"] = {"sha256": entry.sha256, "size": entry.size, "pointerSize": pointer}
    return sibling


async def refs(call: Call) -> Response:
    """GET /api/models/{repo}/refs"""
    repo = call.repo()

    def listed(prefix: str) -> list[dict[str, str]]:
        return [
            {"name": ref.removeprefix(prefix), "ref": ref, "targetCommit": sha}
            for ref, sha in sorted(repo.refs.items())
            if ref.startswith(prefix)
        ]

    body: dict[str, Any] = {"branches": listed(HEADS), "tags": listed(TAGS), "converts": []}
    if call.flag("include_prs"):
        body["pullRequests"] = listed(PULLS)
    return JSONResponse(body)


async def create_branch(call: Call) -> Response:
    """POST /api/models/{repo}/branch/{branch}"""
    body, repo = await call.json(), call.repo("write")
    repo.create_branch(call.params["branch"], body.get("startingPoint"))
    return Response("OK", status_code=201)


async def delete_branch(call: Call) -> Response:
    """DELETE /api/models/{repo}/branch/{branch}"""
    call.repo("write").delete_branch(call.params["branch"])
    return Response("OK")


async def create_tag(call: Call) -> Response:
    """POST /api/models/{repo}/tag/{revision}"""
    body, repo = await call.json(), call.repo("write")
    repo.create_tag(str(body.get("tag", "")), call.params["revision"])
    return Response("OK", status_code=201)


async def delete_tag(call: Call) -> Response:
    """DELETE /api/models/{repo}/tag/{tag}"""
    # One URL pattern for both verbs: what POST calls the revision is here the tag.
    call.repo("write").delete_tag(call.params["revision"])
    return Response("OK")
