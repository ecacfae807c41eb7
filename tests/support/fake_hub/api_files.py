"""Endpoints about the files of a revision: what to upload how, listings, and the commit itself."""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
from fnmatch import fnmatchcase
from typing import Any
from urllib.parse import urlencode

from starlette.responses import JSONResponse, Response

from . import errors, git, rules
from .api_repo import timestamp
from .call import Call
from .repo import HEADS, Commit, Edit, FileEntry, Repo, apply

MAX_PREUPLOAD, MAX_PATHS = 256, 1000


# -- before the upload -------------------------------------------------------------------------


async def preupload(call: Call) -> Response:
    """POST /api/models/{repo}/preupload/{revision}"""
    body = await call.json()
    repo = call.repo("read" if call.flag("create_pr") else "write")
    call.user()
    commit = repo.resolve(call.params["revision"])
    if len(body["files"]) > MAX_PREUPLOAD:
        raise errors.bad_request(f"At most {MAX_PREUPLOAD} files at once")
    gitignore = body.get("gitIgnore")
    if gitignore is None:
        gitignore = _text(commit, ".gitignore")
    files = [_mode(call, commit, item, gitignore) for item in body["files"]]
    return JSONResponse({"files": files})


def _mode(call: Call, commit: Commit, item: dict[str, Any], gitignore: str) -> dict[str, Any]:
    path, sample = item["path"], base64.b64decode(item["sample"])
    attributes = _text(commit, ".gitattributes").encode()
    lfs = rules.goes_to_lfs(attributes, path, item["size"], sample, call.hub.lfs_threshold)
    answer = {
        "path": path,
        "uploadMode": "lfs" if lfs else "regular",
        "shouldIgnore": rules.ignored(gitignore, path),
    }
    if path in commit.files:
        answer["oid"] = commit.files[path].oid
    return answer


def _text(commit: Commit, path: str) -> str:
    entry = commit.files.get(path)
    return (entry.content or b"").decode("utf-8", "replace") if entry else ""


# -- listings ----------------------------------------------------------------------------------


def _describe(
    repo: Repo, commit: Commit, path: str, ids: dict[str, str], expand: bool
) -> dict[str, Any]:
    entry = commit.files.get(path)
    if entry is None:
        item: dict[str, Any] = {"type": "directory", "oid": ids[path], "size": 0, "path": path}
    else:
        item = {"type": "file", "oid": entry.blob_id, "size": entry.size, "path": path}
        if entry.sha256 is not None:
            pointer = len(git.lfs_pointer(entry.sha256, entry.size))
            item["lfs"] = {"oid": entry.sha256, "size": entry.size, "pointerSize": pointer}
        if entry.xet_hash is not None:
            item["xetHash"] = entry.xet_hash
    if expand:
        last = repo.last_change(commit.sha, path)
        item["lastCommit"] = {"id": last.sha, "title": last.title, "date": timestamp(last.time)}
        if entry is not None:
            item["securityFileStatus"] = {
                "status": "queued",
                "avScan": {"status": "queued"},
                "pickleImportScan": {"status": "queued"},
            }
    return item


def _folder_ids(commit: Commit) -> dict[str, str]:
    return git.tree_ids({path: entry.blob_id for path, entry in commit.files.items()})


async def tree(call: Call) -> Response:
    """GET /api/models/{repo}/tree/{revision}[/{path}]?recursive&expand, in pages"""
    repo, revision = call.repo(), call.params["revision"]
    commit = repo.resolve(revision)
    ids, folder = _folder_ids(commit), call.params.get("path", "").strip("/")
    if folder not in ids:
        raise errors.entry_not_found(f'{folder} does not exist on "{revision}"')
    paths = sorted([*commit.files, *(i for i in ids if i)])
    if folder:
        paths = [path for path in paths if path.startswith(folder + "/")]
    if not call.flag("recursive"):
        paths = [path for path in paths if path.rpartition("/")[0] == folder]
    expand = call.flag("expand")
    page, headers = _page(call, paths, call.hub.page_size)
    return JSONResponse([_describe(repo, commit, p, ids, expand) for p in page], headers=headers)


async def commits(call: Call) -> Response:
    """GET /api/models/{repo}/commits/{revision}, in pages"""
    repo = call.repo()
    history = list(repo.history(repo.resolve(call.params["revision"]).sha))
    page, headers = _page(call, history, call.hub.page_size)
    return JSONResponse(
        [
            {
                "id": commit.sha,
                "title": commit.title,
                "message": commit.description,
                "authors": [{"user": commit.author}],
                "date": timestamp(commit.time),
            }
            for commit in page
        ],
        headers={**headers, "X-Total-Count": str(len(history))},
    )


def _page(call: Call, items: list[Any], size: int) -> tuple[list[Any], dict[str, str]]:
    query = dict(call.request.query_params)
    start = int(query.pop("cursor", 0))
    if start + size >= len(items):
        return items[start:], {}
    query["cursor"] = str(start + size)
    url = f"{call.hub.url}{call.request.scope['path']}?{urlencode(query)}"
    return items[start : start + size], {"Link": f'<{url}>; rel="next"'}


async def paths_info(call: Call) -> Response:
    """POST /api/models/{repo}/paths-info/{revision}; missing paths are left out in silence"""
    form, repo = await call.form(), call.repo()
    commit = repo.resolve(call.params["revision"])
    wanted = form.get("paths", [])
    if len(wanted) > MAX_PATHS:
        raise errors.ApiError(413, "too many parameters")
    ids, expand = _folder_ids(commit), form.get("expand", ["false"])[0].lower() == "true"
    known = [path for path in (p.strip("/") for p in wanted) if path in commit.files or path in ids]
    return JSONResponse([_describe(repo, commit, path, ids, expand) for path in known])


