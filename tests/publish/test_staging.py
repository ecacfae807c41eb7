"""The staging folder and its cap, several shards in one commit, and what a push leaves behind."""

from __future__ import annotations

import fcntl
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import HfApi

import hubmerge
from hubmerge.system.linux_files import read_position
from tests.support.fake_hub import Hub
from tests.support.fake_hub.call import Call
from tests.support.patience import NET_SECONDS, wait_until
from tests.support.push import models
from tests.support.push.checks import INDEX, expected_weights, readers_saw_only, weights_of
from tests.support.push.command import REPO, Done, run_here
from tests.support.push.models import Model

pytest_plugins = ["tests.support.push.plugin"]

Push = Callable[..., Done]


class Watch:
    """Samples what a folder holds, as often as it can."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.peak, self._stop = folder, 0, threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        while not self._stop.is_set():
            self.peak = max(self.peak, sum(map(_size, self.folder.rglob("*"))))
            time.sleep(0.001)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


def _size(path: Path) -> int:
    try:
        return path.stat().st_size if path.is_file() else 0
    except OSError:
        return 0


@pytest.mark.parametrize("shards", [1, 2])
def test_the_cap_holds(shards: int, hub: Hub, push: Push, model: Model, tmp_path: Path) -> None:
    """`--max-disk` bounds what the folder ever holds, by our count and by somebody else's."""
    largest = max(len(data) for name, data in model.weights().items() if name != INDEX)
    hub.faults.add("commit", times=None, hold=0.05, slow=1e9)
    staging = tmp_path / "staging"
    with Watch(staging) as watch:
        result = push(
            "--staging-dir", str(staging), "--max-disk", str(shards * largest), "--json"
        ).json
    assert 0 < watch.peak <= result["peak_staging_bytes"] <= shards * largest
    assert list(staging.iterdir()) == []
    assert weights_of(hub.files(REPO)) == expected_weights(model)


def test_a_cap_below_one_shard_names_the_number(push: Push, model: Model) -> None:
    """The refusal says how much would do, and that much does."""
    largest = max(len(data) for name, data in model.weights().items() if name != INDEX)
    done = push("--max-disk", str(largest - 1))
    assert done.code == 2
    assert f"less than one shard of {largest:,} bytes" in done.err
    assert f"Use at least {largest}, or a smaller --shard-size" in done.err
    assert push("--max-disk", str(largest)).code == 0


def test_converting_and_uploading_overlap(hub: Hub, push: Push, places: Path) -> None:
    """While a shard is being committed, the next is converted already."""
    seen: list[int] = []

    def shards() -> int:
        return len(list(places.rglob("model-*.safetensors")))

    def look(_: Call) -> None:
        wait_until(lambda: shards() == 2, seconds=NET_SECONDS if 0 < len(seen) < 4 else 0.2)
        seen.append(shards())

    hub.faults.add("commit", times=None, hook=look, when=is_staging)
    assert push().code == 0
    assert seen == [0, 2, 2, 2, 1]


