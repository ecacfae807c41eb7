"""What a push would do, asked before it: --dry-run, `check` and `staged`."""

from __future__ import annotations

import pytest

from hubmerge.publish.staging_branch import staging_branch_of
from tests.support.fake_hub import Hub
from tests.support.push.command import REPO, Done, run_here
from tests.support.push.models import Model

pytest_plugins = ["tests.support.push.plugin"]
pytestmark = pytest.mark.parametrize("transport", ["lfs"])


@pytest.fixture
def dry_run(places: object, api: object, naps: object, model: Model) -> Done:
    """The model's push to a repository that does not exist, as a dry run."""
    return run_here("push", "--repo-id", REPO, *model.argv(), "--dry-run", "--json")


def test_a_dry_run_asks_the_hub(hub: Hub, dry_run: Done, model: Model) -> None:
    """It says who would create what and upload how much, and creates nothing."""
    push = dry_run.json["push"]
    assert (push["user"], push["exists"], push["creates_branch"]) == ("alice", False, True)
    total = sum(map(len, model.weights().values()))
    assert 0 < push["upload_bytes"] <= total
    assert dry_run.json["peak_disk_bytes"] < total  # two shards at a time
    assert REPO not in hub.repos


@pytest.mark.parametrize("with_checkpoint", [False, True])
def test_check_ends_as_the_push_would(
    with_checkpoint: bool, hub: Hub, api: object, naps: object, model: Model
) -> None:
    """A taken tag is exit 2, a token that may only read 6; else what there is is said."""
    more = model.argv() if with_checkpoint else []
    hub.create_repo(REPO).create_tag("v1", "main")
    done = run_here("check", REPO, *more)
    assert (done.code, "Branch: main (exists)" in done.out) == (0, True), done.err
    assert run_here("check", REPO, *more, "--tag", "v1").code == 2
    assert run_here("check", REPO, *more, "--token", hub.tokens["read"]).code == 6
    assert [commit.title for commit in hub.repos[REPO].commits.values()] == ["initial commit"]


def test_staged_lists_and_removes(hub: Hub, api: object, naps: object) -> None:
    """What an unfinished push left; only what is named goes."""
    branch, other = staging_branch_of("1" * 64), staging_branch_of("2" * 64)
    repo = hub.create_repo(REPO)
    for name in (branch, other):
        repo.create_branch(name, "main")
    assert {line["branch"] for line in run_here("staged", REPO, "--json").json["staged"]} == {
        branch, other,
    }  # fmt: skip
    assert run_here("staged", REPO, "--remove", "main").code == 2
    left = run_here("staged", REPO, "--remove", branch)
    assert other in left.out
    assert branch not in left.out
    assert run_here("staged", REPO, "--remove", other).out == "Nothing is staged\n"
