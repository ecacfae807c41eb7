"""Whose pull requests a push believes: those that the token's own user has opened."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable

import pytest
from huggingface_hub import CommitOperationAdd
from starlette.responses import Response

from tests.support.fake_hub import Hub, errors
from tests.support.fake_hub.accounts import STRANGER
from tests.support.fake_hub.call import Call
from tests.support.push.checks import expected_weights, weights_of
from tests.support.push.command import REPO, Done
from tests.support.push.models import Model

pytest_plugins = ["tests.support.push.plugin"]

Push = Callable[..., Done]


def forge(hub: Hub, pull: str) -> None:
    """A stranger's pull request like ours but for its weights, of which its record is true."""
    commit = hub.repo(REPO).resolve(pull)
    record, operations = commit.description, []
    for path in commit.files.keys() - {".gitattributes"}:
        content = hub.read(REPO, path, pull)
        if path.endswith(".safetensors"):
            ours, content = content, content[::-1]
            record = record.replace(*(hashlib.sha256(c).hexdigest() for c in (ours, content)))
        operations.append(CommitOperationAdd(path, content))
    hub.api("stranger").create_commit(
        REPO,
        operations,
        commit_message=commit.title,
        commit_description=record,
        create_pr=True,
    )


def test_a_strangers_pull_request_holds_nothing_of_ours(hub: Hub, push: Push, model: Model) -> None:
    """One with our fingerprint and other weights does not pass for the model that is pushed."""
    hub.create_repo(REPO)
    assert push("--create-pr").code == 0
    forge(hub, "refs/pr/1")
    hub.repo(REPO).discussions[1].status = "closed"
    result = push("--create-pr", "--json").json
    assert (result["changed"], result["url"]) == (True, f"{hub.url}/{REPO}/discussions/3")
    assert weights_of(hub.files(REPO, "refs/pr/2")) != expected_weights(model)
    assert weights_of(hub.files(REPO, "refs/pr/3")) == expected_weights(model)
    again = push("--create-pr", "--json").json
    assert (again["changed"], again["url"]) == (False, result["url"])


def test_a_strangers_pull_request_is_no_lost_answer(hub: Hub, push: Push, model: Model) -> None:
    """Not even one with the very record of the commit that has failed."""
    hub.create_repo(REPO)

    async def steal(call: Call) -> Response:
        header = json.loads((await call.body()).splitlines()[0])["value"]
        title, description, repo = header["summary"], header["description"], hub.repo(REPO)
        pull = repo.discuss(title, description, STRANGER, "main", None)
        repo.commit(pull.ref, [], title, description, author=STRANGER)
        return errors.ApiError(503, "try again").response()

    fault = hub.faults.add("commit", hook=steal, when=lambda call: call.revision == "main")
    result = push("--create-pr", "--json").json
    assert fault.hits == 1
    assert result["url"] == f"{hub.url}/{REPO}/discussions/2"
    assert weights_of(hub.files(REPO, "refs/pr/2")) == expected_weights(model)


@pytest.mark.parametrize("endpoint", ["whoami", "discussions"])
def test_looking_for_pull_requests_meets_faults(
    endpoint: str, hub: Hub, push: Push, naps: list[float]
) -> None:
    """The client retries neither: it is done for it, within bounds."""
    hub.create_repo(REPO)
    assert push("--create-pr").code == 0
    fault = hub.faults.add(endpoint, times=2, status=503)
    assert push("--create-pr", "--json").json["changed"] is False
    assert (fault.hits, len(naps)) == (2, 2)
    fault = hub.faults.add(endpoint, times=None, status=429)
    assert (push("--create-pr").code, fault.hits) == (5, 6)
    assert len(hub.repo(REPO).discussions) == 1


def test_a_token_that_does_not_say_whose_it_is(hub: Hub, push: Push, model: Model) -> None:
    """It opens a pull request, and another one each time: it knows none for its own."""
    hub.create_repo(REPO)
    hub.faults.add("whoami", times=None, status=403)
    for number in (1, 2):
        result = push("--create-pr", "--json").json
        assert result["url"] == f"{hub.url}/{REPO}/discussions/{number}"
        assert weights_of(hub.files(REPO, f"refs/pr/{number}")) == expected_weights(model)
