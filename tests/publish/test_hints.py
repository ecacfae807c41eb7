"""What a push advises when the Hub refuses: what fits the case, and never to log in again."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.support.fake_hub import Hub, errors
from tests.support.fake_hub.call import Call
from tests.support.push.command import REPO, Done

pytest_plugins = ["tests.support.push.plugin"]

Push = Callable[..., Done]


def refuse(hub: Hub, endpoint: str, status: int, message: str) -> None:
    """Refuse each request to an endpoint in these words."""
    error = errors.ApiError(status, message)
    hub.faults.add(endpoint, times=None, hook=lambda _: error.response())


def hint(done: Done) -> str:
    """The advice of a run that failed for lack of a right."""
    assert done.code == 6, done.err
    assert "Log in" not in done.err
    return done.err.partition("\nHint: ")[2]


@pytest.mark.parametrize(
    ("status", "said", "advice"),
    [
        (403, "Private repository storage limit reached, please upgrade your plan", "Free private"),
        (403, "Your storage patterns tripped our internal systems!", "Free storage"),
        (400, "Storage quota exceeded", "Free storage"),
        (403, "You need write access to the resource group", "Ask an administrator"),
        (403, "Authorization error.", "Use a token that has write access"),
    ],
)
def test_a_refused_commit(status: int, said: str, advice: str, hub: Hub, push: Push) -> None:
    """The Hub's own words are shown, and what would help."""
    hub.create_repo("alice/private-storage")
    refuse(hub, "commit", status, said)
    done = push(repo_id="alice/private-storage")
    assert hint(done).startswith(advice)
    assert said in done.err


def test_a_repository_that_may_not_be_created(hub: Hub, push: Push) -> None:
    """The owner is what stands in the way."""
    assert "repositories of this owner" in hint(push(repo_id="somebody/model"))


@pytest.mark.parametrize("option", [(), ("--create-pr",)])
def test_a_repository_of_others(option: tuple[str, ...], hub: Hub, push: Push) -> None:
    """A pull request too needs write access, since shards are staged on a branch."""
    hub.create_repo("somebody/model")
    advice = hint(push(*option, repo_id="somebody/model"))
    assert ("staged on a branch" in advice) == bool(option)


def test_a_quota_of_commits_says_when(hub: Hub, push: Push, naps: list[float]) -> None:
    """The Hub's headers speak of another quota, which is free sooner: nobody waits for that."""
    error = errors.ApiError(
        429, "You've been rate-limited; you can retry this action in about 2 hours.",
        headers={"RateLimit": '"api";r=0;t=5'},
    )  # fmt: skip
    fault = hub.faults.add("commit", times=None, hook=lambda _: error.response())
    done = push()
    assert (done.code, fault.hits, naps) == (5, 1, [])
    assert "Hint: Rerun in about 2 hours: the run resumes" in done.err


def test_a_quota_that_is_soon_free_is_waited_for(hub: Hub, push: Push, naps: list[float]) -> None:
    """Within five minutes."""
    error = errors.ApiError(429, "you can retry this action in about 2 minutes")

    def once(_: Call) -> object:
        return error.response()

    hub.faults.add("commit", hook=once)
    assert push().code == 0
    assert naps == [120]
    assert "config.json" in hub.files(REPO)
