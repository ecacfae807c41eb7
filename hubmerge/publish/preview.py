"""What a push would do on the Hub, found out without changing anything there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hubmerge.errors import AccessError
from hubmerge.planning.publication import Publication
from hubmerge.publish.decide import check_target
from hubmerge.publish.hub import Hub, quiet_hub
from hubmerge.publish.options import PushOptions
from hubmerge.publish.preflight import check_hub, check_local, public_texts
from hubmerge.publish.remote_state import RemoteState, read_state
from hubmerge.publish.secrets import check_no_secrets
from hubmerge.system.ranks import SINGLE_PROCESS, Ranks


@dataclass(frozen=True, slots=True)
class PushPreview:
    """What a push would do; sizes in bytes.

    Attributes:
        user: whose token it is; None if the token may not ask.
        exists: whether the repository exists; it is created otherwise.
        is_private: whether it is, or would be created, private.
        creates_branch: whether the branch is yet to be created.
        pull_request: url of our open pull request that holds the model already.
        is_published: whether there is nothing to commit.
        staged: shards that need neither conversion nor upload.
        upload_bytes: of the shards that are left.
        replaced: planned files of which the target holds another version.
        removed: files of an older model that the commit would remove.
        kept: other weights that would stay, those that a loader might take by mistake first.
        readme: ``written``, ``kept`` (a person's card) or ``extended`` (with missing metadata).
        notes, warnings: one sentence each.
    """

    repo_id: str
    url: str
    user: str | None
    exists: bool
    is_private: bool
    revision: str
    creates_branch: bool
    tag: str | None
    create_pr: bool
    pull_request: str | None
    is_published: bool
    staged: tuple[str, ...]
    upload_bytes: int
    replaced: tuple[str, ...]
    removed: tuple[str, ...]
    kept: tuple[str, ...]
    readme: str
    notes: tuple[str, ...]
    warnings: tuple[str, ...]


@quiet_hub()
def preview_push(
    publication: Publication, options: PushOptions, ranks: Ranks = SINGLE_PROCESS
) -> PushPreview:
    """Return what a push would do.

    Raises:
        HubmergeError: what the push itself would raise before it converts anything.
    """
    local = check_local(publication, options, ranks)
    hub = Hub(options.repo_id, options.token)
    state, _, decision = check_hub(hub, local)
    account = hub.account()
    done = decision.published_on
    if not state.exists:
        check_may_create(account, options.repo_id)
    if done is None and state.staged is None:
        local.check_disk()
    held = decision.already_uploaded
    todo = [shard for shard in publication.plan.shards if shard.filename not in held]
    return PushPreview(
        **_of_target(hub, state, options, account),
        pull_request=done.url if done in state.pull_requests and done is not None else None,
        is_published=done is not None,
        staged=tuple(held),
        upload_bytes=sum(shard.size_bytes for shard in todo),
        replaced=decision.replaced,
        removed=decision.removed,
        kept=decision.kept,
        readme=publication.what_becomes_of(state.readme),
        notes=decision.notes,
        warnings=decision.warnings,
    )


@quiet_hub()
def preview_target(options: PushOptions) -> PushPreview:
    """Return what is known of a push before there is a checkpoint; change nothing.

    Raises:
        HubmergeError: what a push would raise because of the token, the repository or the options.
    """
    check_no_secrets(public_texts(options))
    hub = Hub(options.repo_id, options.token)
    state = read_state(hub, options.revision, "", create_pr=False)
    check_target(state, options, None)
    account = hub.account()
    if not state.exists:
        check_may_create(account, options.repo_id)
    return PushPreview(
        **_of_target(hub, state, options, account),
        pull_request=None,
        is_published=False,
        staged=(),
        upload_bytes=0,
        replaced=(),
        removed=(),
        kept=(),
        readme="written",
        notes=(),
        warnings=(),
    )


def _of_target(
    hub: Hub, state: RemoteState, options: PushOptions, account: Mapping[str, Any] | None
) -> dict[str, Any]:
    return {
        "repo_id": options.repo_id,
        "url": hub.url,
        "user": str(account["name"]) if account is not None else None,
        "exists": state.exists,
        "is_private": bool(state.is_private) if state.exists else options.private,
        "revision": options.revision,
        "creates_branch": state.is_missing,
        "tag": options.tag,
        "create_pr": options.create_pr,
    }


def check_may_create(account: Mapping[str, Any] | None, repo_id: str) -> None:
    """Raise AccessError if a token says of itself that it may not create the repository.

    Args:
        account: the Hub's answer to whose token it is; what it does not say is not held against it.
    """
    if account is None:
        return
    owner = repo_id.partition("/")[0]
    orgs = {org.get("name"): org.get("roleInOrg") for org in account.get("orgs") or ()}
    token = (account.get("auth") or {}).get("accessToken") or {}
    reason = ""
    if token.get("role") == "read":
        reason = "the token is read-only"
    elif owner != account.get("name") and owner not in orgs:
        reason = f"{account.get('name')} is not a member of {owner}"
    elif orgs.get(owner) == "read":
        reason = f"{account.get('name')} may only read in {owner}"
    elif token.get("role") == "fineGrained" and not _may_write(token, owner):
        reason = f"the fine-grained token has no write access to {owner}"
    if reason:
        raise AccessError(
            f"{repo_id}: does not exist, and cannot be created: {reason}",
            f"Use a token that may create repositories of {owner}.",
        )


def _may_write(token: Mapping[str, Any], owner: str) -> bool:
    scopes = (token.get("fineGrained") or {}).get("scoped") or ()
    return any(
        (scope.get("entity") or {}).get("name") == owner
        and "repo.write" in (scope.get("permissions") or ())
        for scope in scopes
    )
