"""Endpoints about discussions and pull requests."""

from __future__ import annotations

from typing import Any

from starlette.responses import JSONResponse, Response

from . import errors
from .api_repo import timestamp
from .call import Call
from .repo import HEADS, Discussion, Repo


def _summary(repo: Repo, discussion: Discussion) -> dict[str, Any]:
    return {
        "num": discussion.num,
        "title": discussion.title,
        "status": discussion.status,
        "author": {"name": discussion.author},
        "isPullRequest": discussion.is_pull,
        "createdAt": timestamp(discussion.time),
        "repo": {"name": repo.id, "type": "model"},
    }


def _event(discussion: Discussion, kind: str, data: dict[str, Any], key: str) -> dict[str, Any]:
    return {
        "id": f"{discussion.num}-{key}",
        "type": kind,
        "createdAt": timestamp(discussion.time),
        "author": {"name": discussion.author},
        "data": data,
    }


def _events(repo: Repo, discussion: Discussion) -> list[dict[str, Any]]:
    latest = {"raw": discussion.description}
    data = {"edited": False, "hidden": False, "latest": latest}
    events = [_event(discussion, "comment", data, "comment")]
    if discussion.is_pull:
        for commit in repo.history(repo.resolve(discussion.ref).sha):
            if commit.sha == discussion.start:
                break
            data = {"subject": commit.title, "oid": commit.sha}
            events.append(_event(discussion, "commit", data, commit.sha))
    return events


def _find(call: Call, repo: Repo) -> Discussion:
    try:
        return repo.discussions[int(call.params["num"])]
    except (KeyError, ValueError) as error:
        raise errors.ApiError(404, f"Discussion not found: {call.params['num']}") from error


async def list_discussions(call: Call) -> Response:
    """GET /api/models/{repo}/discussions?type&status&author"""
    repo, query = call.repo(), call.request.query_params
    kind, status, author = query.get("type", "all"), query.get("status", "all"), query.get("author")
    found = [
        _summary(repo, d)
        for d in repo.discussions.values()
        if author in (None, d.author)
        and kind in ("all", "pull_request" if d.is_pull else "discussion")
        and (status == "all" or (status == "open") == (d.status in ("open", "draft")))
    ]
    return JSONResponse({"count": len(found), "start": 0, "discussions": found})


async def create(call: Call) -> Response:
    """POST /api/models/{repo}/discussions"""
    body, repo = await call.json(), call.repo()
    title = str(body.get("title", "")).strip()
    if not 3 <= len(title) <= 200:
        raise errors.bad_request("The title must have 3 to 200 characters")
    is_pull = bool(body.get("pullRequest"))
    discussion = repo.discuss(
        title, str(body.get("description", "")), call.user(), "main" if is_pull else None
    )
    if is_pull:
        # Without a commit there is nothing to review yet.
        discussion.status = "draft"
    return JSONResponse({"num": discussion.num, "pullRequest": is_pull}, status_code=201)


async def details(call: Call) -> Response:
    """GET /api/models/{repo}/discussions/{num}?diff=1"""
    repo = call.repo()
    discussion = _find(call, repo)
    body = {**_summary(repo, discussion), "events": _events(repo, discussion)}
    if discussion.is_pull:
        body["changes"] = {"base": HEADS + discussion.base}
        if discussion.merge_commit:
            body["changes"]["mergeCommitId"] = discussion.merge_commit
        body["filesWithConflicts"] = repo.conflicts(discussion)
        body["diff"] = ""
    return JSONResponse(body)


async def change_status(call: Call) -> Response:
    """POST /api/models/{repo}/discussions/{num}/status"""
    body, repo = await call.json(), call.repo("write")
    discussion = _find(call, repo)
    if discussion.status == "merged" or body.get("status") not in ("open", "closed"):
        raise errors.bad_request("The status cannot be changed")
    discussion.status = body["status"]
    event = _event(discussion, "status-change", {"status": discussion.status}, "status")
    return JSONResponse({"newStatus": event})


async def merge(call: Call) -> Response:
    """POST /api/models/{repo}/discussions/{num}/merge"""
    repo = call.repo("write")
    repo.merge(_find(call, repo), call.user())
    return JSONResponse({"ok": True})