@pytest.fixture
def locked(tmp_path: Path) -> Iterator[Path]:
    """A staging folder that a living run uses."""
    folder = tmp_path / "staging"
    folder.mkdir()
    with open(folder / ".hubmerge.lock-0", "ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield folder


def test_two_runs_in_one_staging_folder(hub: Hub, locked: Path, push: Push) -> None:
    """The second is refused, and touches nothing of the first."""
    mine = locked / "hubmerge-staged-0"
    mine.mkdir()
    (mine / "model-00001-of-00004.safetensors").write_bytes(b"somebody's")
    done = push("--staging-dir", str(locked))
    assert done.code == 2
    assert "another run is using this directory" in done.err
    assert (mine / "model-00001-of-00004.safetensors").read_bytes() == b"somebody's"
    assert weights_of(hub.files(REPO)) == {}


def test_only_leftovers_of_a_dead_run_are_removed(push: Push, tmp_path: Path) -> None:
    """What a dead run left goes; a model of the user's own in the same folder stays."""
    staging = tmp_path / "staging"
    (staging / "hubmerge-staged-0").mkdir(parents=True)
    (staging / "hubmerge-staged-0" / "model-00009-of-00009.safetensors.partial").touch()
    (staging / ".hubmerge.lock-0").touch()
    (staging / "model.safetensors").write_bytes(b"the user's own")
    assert push("--staging-dir", str(staging)).code == 0
    assert {path.name for path in staging.iterdir()} == {"model.safetensors"}
    assert (staging / "model.safetensors").read_bytes() == b"the user's own"


def test_what_dead_runs_left_in_temporary_folders_goes(
    api: HfApi, naps: list[float], model: Model, places: Path
) -> None:
    """Of another step, and of a rank that there is no more; a run that goes on keeps its own."""
    uid = os.getuid()
    dead = places / f"hubmerge-{uid}-0123456789abcdef"
    alive = places / f"hubmerge-{uid}-fedcba9876543210"
    for root, rank in ((dead, 0), (dead, 3), (alive, 1)):
        (root / f"hubmerge-staged-{rank}").mkdir(parents=True)
        (root / f"hubmerge-staged-{rank}" / "model.safetensors").write_bytes(b"staged")
        (root / f".hubmerge.lock-{rank}").touch()
    with (alive / ".hubmerge.lock-1").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert run_here("push", *model.argv("--repo-id", REPO)).code == 0
    assert not dead.exists()
    assert (alive / "hubmerge-staged-1" / "model.safetensors").read_bytes() == b"staged"
    assert run_here("push", *model.argv("--repo-id", REPO)).code == 0
    assert not alive.exists()


@pytest.mark.parametrize("chosen", [True, False])
def test_no_disk_has_room(
    chosen: bool, push: Push, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exit 7 before anything is written, with the bytes that are needed and free."""
    usage = type("Usage", (), {"free": 1_000})
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage)
    staging = tmp_path / "staging"
    done = push(*(["--staging-dir", str(staging)] if chosen else []))
    assert done.code == 7
    assert "1,000" in done.err
    assert "--staging-dir on " in done.err
    assert not staging.exists()


@pytest.mark.parametrize("transport", ["lfs"])  # hf_xet itself wants a working folder
@pytest.mark.parametrize(("free", "code"), [(10**9, 0), (1_000, 7)])
def test_places_that_cannot_be_told(
    free: int, code: int, hub: Hub, push: Push, places: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A working folder that was removed, and a user whom nobody knows, as in a container."""
    gone = places.parent / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    monkeypatch.delenv("HOME")
    monkeypatch.setattr("pwd.getpwuid", {}.__getitem__)
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": free}))
    done = push()
    assert done.code == code, done.err
    assert (f"{places}: 1,000)" in done.err) == bool(code)
    if code:  # nothing is created for a push that cannot be
        assert REPO not in hub.repos
    else:
        assert "config.json" in hub.files(REPO)


# -- several shards in one commit --------------------------------------------------------------


@pytest.fixture(scope="session")
def many(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """A checkpoint of 70 tensors, for as many shards."""
    return models.plain(tmp_path_factory.mktemp("many"), 70)


MANY = 1_300
"""The shard size that gives each of them a file."""


def is_staging(call: Call) -> bool:
    """Is the request for the staging branch?"""
    return (call.revision or "").startswith("hubmerge/")


def assert_many_published(hub: Hub, many: Model) -> None:
    """All 70 shards and their index are on main, with no half model before."""
    expected = expected_weights(many, MANY)
    assert len(expected) == 71
    assert weights_of(hub.files(REPO)) == expected
    assert [weights_of(s.files) for s in hub.states(REPO)][:-1] == [{}]


def test_many_shards_share_commits(hub: Hub, push: Push, many: Model) -> None:
    """70 shards take half as many commits, within the same cap on the disk."""
    result = push("--json", of=many, shard_size=MANY).json
    assert_many_published(hub, many)
    assert hub.log.count("commit") == 1 + 35 + 1
    size = len(many.weights(MANY)["model-00001-of-00070.safetensors"])
    assert result["peak_staging_bytes"] <= 2 * size
    assert result["uploaded_bytes"] == 70 * size


def test_one_of_a_group_is_lost(hub: Hub, push: Push, many: Model) -> None:
    """The Hub loses an uploaded blob before its commit: it is converted and sent again."""
    lost = expected_weights(many, MANY)["model-00002-of-00070.safetensors"]
    fault = hub.faults.add("commit", hook=lambda _: hub.forget_blob(lost), when=is_staging, skip=1)
    size = len(many.weights(MANY)["model-00001-of-00070.safetensors"])
    result = push("--json", of=many, shard_size=MANY).json
    assert fault.hits == 1
    assert_many_published(hub, many)
    assert result["uploaded_bytes"] == 72 * size  # as far as we know; the Hub had one of the two
    if hub.transport == "lfs":
        assert hub.lfs.completed[lost] == 2
        assert hub.uploaded_bytes == 71 * size


def test_one_of_a_group_is_not_listed(hub: Hub, push: Push, many: Model) -> None:
    """The Hub leaves one of a group out of its commit: that one is converted again."""

    def drop(call: Call) -> None:
        repo = hub.repo(REPO)
        branch = str(call.revision)
        hub.commit(REPO, {"model-00002-of-00070.safetensors": None}, branch)
        assert "model-00002-of-00070.safetensors" not in repo.resolve(branch).files

    hub.faults.add("tree", hook=drop, when=is_staging, skip=1)
    assert push(of=many, shard_size=MANY).code == 0
    assert_many_published(hub, many)


def test_a_group_that_is_never_taken(hub: Hub, push: Push, many: Model) -> None:
    """A commit that the Hub would refuse every time ends the run at once, with its words."""
    fault = hub.faults.add("commit", times=None, status=400, when=is_staging, skip=1)
    done = push(of=many, shard_size=MANY)
    assert (done.code, fault.hits) == (1, 1)
    assert "injected fault: 400" in done.err


def test_one_of_a_group_is_lost_each_time(hub: Hub, push: Push, many: Model) -> None:
    """A blob that the Hub loses again and again ends the run after three attempts."""
    lost = expected_weights(many, MANY)["model-00002-of-00070.safetensors"]
    hub.faults.add("commit", times=None, hook=lambda _: hub.forget_blob(lost), when=is_staging)
    done = push(of=many, shard_size=MANY)
    assert (done.code, hub.log.count("commit", status=400)) == (1, 3)
    assert "pointed to a file that does not exist" in done.err
    assert "model-00002-of-00070.safetensors" in done.err
    readers_saw_only(hub, REPO)


def test_wrong_bytes_in_a_group(hub: Hub, push: Push, many: Model) -> None:
    """A mismatch in a group fails the run at once, before the target moves."""
    hub.faults.add("commit", wrong_bytes="model-00002-*", when=is_staging, skip=1)
    done = push(of=many, shard_size=MANY)
    assert done.code == 8
    assert "model-00002-of-00070.safetensors" in done.err
    readers_saw_only(hub, REPO)


def test_many_shards_resume(hub: Hub, api: HfApi, push: Push, many: Model) -> None:
    """A run that failed in the middle of a group sends only what was not committed."""
    assert api.endpoint == hub.url
    size = len(many.weights(MANY)["model-00001-of-00070.safetensors"])
    fault = hub.faults.add("commit", times=None, status=403, when=is_staging, skip=11)
    assert push(of=many, shard_size=MANY).code == 6
    assert fault.hits == 1
    hub.faults.clear()
    result = run_here(
        "push", "--json", "--repo-id", REPO, *many.argv(shard_size=MANY)
    ).json  # fmt: skip
    assert (result["resumed_shards"], result["uploaded_bytes"]) == (20, 50 * size)
    assert_many_published(hub, many)


# -- what a user is told -----------------------------------------------------------------------


class Watched(hubmerge.Progress):
    """Remembers what happens."""

    def __init__(self) -> None:
        self.uploads: list[int] = []
        self.waits: list[bool] = []
        self.notes: list[str] = []

    def uploaded_bytes(self, size_bytes: int) -> None:
        self.uploads.append(size_bytes)

    def waiting(self, is_waiting: bool) -> None:
        self.waits.append(is_waiting)

    def note(self, text: str) -> None:
        self.notes.append(text)


def watched_push(hub: Hub, model: Model, **options: Any) -> Watched:
    """Push from Python."""
    progress = Watched()
    hubmerge.push(
        model.load_dir, REPO, model_assets_dir=model.assets, shard_size=models.SHARD_SIZE,
        token=hub.token, progress=progress, **options,
    )  # fmt: skip
    return progress


@pytest.mark.usefixtures("api", "naps")
def test_uploads_and_waits_are_told(hub: Hub, model: Model, places: Path) -> None:
    """All bytes of all shards, when the conversion waits, and where shards are staged."""
    hub.faults.add("commit", times=None, hold=0.2, slow=1e9, when=is_staging)
    largest = max(len(data) for name, data in model.weights().items() if name != INDEX)
    progress = watched_push(hub, model, max_disk=largest)
    shards = [len(data) for name, data in model.weights().items() if name != INDEX]
    assert sum(progress.uploads) == sum(shards)
    assert progress.waits == [True, False] * 3
    (staged,) = [note for note in progress.notes if note.startswith("staging shards in ")]
    assert staged.startswith(f"staging shards in {places}/hubmerge-")


@pytest.mark.usefixtures("api", "naps", "places")
def test_retries_are_told(hub: Hub, model: Model) -> None:
    """What failed, how long it waits, and which attempt comes next."""
    hub.faults.add("validate_yaml", status=503, times=2)
    told = [note for note in watched_push(hub, model).notes if "retrying" in note]
    assert len(told) == 2
    assert told[0].startswith("validating the model card: ")
    assert told[0].endswith("s (1/5)")


def test_how_far_a_file_is_read(tmp_path: Path) -> None:
    """Known while this process has it open; 0 elsewhere and afterwards."""
    path = tmp_path / "shard"
    path.write_bytes(bytes(1000))
    with path.open("rb", buffering=0) as file:
        file.read(600)
        assert read_position(path) == (600 if sys.platform == "linux" else 0)
    assert read_position(path) == read_position(tmp_path / "none") == 0
