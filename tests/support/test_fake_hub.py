"""The local Hub under the real client: what the tests of push stand on must itself stand."""

from __future__ import annotations

import hashlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import hf_xet  # type: ignore[import-untyped]
import httpx2
import pytest
from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationCopy,
    CommitOperationDelete,
    HfApi,
    ModelCard,
    close_session,
    hf_hub_download,
    set_client_factory,
    snapshot_download,
)
from huggingface_hub.errors import (
    BadRequestError,
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import _http
from huggingface_hub.utils._http import get_session
from starlette.responses import JSONResponse

from tests.support.fake_hub import Hub, git
from tests.support.patience import ENDLESS_SECONDS, NET_SECONDS, wait_until

pytest_plugins = ["tests.support.fake_hub.plugin"]

REPO = "alice/model"
SHARD = "model-00001-of-00001.safetensors"
ROOT = Path(__file__).parents[2]
lfs_only = pytest.mark.parametrize("transport", ["lfs"])
xet_only = pytest.mark.parametrize("transport", ["xet"])


@pytest.fixture
def naps(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long the client would have slept before each of its retries; it does not sleep."""
    taken: list[float] = []
    clock = type("Clock", (), {"sleep": staticmethod(taken.append)})
    monkeypatch.setattr(_http, "time", clock)
    return taken


@pytest.fixture
def hub(hub: Hub) -> Hub:
    """A Hub with one repo that is already there."""
    hub.create_repo(REPO)
    return hub


def python(hub: Hub, code: str, *args: object, **options: Any) -> subprocess.Popen[str]:
    """A client in a process of its own."""
    argv = [sys.executable, "-c", code, *map(str, args)]
    return subprocess.Popen(argv, env=hub.env(), text=True, stderr=subprocess.DEVNULL, **options)


def noise(size: int) -> bytes:
    """Content that no store can shrink."""
    return os.urandom(size)


def sha256(data: bytes) -> str:
    """The name of a blob."""
    return hashlib.sha256(data).hexdigest()


def add(api: HfApi, files: dict[str, bytes], **options: Any) -> Any:
    """Commit some files with the real client."""
    operations = [CommitOperationAdd(path, data) for path, data in files.items()]
    return api.create_commit(REPO, operations, **{"commit_message": "add", **options})


def listed(api: HfApi, revision: str = "main") -> dict[str, RepoFile]:
    """The files that the Hub lists."""
    entries = api.list_repo_tree(REPO, recursive=True, revision=revision)
    return {entry.path: entry for entry in entries if isinstance(entry, RepoFile)}


def status_of(error: pytest.ExceptionInfo[HfHubHTTPError]) -> int:
    """The HTTP status behind a client's exception."""
    return error.value.response.status_code


# -- files go up and come back -----------------------------------------------------------------

ROUND_TRIP = """
import sys
from huggingface_hub import HfApi, hf_hub_download, snapshot_download
folder, repo = sys.argv[1:]
api = HfApi()
assert api.create_repo(repo, private=True).repo_id == repo
assert api.create_repo(repo, exist_ok=True).repo_id == repo
print(api.upload_folder(repo_id=repo, folder_path=folder).oid)
print(snapshot_download(repo))
print(hf_hub_download(repo, "config.json"))
"""


def test_round_trip_in_a_process_of_its_own(hub: Hub, tmp_path: Path) -> None:
    """A client that knows only the environment uploads a folder and downloads the same bytes."""
    content = {"config.json": b"{}", "small.safetensors": noise(50_000), "big.bin": noise(350_000)}
    for name, data in content.items():
        (tmp_path / name).write_bytes(data)
    client = python(hub, ROUND_TRIP, tmp_path, "alice/new", stdout=subprocess.PIPE)
    oid, snapshot, config = client.communicate(timeout=NET_SECONDS)[0].split()
    assert client.returncode == 0
    assert oid == hub.head("alice/new")
    assert hub.repo("alice/new").private
    assert {name: Path(snapshot, name).read_bytes() for name in content} == content
    assert Path(config).read_bytes() == b"{}"
    assert {name: hub.read("alice/new", name) for name in content} == content
    if hub.transport == "lfs":
        assert (hub.log.count("lfs_put"), hub.log.count("lfs_part")) == (1, 4)
        assert hub.log.count("xet_write_token") == 0
    else:
        assert hub.log.count("lfs_batch") == 0
        assert hub.log.count("xet_read_token") == 1


def test_listing_names_size_and_sha256(hub: Hub, api: HfApi) -> None:
    """What was committed is listed with the right ids, as LFS or regular by the Hub's rules."""
    small, shard = b'{"a": 1}', noise(250_000)
    made = add(api, {"sub/config.json": small, SHARD: shard})
    assert made.oid == hub.head(REPO)
    assert made.commit_url == f"{hub.url}/{REPO}/commit/{made.oid}"
    files = listed(api)
    assert set(files) == {".gitattributes", "sub/config.json", SHARD}
    assert files["sub/config.json"].blob_id == git.blob_id(small)
    assert files["sub/config.json"].lfs is None
    lfs = files[SHARD].lfs
    assert lfs is not None
    assert (lfs.sha256, lfs.size, files[SHARD].size) == (sha256(shard), 250_000, 250_000)
    assert (files[SHARD].xet_hash is not None) == (hub.transport == "xet")
    assert [i.path for i in api.list_repo_tree(REPO)] == [".gitattributes", SHARD, "sub"]
    assert [i.path for i in api.get_paths_info(REPO, [SHARD, "sub", "missing"])] == [SHARD, "sub"]


def test_uploaded_bytes_are_counted(hub: Hub, api: HfApi) -> None:
    """The counts that prove 'nothing was sent twice' are those of the bytes that were sent."""
    one, two = noise(90_000), noise(220_000)
    add(api, {"one.bin": one, "two.bin": two})
    if hub.transport == "lfs":
        assert hub.lfs.received == {sha256(one): 90_000, sha256(two): 220_000}
        assert hub.lfs.completed == {sha256(one): 1, sha256(two): 1}
        assert hub.uploaded_bytes == 310_000
        assert sum(e.received for e in hub.log.select("lfs_part")) == 220_000
    else:
        blobs = hub.xet.blobs()
        assert {sha: blob.size for sha, blob in blobs.items()} == {
            sha256(one): 90_000,
            sha256(two): 220_000,
        }
        stored = hub.xet.stored_bytes()
        assert 310_000 < stored < 330_000
        add(api, {"copy.bin": two})
        assert hub.xet.stored_bytes() == stored


def test_unchanged_files_make_no_commit(hub: Hub, api: HfApi) -> None:
    """An identical rerun returns the head and commits nothing; only the change of a mix is sent."""
    files = {"config.json": b"{}", SHARD: noise(150_000)}
    first = add(api, files)
    sent, stored = hub.uploaded_bytes, hub.xet.stored_bytes()
    assert add(api, files).oid == first.oid
    assert hub.log.count("commit") == 1
    assert (hub.uploaded_bytes, hub.xet.stored_bytes()) == (sent, stored)
    second = add(api, {**files, "config.json": b"[]"})
    assert second.oid == hub.head(REPO) != first.oid
    assert hub.log.select("commit")[-1].received < 500


def test_copy_from_a_staging_branch_sends_nothing(hub: Hub, api: HfApi) -> None:
    """The final commit of a push: shards copied by the server, the rest added, stale ones gone."""
    stale, shard = "model-00001-of-00002.safetensors", noise(150_000)
    add(api, {stale: noise(1000), "old/a.txt": b"a", "old/b.txt": b"b"})
    head = hub.head(REPO)
    api.create_branch(REPO, branch="hubmerge/abc")
    add(api, {SHARD: shard, "notes.txt": b"n"}, revision="hubmerge/abc")
    assert hub.head(REPO) == head
    hub.log.clear()
    made = api.create_commit(
        REPO,
        [
            CommitOperationCopy(SHARD, SHARD, src_revision="hubmerge/abc"),
            CommitOperationCopy("notes.txt", "notes.txt", src_revision="hubmerge/abc"),
            CommitOperationAdd("config.json", b"{}"),
            CommitOperationDelete(stale),
            CommitOperationDelete("old/"),
        ],
        commit_message="the model",
        commit_description="all of it",
        parent_commit=head,
    )
    api.delete_branch(REPO, branch="hubmerge/abc")
    assert set(listed(api)) == {".gitattributes", SHARD, "notes.txt", "config.json"}
    assert hub.read(REPO, SHARD) == shard
    assert not {"lfs_put", "lfs_part", "lfs_batch", "xet_write_token"} & set(hub.log.endpoints())
    commit = hub.repo(REPO).commits[made.oid]
    assert (commit.parents, commit.title, commit.author) == ((head,), "the model", "alice")
    assert commit.description == "all of it"
    assert [state.sha for state in hub.states(REPO)][-2:] == [head, made.oid]


def test_copies_that_change_nothing(hub: Hub, api: HfApi) -> None:
    """A copy onto an equal file is dropped by the client; one of a missing file never gets out."""
    add(api, {SHARD: noise(2000)})
    api.create_branch(REPO, branch="staging")
    head = hub.head(REPO)
    same = CommitOperationCopy(SHARD, SHARD, src_revision="staging")
    assert api.create_commit(REPO, [same], commit_message="again").oid == head
    missing = CommitOperationCopy("nothing", SHARD, src_revision="staging")
    with pytest.raises(EntryNotFoundError, match="Cannot copy nothing"):
        api.create_commit(REPO, [missing], commit_message="impossible")
    assert hub.log.count("commit") == 1


def test_preuploaded_files_are_sent_once(hub: Hub, api: HfApi) -> None:
    """Blobs uploaded ahead are committed by name alone, and lost ones are refused with a 400."""
    operations = [CommitOperationAdd(f"{n}.safetensors", noise(120_000)) for n in range(3)]
    for operation in operations:
        api.preupload_lfs_files(REPO, [operation])
        assert operation.path_or_fileobj == b""
    lost = operations[2].upload_info.sha256.hex()
    hub.forget_blob(lost)
    with pytest.raises(BadRequestError, match=r"does not exist.*2\.safetensors"):
        api.create_commit(REPO, operations, commit_message="all three")
    assert set(hub.files(REPO)) == {".gitattributes"}
    sent = hub.uploaded_bytes
    api.create_commit(REPO, operations[:2], commit_message="two of them")
    assert hub.uploaded_bytes == sent
    assert set(listed(api)) == {".gitattributes", "0.safetensors", "1.safetensors"}


def test_a_forgotten_blob_can_be_sent_again(hub: Hub, api: HfApi) -> None:
    """After the Hub lost an uncommitted blob, a new upload of the same bytes is believed."""
    data = noise(50_000)
    api.preupload_lfs_files(REPO, [CommitOperationAdd("a.bin", data)])
    hub.forget_blob(sha256(data))
    add(api, {"a.bin": data})
    assert hub.read(REPO, "a.bin") == data


def test_what_xet_stored_is_readable_over_http(
    hub: Hub, api: HfApi, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A reader that does not speak xet gets the same bytes, over whatever they were uploaded."""
    data = noise(300_000)
    add(api, {SHARD: data})
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    path = hf_hub_download(REPO, SHARD, endpoint=hub.url, cache_dir=tmp_path)
    assert Path(path).read_bytes() == data
    assert hub.log.select("content")[-1].user is None, "the token left the Hub"


@xet_only
def test_the_store_is_whole_before_its_first_client(hub: Hub) -> None:
    """A client killed while it creates the database would leave one that nobody can open."""
    (database,) = hub.xet.folder.rglob("*.redb")
    assert database.read_bytes().startswith(b"redb")
    expiry = int(time.time()) + 600
    with hf_xet.XetSession().new_upload_commit(hub.xet.url, "-", expiry):
        pass


@xet_only
def test_downloads_run_beside_an_upload(hub: Hub, api: HfApi) -> None:
    """While one process holds the store to write to it, others still read."""
    data = noise(100_000)
    add(api, {SHARD: data})
    expiry = int(time.time()) + 600
    upload = hf_xet.XetSession().new_upload_commit(hub.xet.url, "-", expiry)
    with upload:
        assert hub.read(REPO, SHARD) == data
        other = python(hub, PUSH, __file__)
        assert other.wait(NET_SECONDS) == 1, "the store was not locked: this test shows nothing"


def test_downloads_can_be_resumed_and_miss_properly(hub: Hub, api: HfApi) -> None:
    """Ranges are served; a missing file, revision or repo raises the client's own exception."""
    data = noise(5000)
    add(api, {SHARD: data, "config.json": b"0123456789"})
    for name, whole in ((SHARD, data), ("config.json", b"0123456789")):
        url = f"{hub.url}/{REPO}/resolve/main/{name}"
        part = get_session().get(url, headers={"Range": "bytes=3-6"})
        assert (part.status_code, part.content) == (206, whole[3:7])
    with pytest.raises(EntryNotFoundError):
        api.hf_hub_download(REPO, "missing.json")
    with pytest.raises(RevisionNotFoundError):
        api.hf_hub_download(REPO, "config.json", revision="nowhere")
    with pytest.raises(RevisionNotFoundError, match="Invalid rev id: nowhere"):
        api.model_info(REPO, revision="nowhere")
    with pytest.raises(RepositoryNotFoundError):
        api.model_info("alice/missing")
    with pytest.raises(EntryNotFoundError):
        list(api.list_repo_tree(REPO, "no/such/folder"))
    assert api.file_exists(REPO, "config.json")
    assert not api.file_exists(REPO, "missing.json")


# -- commits, refs, pull requests --------------------------------------------------------------


@lfs_only
def test_stale_parent_is_refused(hub: Hub, api: HfApi) -> None:
    """A commit on a head that has moved gets a 412 and leaves no trace."""
    old = hub.head(REPO)
    theirs = hub.commit(REPO, {"theirs.txt": b"theirs"})
    with pytest.raises(HfHubHTTPError, match="A commit has happened since") as error:
        add(api, {"ours.txt": b"ours"}, parent_commit=old)
    assert status_of(error) == 412
    assert hub.head(REPO) == theirs.sha
    assert add(api, {"ours.txt": b"ours"}, parent_commit=theirs.sha[:7]).oid == hub.head(REPO)
    seen = [sorted(state.files) for state in hub.states(REPO)]
    assert seen == [
        [".gitattributes"],
        [".gitattributes", "theirs.txt"],
        [".gitattributes", "ours.txt", "theirs.txt"],
    ]


@lfs_only
def test_one_commit_at_a_time(hub: Hub, api: HfApi) -> None:
    """A commit to a repo that is making another one gets a 409; other repos are free."""
    hub.create_repo("alice/other")
    hub.commit_seconds = 0.5
    with ThreadPoolExecutor() as threads:
        first = threads.submit(add, api, {"a.txt": b"a"})
        while not hub.repo(REPO).is_busy:
            time.sleep(0.01)
        other = threads.submit(api.upload_file, repo_id="alice/other", path_or_fileobj=b"o",
                               path_in_repo="o.txt")  # fmt: skip
        with pytest.raises(HfHubHTTPError, match="Another commit operation is in prog") as error:
            add(api, {"b.txt": b"b"}, revision="main")
        assert status_of(error) == 409
        assert first.result().oid == hub.head(REPO)
        assert other.result().oid == hub.head("alice/other")
    assert set(hub.files(REPO)) == {".gitattributes", "a.txt"}
    assert add(api, {"b.txt": b"b"}).oid == hub.head(REPO)


@lfs_only
def test_impossible_commits_are_refused(hub: Hub, api: HfApi) -> None:
    """Deleting what is not there and committing to what is no branch fail as on the Hub."""
    head = hub.head(REPO)
    for gone in ("missing.txt", "missing/"):
        with pytest.raises(EntryNotFoundError, match="name doesn't exist"):
            api.create_commit(REPO, [CommitOperationDelete(gone)], commit_message="gone")
    with pytest.raises(RevisionNotFoundError):
        add(api, {"a.txt": b"a"}, revision="nowhere")
    with pytest.raises(RevisionNotFoundError):
        add(api, {"a.txt": b"a"}, revision=head)
    with pytest.raises(EntryNotFoundError):
        api.create_commit(
            REPO, [CommitOperationDelete("gone")], commit_message="gone", create_pr=True
        )
    assert hub.repo(REPO).discussions == {}
    body = (
        b'{"key": "header", "value": {"summary": "s"}}\n{"key": "file", "value": {"path": "../x"}}'
    )
    headers = {"Authorization": f"Bearer {hub.token}"}
    reply = get_session().post(
        f"{hub.url}/api/models/{REPO}/commit/main", content=body, headers=headers
    )
    assert reply.status_code == 400
    assert hub.head(REPO) == head


@lfs_only
def test_branches_and_tags(hub: Hub, api: HfApi) -> None:
    """Refs are made, listed, refused when taken, and deleted."""
    head = hub.head(REPO)
    made = add(api, {"a.txt": b"a"}).oid
    api.create_branch(REPO, branch="dev/one", revision=head)
    with pytest.raises(HfHubHTTPError, match="refs/heads/dev/one already exists") as error:
        api.create_branch(REPO, branch="dev/one")
    assert status_of(error) == 409
    api.create_branch(REPO, branch="dev/one", exist_ok=True)
    api.create_tag(REPO, tag="v1", tag_message="first", revision="main")
    with pytest.raises(HfHubHTTPError, match="Tag reference exists already") as error:
        api.create_tag(REPO, tag="v1")
    assert status_of(error) == 409
    refs = api.list_repo_refs(REPO, include_pull_requests=True)
    assert {b.name: b.target_commit for b in refs.branches} == {"main": made, "dev/one": head}
    assert [(t.ref, t.target_commit) for t in refs.tags] == [("refs/tags/v1", made)]
    assert refs.pull_requests == []
    assert api.model_info(REPO, revision="v1").sha == made
    api.delete_branch(REPO, branch="dev/one")
    for name, why in (("dev/one", "Invalid rev id"), ("main", "Cannot delete refs/heads/main")):
        with pytest.raises(HfHubHTTPError, match=why):
            api.delete_branch(REPO, branch=name)
    api.delete_tag(REPO, tag="v1")
    with pytest.raises(RevisionNotFoundError):
        api.delete_tag(REPO, tag="v1")
    with pytest.raises(BadRequestError, match="Invalid reference for a branch"):
        api.create_branch(REPO, branch="refs/pr/5")


def test_pull_request_with_files(hub: Hub, api: HfApi) -> None:
    """A commit with create_pr leaves main alone, is readable as refs/pr/1, and can be merged."""
    head, data = hub.head(REPO), noise(130_000)
    made = add(api, {SHARD: data}, create_pr=True, parent_commit=head)
    assert (made.pr_num, made.pr_revision) == (1, "refs/pr/1")
    assert made.pr_url == f"{hub.url}/{REPO}/discussions/1"
    assert hub.head(REPO) == head
    assert SHARD in listed(api, "refs/pr/1")
    more = add(api, {"more.txt": b"more"}, revision="refs/pr/1")
    details = api.get_discussion_details(REPO, 1)
    assert (details.status, details.target_branch) == ("open", "refs/heads/main")
    assert details.conflicting_files == []
    api.merge_pull_request(REPO, 1)
    assert {SHARD, "more.txt"} < set(listed(api))
    details = api.get_discussion_details(REPO, 1)
    assert (details.status, details.merge_commit_oid) == ("merged", hub.head(REPO))
    assert hub.head(REPO) != more.oid


@lfs_only
def test_empty_and_conflicting_pull_requests(hub: Hub, api: HfApi) -> None:
    """A pull request without commits is a draft; one that collides with main cannot be merged."""
    draft = api.create_pull_request(REPO, "Some day")
    assert (draft.num, draft.status, draft.is_pull_request) == (1, "draft", True)
    add(api, {"a.txt": b"theirs"}, create_pr=True)
    add(api, {"a.txt": b"ours"})
    assert api.get_discussion_details(REPO, 2).conflicting_files == ["a.txt"]
    with pytest.raises(HfHubHTTPError) as error:
        api.merge_pull_request(REPO, 2)
    assert status_of(error) == 409
    assert hub.read(REPO, "a.txt") == b"ours"
    assert [d.num for d in api.get_repo_discussions(REPO, discussion_type="pull_request")] == [1, 2]


def test_pull_requests_of_a_stranger(hub: Hub, api: HfApi) -> None:
    """Who may only read may open one, with files; the listing can be filtered by its author."""
    files = {SHARD: noise(130_000), "a.txt": b"a"}
    operations = [CommitOperationAdd(path, data) for path, data in files.items()]
    hub.api("stranger").create_commit(REPO, operations, commit_message="evil", create_pr=True)
    add(api, {"a.txt": b"ours"}, create_pr=True)
    assert SHARD in hub.files(REPO, "refs/pr/1")
    for author, nums in ((None, [1, 2]), ("mallory", [1]), ("alice", [2]), ("nobody", [])):
        found = list(api.get_repo_discussions(REPO, author=author))
        assert [d.num for d in found] == nums
        assert {d.author for d in found} <= {author or "alice", author or "mallory"}


def test_long_listings_come_in_pages(make_hub: Callable[..., Hub]) -> None:
    """The client follows the Link headers of trees and histories to the last page."""
    hub = make_hub("lfs", page_size=3)
    hub.create_repo(REPO)
    for n in range(7):
        hub.commit(REPO, {f"file{n}.txt": b"x"}, title=f"commit {n}")
    api = hub.api()
    assert [f.path for f in api.list_repo_tree(REPO)][1:] == [f"file{n}.txt" for n in range(7)]
    assert hub.log.count("tree") == 3
    titles = [c.title for c in api.list_repo_commits(REPO)]
    assert titles == [*(f"commit {n}" for n in reversed(range(7))), "initial commit"]
    assert hub.log.count("commits") == 3


@lfs_only
def test_expanded_listing_tells_the_last_commit(api: HfApi) -> None:
    """With expand, a file names the commit that changed it last, not the newest one."""
    first = add(api, {"a.txt": b"a"})
    add(api, {"b.txt": b"b"})
    files = {f.path: f for f in api.list_repo_tree(REPO, expand=True)}
    assert files["a.txt"].last_commit is not None
    assert files["a.txt"].last_commit.oid == first.oid


def test_object_ids_are_those_of_git(tmp_path: Path) -> None:
    """Blobs and trees get the ids that git itself gives them."""
    files = {"b.txt": b"b", "a/x.txt": b"x", "a/deep/y.bin": b"\0y", "a.b": b"dot", "a0": b"zero"}
    for path, data in files.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(data)

    def run(*argv: str) -> str:
        argv = ("git", "-c", "core.autocrlf=false", *argv)
        env = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
        out = subprocess.check_output(argv, cwd=tmp_path, env=env, text=True)
        return out.strip()

    run("init", "-q")
    run("add", ".")
    ids = git.tree_ids({path: git.blob_id(data) for path, data in files.items()})
    assert ids[""] == run("write-tree")
    assert ids["a/deep"] == run("rev-parse", f"{ids['']}:a/deep")


# -- rules about files -------------------------------------------------------------------------


@lfs_only
def test_ignored_files_are_skipped_in_silence(api: HfApi) -> None:
    """What the repo's .gitignore covers never arrives, although the client reports success."""
    add(api, {".gitignore": b"*.log\nsecret/\n"})
    add(api, {"a.log": b"log", "secret/key": b"key", "b.txt": b"b"})
    assert set(listed(api)) == {".gitattributes", ".gitignore", "b.txt"}


def test_large_and_binary_files_become_lfs(make_hub: Callable[..., Hub]) -> None:
    """Size, name and content each send a file to LFS, and .gitattributes learns untracked names."""
    hub = make_hub("lfs", lfs_threshold=1000)
    hub.create_repo(REPO)
    api = hub.api()
    add(api, {"tokenizer.json": b"j" * 1000, "x.pt": b"t", "photo": b"\x00", "small.json": b"{}"})
    files = listed(api)
    assert {p for p, f in files.items() if f.lfs} == {"tokenizer.json", "x.pt", "photo"}
    attributes = hub.read(REPO, ".gitattributes").decode().splitlines()
    assert [line.split()[0] for line in attributes[-2:]] == ["tokenizer.json", "photo"]


@lfs_only
def test_bad_cards_are_refused_before_any_upload(hub: Hub, api: HfApi) -> None:
    """Invalid metadata stops create_commit at once, and ModelCard.validate as well."""
    for wrong in ("a: [", "license: nonsense", "tags: x", "base_model_relation: cousin"):
        text = f"---\n{wrong}\n---\n"
        with pytest.raises(ValueError, match="Invalid metadata"):
            add(api, {"README.md": text.encode(), "a.bin": noise(10)})
        assert hub.log.endpoints()[-1] == "validate_yaml", wrong
    with pytest.raises(ValueError, match="must be one of"):
        ModelCard("---\nlicense: nonsense\n---\n").validate()
    good = "---\nlicense: mit\nlibrary_name: transformers\ntags: [a]\nbase_model: a/b\n---\n# Hi"
    ModelCard(good).validate()
    add(api, {"README.md": good.encode()})
    assert api.model_info(REPO).library_name == "transformers"
    with pytest.warns(UserWarning, match="empty or missing yaml metadata"):
        add(api, {"README.md": b"# No metadata"})


# -- who may do what ---------------------------------------------------------------------------


@lfs_only
def test_whoami_tells_user_role_and_scopes(hub: Hub, api: HfApi) -> None:
    """Each kind of token is described as the Hub describes it; a dead one is refused."""
    me = api.whoami()
    assert (me["name"], me["orgs"][0]["name"]) == ("alice", "acme")
    assert me["auth"]["accessToken"]["role"] == "write"
    assert hub.api("read").whoami()["auth"]["accessToken"]["role"] == "read"
    fine = hub.api("fine_user").whoami()["auth"]["accessToken"]
    assert fine["role"] == "fineGrained"
    assert [s["entity"]["name"] for s in fine["fineGrained"]["scoped"]] == ["alice"]
    assert re.fullmatch(r"hf_[A-Za-z0-9]{34,}", hub.token)
    with pytest.raises(HfHubHTTPError, match="Invalid user token") as error:
        hub.api("revoked").whoami()
    assert status_of(error) == 401


@lfs_only
@pytest.mark.parametrize(
    ("who", "target", "status"),
    [
        ("write", "acme/model", None),
        ("fine_org", "acme/model", None),
        ("read", "acme/model", 403),
        ("fine_user", "acme/model", 403),
        ("stranger", "acme/model", 403),
        ("revoked", "acme/model", 401),
        (False, "acme/model", 401),
        ("fine_user", "alice/model", None),
    ],
)
@pytest.mark.usefixtures("api")
def test_writing_needs_the_right_token(
    hub: Hub, who: str | Literal[False], target: str, status: int | None
) -> None:
    """Every write is refused to every token that may not make it, and reading stays possible."""
    hub.create_repo(target)
    head, client = hub.head(target), hub.api(who)
    writes: list[Callable[[], object]] = [
        lambda: client.auth_check(target, write=True),
        lambda: client.create_branch(target, branch="b"),
        lambda: client.create_tag(target, tag="t"),
        lambda: client.preupload_lfs_files(target, [CommitOperationAdd("a.bin", b"a")]),
        lambda: client.create_repo(target + "2"),
        lambda: client.create_commit(target, [CommitOperationAdd("c", b"c")], commit_message="c"),
    ]
    for write in writes:
        if status is None:
            write()
            continue
        with pytest.raises(HfHubHTTPError) as error:
            write()
        assert status_of(error) == status
    assert (hub.head(target) != head) == (status is None)
    if who != "revoked":
        assert client.model_info(target).sha == hub.head(target)


@lfs_only
def test_create_repo_is_no_check_of_write_access(hub: Hub, api: HfApi) -> None:
    """With exist_ok a read-only token 'creates' a repo that is there: the client looks away."""
    hub.create_repo("acme/model")
    assert hub.api("read").create_repo("acme/model", exist_ok=True).repo_id == "acme/model"
    with pytest.raises(HfHubHTTPError, match="use a write token to create") as error:
        hub.api("read").create_repo("acme/other", exist_ok=True)
    assert status_of(error) == 403
    with pytest.raises(HfHubHTTPError, match="use a write token to upload"):
        hub.api("read").auth_check("acme/model", write=True)
    with pytest.raises(HfHubHTTPError, match="You already created this model repo") as error:
        api.create_repo("acme/model")
    assert status_of(error) == 409
    assert "acme/other" not in hub.repos


@lfs_only
def test_private_and_gated_repos_stay_closed(hub: Hub, api: HfApi) -> None:
    """A private repo looks missing to others; a gated one shows itself but not its files."""
    api.create_repo("acme/secret", private=True)
    for client in (hub.api("stranger"), hub.api("fine_user"), hub.api(False)):
        with pytest.raises(RepositoryNotFoundError):
            client.model_info("acme/secret")
    assert hub.api("read").model_info("acme/secret").private
    api.create_repo("acme/gated")
    api.update_repo_settings("acme/gated", gated="manual")
    hub.commit("acme/gated", {"config.json": b"{}"})
    for client in (hub.api("stranger"), hub.api(False)):
        assert client.model_info("acme/gated").gated == "manual"
        with pytest.raises(GatedRepoError):
            client.hf_hub_download("acme/gated", "config.json")
    assert Path(api.hf_hub_download("acme/gated", "config.json")).read_bytes() == b"{}"


@xet_only
@pytest.mark.parametrize(("token", "status"), [("read", 403), ("revoked", 401)])
def test_xet_refuses_with_a_builtin_error(hub: Hub, api: HfApi, token: str, status: int) -> None:
    """A refused xet token surfaces as ConnectionError, not as an HfHubHTTPError."""
    operation = CommitOperationAdd("a.bin", noise(10))
    api.preupload_lfs_files(REPO, [operation], free_memory=False)
    operation._is_uploaded = False
    with pytest.raises(ConnectionError, match=str(status)):
        hub.api(token).preupload_lfs_files(REPO, [operation])
    assert [e.status for e in hub.log.select("xet_write_token")] == [200, status]


# -- faults ------------------------------------------------------------------------------------

UNRETRIED = """
whoami create_repo repo_info paths_info refs validate_yaml commit create_branch delete_branch
create_tag create_discussion discussion merge auth_check
"""

RETRIED = {
    "preupload": {"a.txt": b"a"},
    "lfs_batch": {"a.bin": b"a"},
    "lfs_put": {"a.bin": b"a"},
    "lfs_part": {"a.bin": bytes(150_000)},
    "lfs_complete": {"a.bin": bytes(150_000)},
    "lfs_verify": {"a.bin": b"a"},
}


@lfs_only
@pytest.mark.parametrize("endpoint", RETRIED)
@pytest.mark.parametrize(
    "fault", [{"status": 503}, {"reset": "in"}, {"lost": "reset"}], ids=["503", "reset", "lost"]
)
def test_the_client_retries_uploads(
    hub: Hub, api: HfApi, naps: list[float], endpoint: str, fault: dict[str, Any]
) -> None:
    """These calls survive two failures by themselves: ours must not wrap them again."""
    files = RETRIED[endpoint]
    planned = hub.faults.add(endpoint, times=2, **fault)
    add(api, files)
    assert planned.hits == 2
    assert hub.faults.pending() == []
    assert naps == [1, 2]
    assert hub.read(REPO, next(iter(files))) == next(iter(files.values()))
    faulty = hub.log.select(endpoint)[:2]
    assert [e.status for e in faulty] == [503 if fault == {"status": 503} else None] * 2
    assert all(e.fault for e in faulty)


@lfs_only
@pytest.mark.parametrize("fault", [{"status": 503}, {"reset": "before"}], ids=["503", "reset"])
@pytest.mark.parametrize(
    "endpoint",
    UNRETRIED.split(),
)
def test_the_client_does_not_retry(
    hub: Hub, api: HfApi, naps: list[float], endpoint: str, fault: dict[str, Any]
) -> None:
    """These calls fail at the first failure: retrying them is our business."""
    hub.repo(REPO).discuss("A discussion", "", "alice", "main")
    hub.faults.add(endpoint, times=None, **fault)
    calls: dict[str, Callable[[], object]] = {
        "whoami": api.whoami,
        "create_repo": lambda: api.create_repo("alice/other", exist_ok=True),
        "repo_info": lambda: api.repo_info(REPO),
        "paths_info": lambda: api.get_paths_info(REPO, ["a"]),
        "refs": lambda: api.list_repo_refs(REPO),
        "validate_yaml": lambda: add(api, {"README.md": b"---\nlicense: mit\n---\n"}),
        "commit": lambda: add(api, {"a.txt": b"a"}),
        "create_branch": lambda: api.create_branch(REPO, branch="b"),
        "delete_branch": lambda: api.delete_branch(REPO, branch="b"),
        "create_tag": lambda: api.create_tag(REPO, tag="t"),
        "create_discussion": lambda: api.create_pull_request(REPO, "Title"),
        "discussion": lambda: api.get_discussion_details(REPO, 1),
        "merge": lambda: api.merge_pull_request(REPO, 1),
        "auth_check": lambda: api.auth_check(REPO, write=True),
    }
    refs = dict(hub.repo(REPO).refs)
    with pytest.raises((HfHubHTTPError, httpx2.NetworkError, httpx2.RemoteProtocolError)):
        calls[endpoint]()
    assert naps == []
    assert hub.log.count(endpoint) == 1
    assert hub.repo(REPO).refs == refs


@lfs_only
def test_retry_after_is_sent_and_honoured(hub: Hub, api: HfApi, naps: list[float]) -> None:
    """The client waits as long as it is told (and one second more)."""
    hub.faults.add("tree", status=429, retry_after=7)
    hub.faults.add("tree", status=503)
    assert set(listed(api)) == {".gitattributes"}
    assert naps == [8, 2]
    hub.faults.add("commit", status=429, retry_after=7)
    with pytest.raises(HfHubHTTPError) as error:
        add(api, {"a.txt": b"a"})
    assert error.value.response.headers["Retry-After"] == "7"


@lfs_only
@pytest.mark.usefixtures("naps")
@pytest.mark.parametrize("when", ["before", "in", "after"])
def test_a_reset_upload_is_counted_and_not_stored(hub: Hub, api: HfApi, when: str) -> None:
    """Bytes of a cut upload count as sent, but only the retry's are stored."""
    size = 3_000_000
    hub.lfs.part_size = size
    hub.faults.add("lfs_put", reset=when)
    add(api, {"a.bin": noise(size)})
    first, second = hub.log.select("lfs_put")
    received = {"before": (0, 0), "in": (size // 2, size - 1), "after": (size, size)}[when]
    assert received[0] <= first.received <= received[1]
    assert (first.status, second.status, second.received) == (None, 200, size)
    assert list(hub.lfs.completed.values()) == [1]


@pytest.mark.parametrize("answer", ["reset", 504])
def test_a_lost_answer_leaves_the_commit(
    hub: Hub, api: HfApi, naps: list[float], answer: str | int
) -> None:
    """The branch has moved although the client was told of a failure, and it did not try again."""
    hub.faults.add("commit", lost=answer)
    with pytest.raises((HfHubHTTPError, httpx2.NetworkError, httpx2.RemoteProtocolError)):
        add(api, {"a.txt": b"a", SHARD: noise(1000)})
    assert naps == []
    assert SHARD in hub.files(REPO)
    assert len(hub.states(REPO)) == 2


@lfs_only
def test_a_held_connection_times_out(hub: Hub, api: HfApi) -> None:
    """A silent Hub is noticed only by a client with a time-out of its own; nothing is committed."""
    head = hub.head(REPO)
    hub.faults.add("commit", hold=ENDLESS_SECONDS)
    set_client_factory(lambda: httpx2.Client(timeout=0.5))
    try:
        with pytest.raises(httpx2.ReadTimeout):
            add(api, {"a.txt": b"a"})
    finally:
        set_client_factory(_http.default_client_factory)
    hub.faults.add("commit", hold=0.1)
    with pytest.raises((httpx2.NetworkError, httpx2.RemoteProtocolError)):
        add(api, {"a.txt": b"a"})
    assert hub.head(REPO) == head


def test_wrong_bytes_show_in_the_listing(hub: Hub, api: HfApi, tmp_path: Path) -> None:
    """The stored sha256 and the bytes that come back are not those that were sent."""
    data = noise(140_000)
    hub.faults.add("commit", wrong_bytes="*.safetensors")
    add(api, {SHARD: data, "config.json": b"{}"})
    lfs = listed(api)[SHARD].lfs
    assert lfs is not None
    assert (lfs.size, lfs.sha256 == sha256(data)) == (140_000, False)
    path = hf_hub_download(REPO, SHARD, endpoint=hub.url, cache_dir=tmp_path)
    assert sha256(Path(path).read_bytes()) == lfs.sha256
    assert hub.read(REPO, "config.json") == b"{}"
    copy = CommitOperationCopy(SHARD, "copy.safetensors")
    api.create_commit(REPO, [copy], commit_message="copy")
    assert listed(api)["copy.safetensors"].lfs == lfs


@lfs_only
def test_a_token_dies_on_the_way(hub: Hub, api: HfApi) -> None:
    """From the chosen request on the token is invalid, for all endpoints."""
    hub.faults.add("commit", revoke=True)
    with pytest.raises(HfHubHTTPError) as error:
        add(api, {SHARD: noise(100)})
    assert status_of(error) == 401
    with pytest.raises(HfHubHTTPError):
        api.whoami()
    assert hub.api("read").whoami()["name"] == "alice"


def test_somebody_else_is_faster(hub: Hub, api: HfApi) -> None:
    """Another commit lands just before ours is handled, and ours is refused."""
    head = hub.head(REPO)
    hub.faults.add("commit", move_head="main")
    with pytest.raises(HfHubHTTPError) as error:
        add(api, {SHARD: noise(100)}, parent_commit=head)
    assert status_of(error) == 412
    assert set(hub.files(REPO)) == {".gitattributes", "somebody-else.txt"}
    assert [sorted(s.files) for s in hub.states(REPO)][1:] == [sorted(hub.files(REPO))]


@lfs_only
@pytest.mark.parametrize("part_size", [100_000, 1_000_000])
def test_uploads_can_be_slow(hub: Hub, api: HfApi, part_size: int) -> None:
    """The limit holds for all uploads together, whole or in parts, and for nothing else."""
    hub.lfs.part_size = part_size
    hub.upload_bytes_per_s = 1_000_000
    start = time.monotonic()
    add(api, {"a.bin": noise(250_000), "b.bin": noise(250_000)})
    assert time.monotonic() - start >= 0.5
    hub.upload_bytes_per_s = None
    fault = hub.faults.add("lfs_p*", slow=1_000_000)
    start = time.monotonic()
    add(api, {"c.bin": noise(100_000)})
    assert time.monotonic() - start >= 0.1
    assert fault.hits == 1


def test_faults_are_picked_by_endpoint_count_and_condition(hub: Hub, api: HfApi) -> None:
    """skip, times, revision, when and a pattern select exactly the requests that they name."""
    hub.repo(REPO).create_branch("dev", None)
    only_dev = hub.faults.add("tr*", revision="dev", status=404, times=None)
    third = hub.faults.add("tree", skip=2, times=1, status=403)
    never = hub.faults.add("tree", when=lambda call: call.method == "POST", status=400)
    for revision, status in (("main", 0), ("dev", 404), ("main", 0), ("main", 403), ("main", 0)):
        if not status:
            assert set(listed(api, revision)) == {".gitattributes"}
            continue
        with pytest.raises(HfHubHTTPError) as error:
            listed(api, revision)
        assert status_of(error) == status
    assert (only_dev.hits, third.hits, never.hits) == (1, 1, 0)
    assert hub.faults.pending() == [never]
    hub.faults.clear()
    assert list(hub.faults) == []


@lfs_only
def test_impossible_faults_are_refused(hub: Hub) -> None:
    """A fault that can never happen is an error of the test that plans it."""
    impossible: list[tuple[str, dict[str, Any]]] = [
        ("comit", {"status": 503}),
        ("commit", {}),
        ("commit", {"status": 503, "reset": "in"}),
        ("commit", {"reset": "later"}),
        ("tree", {"wrong_bytes": "*"}),
    ]
    for endpoint, spec in impossible:
        with pytest.raises(ValueError, match=r"endpoint|fault|reset"):
            hub.faults.add(endpoint, **spec)


@lfs_only
def test_hooks_see_the_request_and_may_answer_it(hub: Hub, api: HfApi) -> None:
    """A hook runs before the handler, may use the Hub, and its response replaces the handler's."""
    seen: list[str] = []

    def look(call: Any) -> None:
        seen.append(f"{call.method} {call.repo_id} {call.revision} {hub.api().whoami()['name']}")

    hub.faults.add("commit", hook=look)
    hub.faults.add("repo_info", hook=lambda _: JSONResponse({"id": "x/y", "sha": "0" * 40}))
    add(api, {"a.txt": b"a"})
    assert seen == [f"POST {REPO} main alice"]
    assert api.model_info(REPO).sha == "0" * 40
    assert api.model_info(REPO).sha == hub.head(REPO)


PUSH = """
import sys
from huggingface_hub import CommitOperationAdd, HfApi
operations = [CommitOperationAdd("model.safetensors", sys.argv[1])]
HfApi().create_commit("alice/model", operations, commit_message="push")
"""


def test_a_killed_client_can_try_again(hub: Hub, tmp_path: Path) -> None:
    """SIGKILL between upload and commit: the log shows the cut, and a rerun sends nothing twice."""
    shard = tmp_path / "model.safetensors"
    shard.write_bytes(noise(250_000))
    running: list[subprocess.Popen[str]] = []

    def kill(_: object) -> None:
        running[0].send_signal(signal.SIGKILL)
        running[0].wait()
        time.sleep(0.05)

    hub.faults.add("commit", hook=kill)
    running.append(python(hub, PUSH, shard))
    assert running[0].wait(NET_SECONDS) == -signal.SIGKILL
    assert len(hub.states(REPO)) == 1, "the dead client's commit was made"
    sent, stored = hub.uploaded_bytes, hub.xet.stored_bytes()
    assert (sent, stored >= 250_000) == ((250_000, False) if hub.transport == "lfs" else (0, True))
    assert python(hub, PUSH, shard).wait(NET_SECONDS) == 0
    assert (hub.uploaded_bytes, hub.xet.stored_bytes()) == (sent, stored)
    assert hub.read(REPO, "model.safetensors") == shard.read_bytes()


@lfs_only
def test_an_upload_cut_by_the_client_is_logged(hub: Hub, tmp_path: Path) -> None:
    """A client killed in the middle of a file leaves an entry without status and no blob."""
    shard, size = tmp_path / "model.safetensors", 20_000_000
    shard.write_bytes(noise(size))
    hub.lfs.part_size = size
    hub.upload_bytes_per_s = 10_000_000
    client = python(hub, PUSH, shard)
    while not hub.uploaded_bytes:
        assert client.poll() is None
        time.sleep(0.01)
    client.kill()
    client.wait()
    (entry,) = hub.log.select("lfs_put")
    wait_until(lambda: entry.done)
    assert (entry.done, entry.status) == (True, None)
    assert 0 < hub.uploaded_bytes < size
    assert not hub.lfs.completed


# -- the Hub as a program, and its honesty ------------------------------------------------------


def test_runs_on_its_own(tmp_path: Path) -> None:
    """The Hub as a command serves until SIGTERM and writes the environment for the next steps."""
    variables = tmp_path / "env"
    argv = [sys.executable, "-m", "tests.support.fake_hub", "--lfs"]
    argv += ["--dir", str(tmp_path / "data"), "--env-file", str(variables)]
    server = subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        said = [server.stdout.readline().strip().split(": ") for _ in range(2)]
        lines = dict(line.split("=", 1) for line in variables.read_text().splitlines())
        assert said == [["url", lines["HF_ENDPOINT"]], ["token write", lines["HF_TOKEN"]]]
        assert lines["HF_HUB_DISABLE_XET"] == "1"
        api = HfApi(endpoint=lines["HF_ENDPOINT"], token=lines["HF_TOKEN"])
        assert api.whoami()["name"] == "alice"
    finally:
        server.terminate()
        assert server.wait(NET_SECONDS) == 0


@pytest.mark.usefixtures("naps")
def test_its_own_bugs_do_not_pass_for_faults(tmp_path: Path) -> None:
    """A handler that crashes and a URL that does not exist fail the test that met them."""
    with Hub(tmp_path / "one", "lfs") as hub:
        hub.create_repo(REPO)
        hub.repo(REPO).refs = None  # type: ignore[assignment]
        with pytest.raises(HfHubHTTPError):
            hub.api().model_info(REPO)
        with pytest.raises(AssertionError, match="crashed"):
            hub.check()
    with Hub(tmp_path / "two", "lfs") as hub:
        assert get_session().get(f"{hub.url}/api/no-such-thing").status_code == 404
        with pytest.raises(AssertionError, match="no-such-thing"):
            hub.check()
    close_session()


def test_everything_that_was_pushed_comes_back(hub: Hub, api: HfApi) -> None:
    """snapshot_download of a branch, a tag and a pull request each gives that revision's bytes."""
    first, second = noise(120_000), noise(130_000)
    add(api, {SHARD: first})
    api.create_tag(REPO, tag="v1")
    add(api, {SHARD: second})
    add(api, {SHARD: first + second}, create_pr=True)
    expected = {"v1": first, "main": second, "refs/pr/1": first + second}
    for revision, data in expected.items():
        folder = snapshot_download(REPO, revision=revision, endpoint=hub.url)
        assert Path(folder, SHARD).read_bytes() == data
    assert [s.files[SHARD].size for s in hub.states(REPO)[1:]] == [120_000, 130_000]