# -- the commit --------------------------------------------------------------------------------


async def commit(call: Call) -> Response:
    """POST /api/models/{repo}/commit/{revision}[?create_pr=1], one at a time for each repo"""
    lines = _lines(await call.body())
    repo = call.repo("read" if call.flag("create_pr") else "write")
    if repo.is_busy:
        raise errors.busy()
    repo.is_busy = True
    try:
        await asyncio.sleep(call.hub.commit_seconds)
        return await _commit(call, repo, lines)
    finally:
        repo.is_busy = False


async def _commit(call: Call, repo: Repo, lines: list[tuple[str, dict[str, Any]]]) -> Response:
    create_pr, author = call.flag("create_pr"), call.user()
    header = lines[0][1]
    parent = header.get("parentCommit")
    edits = _edits(call, repo, lines[1:])
    title, description = header.get("summary", ""), header.get("description", "")
    if not title:
        raise errors.bad_request("The commit needs a summary")
    answer: dict[str, Any] = {"success": True}
    with repo.lock:
        ref = repo.branch(call.params["revision"])
        if create_pr:
            base = ref.removeprefix(HEADS)
            # A commit that cannot be made must not leave an empty pull request behind.
            apply(repo.resolve(parent or base).files, edits)
            pull = repo.discuss(title, description, author, base, parent)
            ref, parent = pull.ref, None
            answer["pullRequestUrl"] = f"{call.hub.url}/{repo.id}/discussions/{pull.num}"
        made = repo.commit(ref, edits, title, description, author=author, parent=parent)
    if call.fault is not None and call.fault.wrong_bytes:
        await _store_wrong_bytes(call, repo, ref, edits, call.fault.wrong_bytes)
    answer |= {"commitUrl": f"{call.hub.url}/{repo.id}/commit/{made.sha}", "commitOid": made.sha}
    return JSONResponse(answer)


def _lines(body: bytes) -> list[tuple[str, dict[str, Any]]]:
    try:
        items = [json.loads(line) for line in body.splitlines() if line.strip()]
        lines = [(str(item["key"]), dict(item["value"])) for item in items]
    except (ValueError, KeyError, TypeError) as error:
        raise errors.bad_request(f"Invalid ndjson: {error}") from error
    if not lines or lines[0][0] != "header":
        raise errors.bad_request("The first line must be the header")
    return lines


def _edits(call: Call, repo: Repo, lines: list[tuple[str, dict[str, Any]]]) -> list[Edit]:
    edits, missing = [], []
    for key, value in lines:
        path = _checked_path(str(value.get("path", "")))
        if key == "file":
            edits.append(Edit(path, _regular(call, value)))
        elif key == "lfsFile":
            entry = _blob(call, repo, value)
            if entry is None:
                missing.append(path)
            edits.append(Edit(path, entry))
        elif key in ("deletedFile", "deletedFolder"):
            edits.append(Edit(path, folder=key == "deletedFolder"))
        else:
            raise errors.bad_request(f"Unknown operation {key}")
    if missing:
        raise errors.missing_blob(missing)
    return edits


def _checked_path(path: str) -> str:
    parts = path.rstrip("/").split("/")
    if path.startswith("/") or any(part in ("", ".", "..", ".git") for part in parts):
        raise errors.bad_request(f"Invalid path: {path!r}")
    return path.rstrip("/")


def _regular(call: Call, value: dict[str, Any]) -> FileEntry:
    if value.get("encoding") != "base64":
        raise errors.bad_request("Unknown encoding")
    try:
        content = base64.b64decode(value["content"], validate=True)
    except (binascii.Error, KeyError) as error:
        raise errors.bad_request("The content is not base64") from error
    if len(content) >= call.hub.lfs_threshold:
        raise errors.bad_request("The file is too large for git: it must be stored as LFS")
    return FileEntry.regular(content)


def _blob(call: Call, repo: Repo, value: dict[str, Any]) -> FileEntry | None:
    """The entry for an LFS line, None if nobody uploaded it. A copy names no size."""
    oid, size = str(value.get("oid", "")), value.get("size")
    if value.get("algo") != "sha256":
        raise errors.bad_request("Unknown algorithm")
    entry = None if size is not None else repo.known_lfs(oid)
    if entry is None and oid in repo.lfs_objects and (stored := call.hub.lfs.size(oid)):
        entry = FileEntry.lfs(oid, stored)
    if entry is None and (blob := call.hub.xet.blobs().get(oid)):
        entry = FileEntry.lfs(oid, blob.size, blob.xet_hash)
    if entry is not None and size not in (None, entry.size):
        raise errors.bad_request(f"The size of {value.get('path')} is not that of its content")
    return entry


async def _store_wrong_bytes(
    call: Call, repo: Repo, ref: str, edits: list[Edit], pattern: str
) -> None:
    """The last byte of each matching file goes bad, and the listing tells so."""
    for edit in edits:
        if edit.entry is not None and edit.entry.size and fnmatchcase(edit.path, pattern):
            content = bytearray(await asyncio.to_thread(call.hub.content, edit.entry))
            content[-1] ^= 0xFF
            bad = bytes(content)
            lfs = edit.entry.sha256 is not None
            entry = FileEntry.lfs(call.hub.lfs.put(bad), len(bad)) if lfs else None
            repo.falsify(ref, edit.path, entry or FileEntry.regular(bad))
