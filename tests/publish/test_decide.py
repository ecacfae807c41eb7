"""What a push decides, without a Hub: of what the Hub holds and of what is planned."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from hubmerge import api
from hubmerge.conversion.shard_writer import WrittenShard
from hubmerge.errors import UsageError
from hubmerge.planning.plan import Plan
from hubmerge.publish.decide import Decision, changes_to, decide
from hubmerge.publish.options import PushOptions
from hubmerge.publish.record import Record
from hubmerge.publish.remote import (
    AddFile,
    CopyFile,
    Refs,
    RemoteFile,
    RemoveFile,
    content_ids,
)
from hubmerge.publish.remote_state import RemoteBranch, RemoteState
from tests.support.push.models import Model

pytest_plugins = ["tests.support.push.plugin"]

FINGERPRINT = "ab" * 32
STAGING = "hubmerge/abababababababab"
SMALL = {"config.json": b"{}", "README.md": b"# Model\n"}
OPTIONS = PushOptions(repo_id="org/name")


@pytest.fixture(scope="module")
def plan(model: Model) -> Plan:
    """A plan of four shards."""
    return api.plan(model.load_dir, model_assets_dir=model.assets, shard_size=15_000)[0]


def shards_of(plan: Plan) -> dict[str, WrittenShard]:
    """What the plan's shards would be, with made-up hashes."""
    return {s.filename: WrittenShard(s.filename, s.size_bytes, s.filename) for s in plan.shards}


def listed(*names: str, shards: dict[str, WrittenShard] | None = None) -> dict[str, RemoteFile]:
    """A listing of files of other content, and of shards."""
    files = {name: RemoteFile(1, None, "other") for name in names}
    files |= {s.filename: RemoteFile(s.size, s.sha256, "x") for s in (shards or {}).values()}
    return files


def branch(
    files: dict[str, RemoteFile], record: Record | None = None, name: str = "main"
) -> RemoteBranch:
    """A branch that holds these files."""
    return RemoteBranch(name, f"url/{name}", f"sha-{name}", files, record)


def state(base: RemoteBranch | None, **more: Any) -> RemoteState:
    """A repository with this target."""
    given = {"is_private": False, "refs": Refs({"main": "sha-main"}, {}), "is_missing": False}
    return RemoteState(base=base, **(given | more))


def decision(found: RemoteState, plan: Plan, **options: Any) -> Decision:
    """Decide."""
    return decide(found, plan, SMALL, replace(OPTIONS, **options), FINGERPRINT)


def whole(plan: Plan) -> RemoteBranch:
    """A branch that holds just what is planned."""
    shards = shards_of(plan)
    small = {name: RemoteFile(9, None, content_ids(data)[1]) for name, data in SMALL.items()}
    return branch(listed(shards=shards) | small, Record(FINGERPRINT, shards))


def test_a_missing_repository_is_created(plan: Plan) -> None:
    """With its branch; nothing is there that would be kept or removed."""
    missing = RemoteState(None, Refs({}, {}), None, is_missing=True)
    found = decision(missing, plan)
    assert (found.creates_repository, found.creates_branch) == (True, True)
    assert (found.already_uploaded, found.removed, found.warnings) == ({}, (), ())


def test_what_is_there_already_is_found(plan: Plan) -> None:
    """On the target, with all small files: nothing is to be done; one file fewer: it is."""
    target = whole(plan)
    assert decision(state(target), plan).published_on == target
    del target.files["config.json"]  # type: ignore[attr-defined]
    found = decision(state(target), plan)
    assert found.published_on is None
    assert len(found.already_uploaded) == 4


def test_an_open_pull_request_counts_only_beside_its_target(plan: Plan) -> None:
    """It holds the model already, and its shards count; a branch that is missing has none."""
    pull = replace(whole(plan), revision="refs/pr/3")
    found = decision(state(branch({}), pull_requests=(pull,)), plan, create_pr=True)
    assert found.published_on == pull
    assert len(found.already_uploaded) == 4
    absent = state(branch({}), pull_requests=(pull,), is_missing=True)
    assert decision(absent, plan, create_pr=True).published_on is None


@pytest.mark.parametrize("where", ["staged", "target"])
def test_shards_of_an_earlier_run_are_used(where: str, plan: Plan) -> None:
    """From the staging branch, and from a target with a record of this fingerprint."""
    shards = dict(list(shards_of(plan).items())[:2])
    there = branch(listed(shards=shards), Record(FINGERPRINT, shards))
    found = state(there) if where == "target" else state(branch({}), staged=shards)
    assert decision(found, plan).already_uploaded == shards
    another = replace(there, record=Record("cd" * 32, shards))
    assert decision(state(another), plan).already_uploaded == {}


@pytest.mark.parametrize(
    ("found", "options", "said"),
    [
        ({}, {"private": True}, "exists and is public"),
        ({"is_missing": True}, {"revision": "refs/pr/9"}, "has no pull request refs/pr/9"),
        ({"is_missing": True, "refs": Refs({"main": "x"}, {"v1": "y"})}, {"revision": "v1"},
         "is a tag"),
        ({"refs": Refs({"main": "x"}, {"v1": "y"})}, {"tag": "v1"}, "already names the commit y"),
    ],
)  # fmt: skip
def test_what_cannot_be(
    found: dict[str, Any], options: dict[str, Any], said: str, plan: Plan
) -> None:
    """Each is a usage error."""
    with pytest.raises(UsageError, match=said):
        decision(state(branch({}), **found), plan, **options)


def test_a_tag_of_the_published_commit_is_kept(plan: Plan) -> None:
    """A rerun with the same tag is no error."""
    tagged = Refs({"main": "sha-main"}, {"v1": "sha-main"})
    assert decision(state(whole(plan), refs=tagged), plan, tag="v1").published_on is not None


def test_staging_branches_of_others(plan: Plan) -> None:
    """Only names that we give are ours; our own is no other's; --clean silences the warning."""
    names = (STAGING, "hubmerge/0123456789abcdef", "hubmerge/mine", "main")
    found = state(branch({}), refs=Refs(dict.fromkeys(names, "x"), {}))
    assert decision(found, plan).other_staging == ("hubmerge/0123456789abcdef",)
    assert len(decision(found, plan).warnings) == 1
    assert decision(found, plan, clean=True).warnings == ()


def test_changes(plan: Plan) -> None:
    """Shards are copied from the staging branch, small files added, older weights removed."""
    shards = shards_of(plan)
    first = next(iter(shards))
    there = branch(listed("model-00001-of-00009.safetensors", "notes.txt", "config.json",
                          shards={first: shards[first]}))  # fmt: skip
    changes = changes_to(there, shards, SMALL, STAGING, is_adapter=False)
    assert changes == [
        *(CopyFile(name, STAGING) for name in shards if name != first),
        *(AddFile(*file) for file in SMALL.items()),
        RemoveFile("model-00001-of-00009.safetensors"),
    ]
