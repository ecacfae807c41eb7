"""Users, organisations and tokens, and who may read or write what.

A preflight check is only worth testing against a Hub that can refuse in every way the real one
does: no token, a dead token, a read-only token, a token scoped to other repos, a stranger.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from . import errors

if TYPE_CHECKING:
    from .repo import Repo

Role = Literal["write", "read", "fineGrained"]
Access = Literal["read", "write"]

USER = "alice"
STRANGER = "mallory"
ORG = "acme"


@dataclass
class Scope:
    """What a fine-grained token may do to one user's, one organisation's or one repo's content."""

    kind: Literal["user", "org", "model"]
    name: str
    permissions: tuple[str, ...] = ("repo.content.read", "repo.write")

    def covers(self, repo_id: str, permission: str) -> bool:
        """Whether the scope grants the permission on the repo."""
        target = repo_id if self.kind == "model" else repo_id.partition("/")[0]
        return self.name == target and permission in self.permissions


@dataclass
class Token:
    """An access token. Revoked ones stay known so that a test can name them."""

    name: str
    user: str
    role: Role
    scopes: list[Scope] = field(default_factory=list)
    revoked: bool = False

    @property
    def value(self) -> str:
        """Shaped like a real token, so that scrubbing and secret scans see what they look for."""
        return "hf_" + self.name.replace("_", "").ljust(34, "x")

    def grants(self, repo_id: str, access: Access) -> bool:
        """Whether the token itself (whoever its user is) allows the access."""
        if self.role != "fineGrained":
            return access == "read" or self.role == "write"
        permission = "repo.write" if access == "write" else "repo.content.read"
        return any(scope.covers(repo_id, permission) for scope in self.scopes)


class Accounts:
    """The Hub's people: `alice`, a member of `acme`, and `mallory`, a stranger to both."""

    def __init__(self) -> None:
        self.orgs: dict[str, set[str]] = {ORG: {USER}}
        scoped_user = [Scope("user", USER)]
        self.tokens = {
            token.name: token
            for token in (
                Token("write", USER, "write"),
                Token("read", USER, "read"),
                Token("fine_user", USER, "fineGrained", scoped_user),
                Token("fine_org", USER, "fineGrained", [*scoped_user, Scope("org", ORG)]),
                Token("stranger", STRANGER, "write"),
                Token("revoked", USER, "write", revoked=True),
            )
        }

    def revoke(self, value: str) -> None:
        """Make a token invalid from now on."""
        for token in self.tokens.values():
            if token.value == value:
                token.revoked = True

    def authenticate(self, authorization: str | None) -> Token | None:
        """The token of a request, None for an anonymous one; a bad token is never anonymous."""
        if authorization is None:
            return None
        value = authorization.removeprefix("Bearer ").strip()
        for token in self.tokens.values():
            if token.value == value and not token.revoked:
                return token
        raise errors.invalid_token()

    def member(self, user: str, namespace: str) -> bool:
        """Whether the namespace is the user's own or an organisation of theirs."""
        return user == namespace or user in self.orgs.get(namespace, set())

    def check_create(self, token: Token | None, namespace: str) -> None:
        """Refuse unless the token may create a repo there."""
        if token is None:
            raise errors.ApiError(401, errors.NOT_LOGGED_IN)
        if token.role == "read":
            raise errors.forbidden("Forbidden: you must use a write token to create a repository.")
        known = self.member(token.user, namespace)
        if not known or not token.grants(f"{namespace}/", "write"):
            raise errors.forbidden(
                f'You don\'t have the rights to create a model under the namespace "{namespace}"'
            )

    def check(self, token: Token | None, repo: Repo, access: Access) -> None:
        """Refuse unless the token may read (or write) the repo."""
        namespace = repo.id.partition("/")[0]
        insider = token is not None and self.member(token.user, namespace)
        if repo.private:
            if token is None:
                raise errors.login_required()
            if not insider or not token.grants(repo.id, "read"):
                raise errors.repo_not_found()
        if access == "read":
            return
        if token is None:
            raise errors.login_required()
        if token.role == "read":
            raise errors.forbidden(
                "Forbidden: you must use a write token to upload to a repository."
            )
        if not insider or not token.grants(repo.id, "write"):
            raise errors.forbidden(
                f"Forbidden: this token does not have write access to the repository {repo.id}."
            )

    def check_content(self, token: Token | None, repo: Repo) -> None:
        """Refuse the files of a gated repo to those who have not been let in."""
        self.check(token, repo, "read")
        namespace = repo.id.partition("/")[0]
        if not repo.gated or (token is not None and self.member(token.user, namespace)):
            return
        raise errors.gated(repo.id, 401 if token is None else 403)

    def whoami(self, token: Token) -> dict[str, Any]:
        """The body of `/api/whoami-v2`."""
        access: dict[str, Any] = {"displayName": token.name, "role": token.role}
        if token.role == "fineGrained":
            access["fineGrained"] = {
                "canReadGatedRepos": False,
                "global": [],
                "scoped": [
                    {
                        "entity": {"_id": s.name, "type": s.kind, "name": s.name},
                        "permissions": list(s.permissions),
                    }
                    for s in token.scopes
                ],
            }
        return {
            "type": "user",
            "id": token.user,
            "name": token.user,
            "fullname": token.user.title(),
            "isPro": False,
            "canPay": False,
            "orgs": [
                {"type": "org", "id": org, "name": org, "fullname": org, "roleInOrg": "write"}
                for org, members in self.orgs.items()
                if token.user in members
            ],
            "auth": {"type": "access_token", "accessToken": access},
        }
