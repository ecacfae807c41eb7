"""The map of the Hub: every URL of it that a client of ours may call, with the endpoint's name.

The names are what `hub.log` and `hub.faults` speak of.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from starlette.routing import Route

from . import api_files, api_pulls, api_repo, card, errors, lfs, resolve, xet
from .call import Call
from .gate import Gate, Handler

if TYPE_CHECKING:
    from starlette.responses import Response

    from .server import Hub

REPO = "/{namespace}/{name}"
API = f"/api/models{REPO}"

TABLE: list[tuple[str, str, str, Handler]] = [
    ("whoami", "GET", "/api/whoami-v2", api_repo.whoami),
    ("agent_harnesses", "GET", "/api/agent-harnesses", api_repo.agent_harnesses),
    ("validate_yaml", "POST", "/api/validate-yaml", card.validate_yaml),
    ("create_repo", "POST", "/api/repos/create", api_repo.create_repo),
    ("delete_repo", "DELETE", "/api/repos/delete", api_repo.delete_repo),
    ("settings", "PUT", f"{API}/settings", api_repo.settings),
    ("auth_check", "GET", f"{API}/auth-check", api_repo.auth_check),
    ("auth_check", "GET", f"{API}/auth-check/write", api_repo.auth_check),
    ("repo_info", "GET", API, api_repo.repo_info),
    ("repo_info", "GET", f"{API}/revision/{{revision}}", api_repo.repo_info),
    ("refs", "GET", f"{API}/refs", api_repo.refs),
    ("create_branch", "POST", f"{API}/branch/{{branch}}", api_repo.create_branch),
    ("delete_branch", "DELETE", f"{API}/branch/{{branch}}", api_repo.delete_branch),
    ("create_tag", "POST", f"{API}/tag/{{revision}}", api_repo.create_tag),
    ("delete_tag", "DELETE", f"{API}/tag/{{revision}}", api_repo.delete_tag),
    ("preupload", "POST", f"{API}/preupload/{{revision}}", api_files.preupload),
    ("commit", "POST", f"{API}/commit/{{revision}}", api_files.commit),
    ("commits", "GET", f"{API}/commits/{{revision}}", api_files.commits),
    ("tree", "GET", f"{API}/tree/{{revision}}", api_files.tree),
    ("tree", "GET", f"{API}/tree/{{revision}}/{{path:path}}", api_files.tree),
    ("paths_info", "POST", f"{API}/paths-info/{{revision}}", api_files.paths_info),
    ("xet_write_token", "GET", f"{API}/xet-write-token/{{revision}}", xet.write_token),
    ("xet_read_token", "GET", f"{API}/xet-read-token/{{revision}}", xet.read_token),
    ("discussions", "GET", f"{API}/discussions", api_pulls.list_discussions),
    ("create_discussion", "POST", f"{API}/discussions", api_pulls.create),
    ("discussion", "GET", f"{API}/discussions/{{num}}", api_pulls.details),
    ("discussion_status", "POST", f"{API}/discussions/{{num}}/status", api_pulls.change_status),
    ("merge", "POST", f"{API}/discussions/{{num}}/merge", api_pulls.merge),
    ("lfs_batch", "POST", f"{REPO}.git/info/lfs/objects/batch", lfs.batch),
    ("lfs_verify", "POST", f"{REPO}.git/info/lfs/objects/verify", lfs.verify),
    ("lfs_complete", "POST", "/api/complete_multipart/{upload}", lfs.complete),
    ("resolve", "GET", f"{REPO}/resolve/{{revision}}/{{path:path}}", resolve.resolve),
    (
        "resolve_cache",
        "GET",
        f"/api/resolve-cache/models{REPO}/{{revision}}/{{path:path}}",
        resolve.cached,
    ),
]

STORAGE: list[tuple[str, str, str, Handler]] = [
    ("lfs_put", "PUT", "/lfs/{upload}", lfs.put),
    ("lfs_part", "PUT", "/lfs/{upload}/{part}", lfs.put_part),
    ("content", "GET", "/content/{key}", resolve.content),
]


async def unknown(call: Call) -> Response:
    """Everything else: the repo of a model whose URL leads nowhere, or simply nothing."""
    if call.path.startswith("/api/models/"):
        raise errors.repo_not_found()
    raise errors.ApiError(404, "Sorry, we can't find the page you are looking for.")


def routes(hub: Hub) -> list[Route]:
    """The routes of both origins: they differ in port only, and no path is on both."""
    uploads = ("lfs_put", "lfs_part")
    made = [
        Route(path, Gate(hub, name, handler, name in uploads), methods=[method])
        for name, method, path, handler in [*STORAGE, *TABLE]
    ]
    return [*made, Route("/{rest:path}", Gate(hub, "unknown", unknown))]


ENDPOINTS = sorted({name for name, *_ in [*TABLE, *STORAGE]})
