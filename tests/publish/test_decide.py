"""What a push decides, without a Hub: of what the Hub holds and of what is planned."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from hubmerge import api
from hubmerge.conversion.shard_writer import WrittenShard
from hubmerge.errors import UsageError
from hubmerge.planning.plan import Plan
from hubmerge.publish.decide import Decision, Wanted, changes_to, decide
from hubmerge.publish.options import PushOptions
from hubmerge.publish.record import Record
from hubmerge.publish.remote import (
    AddFile,
    CopyFile,
    Refs,
    RemoteFile,
    RemoveFile,
)
from hubmerge.publish.remote_state import RemoteBranch, RemoteState
from hubmerge.system.disk import content_ids
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
    return decide(found, Wanted(plan, SMALL, replace(OPTIONS, **options), FINGERPRINT))


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
    changes = changes_to(there, shards, Wanted(plan, SMALL, OPTIONS, FINGERPRINT))
    assert changes == [
        *(CopyFile(name, STAGING) for name in shards if name != first),
        *(AddFile(*file) for file in SMALL.items()),
        RemoveFile("model-00001-of-00009.safetensors"),
    ]


OTHERS = {
    "consolidated.00.pth": "vLLM", "params.json": "", "other.safetensors": "servers",
    "pytorch_model-00001-of-00002.bin": "loaders without", "tf_model.h5": "TensorFlow",
    "flax_model.msgpack": "Flax", "q4/model.gguf": "llama.cpp", "onnx/model.onnx": "ONNX",
    "onnx/model.onnx_data": "ONNX", "original/consolidated.00.pth": None,
    "unet/diffusion_pytorch_model.safetensors": None, "training_args.bin": "",
    "optimizer.pt": "", "rng_state_0.pth": "", "tokenizer.model": "", "notes.txt": "",
    ".eval_results/model.bin": "",
}  # fmt: skip


@pytest.mark.parametrize("is_planned", [False, True])
def test_other_weights_are_named(is_planned: bool, plan: Plan) -> None:
    """Whatever looks like weights, those that a loader would take first; trainer state does not."""
    there = whole(plan) if is_planned else branch({})
    found = decision(state(replace(there, files={**there.files, **listed(*OTHERS)})), plan)
    weights = [name for name, reader in OTHERS.items() if reader != ""]
    assert set(found.kept) == set(weights)
    assert found.kept[0] == "consolidated.00.pth"
    (warning,) = found.warnings
    for name in weights:
        assert name in warning
        assert str(OTHERS[name] or "") in warning


def test_weights_that_servers_prefer_are_removed(plan: Plan) -> None:
    """With a warning, unless --keep-others; an adapter's repository keeps its model."""
    names = ("consolidated.safetensors", "consolidated-00001-of-00002.safetensors")
    there = state(branch(listed(*names)))
    found = decision(there, plan)
    assert (found.removed, found.kept) == (names, ())
    assert "--keep-others" in found.warnings[0]
    kept = decision(there, plan, keep_others=True)
    assert (kept.removed, set(kept.kept)) == ((), set(names))


def test_what_is_replaced(plan: Plan) -> None:
    """Files of the same name and other content; what is already right is not."""
    there = branch(listed("config.json", next(iter(shards_of(plan)))))
    assert len(decision(state(there), plan).replaced) == 2
    assert decision(state(whole(plan)), plan).replaced == ()
