"""The whole push: preflight, pipeline, one commit. See `hubmerge.publish.staging` for the order."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from hubmerge.assets import Assets
from hubmerge.checkpoint.records import DataFiles
from hubmerge.convert import fingerprint
from hubmerge.errors import NoRoomError, UnsafeInputError, UsageError
from hubmerge.output_folder import check_room
from hubmerge.plan import INDEX_NAME, Plan
from hubmerge.progress import Progress
from hubmerge.publish.card import CARD, CardOptions, is_ours, make_card
from hubmerge.publish.hub import Hub
from hubmerge.publish.pipeline import Pipeline
from hubmerge.publish.secrets import refuse_secrets
from hubmerge.publish.staging import BRANCH_PREFIX, Published, Record, Staging, Target
from hubmerge.ranks import ALONE, Ranks
from hubmerge.shard_writer import PARTIAL_SUFFIX, WrittenShard, disk_errors

DEFAULT_BRANCH = "main"
_LOCK = ".hubmerge.lock"


@dataclass(frozen=True, slots=True)
class PushOptions:
    """Where and how to publish.

    Attributes:
        staging_dir: where shards stand between conversion and upload; a temporary folder if None.
        max_disk: bytes that it holds at most; two shards if None.
        clean: remove staging branches that other, unfinished runs left.
        recorded: what the commit records, so that `verify` can make the same plan again.
    """

    repo_id: str
    private: bool = False
    revision: str = DEFAULT_BRANCH
    create_pr: bool = False
    tag: str | None = None
    commit_message: str | None = None
    commit_description: str | None = None
    token: str | None = None
    staging_dir: Path | None = None
    max_disk: int | None = None
    clean: bool = False
    card: CardOptions = field(default_factory=CardOptions)
    recorded: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class PushResult:
    """What a push did; sizes in bytes. `changed` is false where nothing had to be committed."""

    url: str
    commit: str
    revision: str
    repo_id: str
    shards: tuple[WrittenShard, ...]
    uploaded_bytes: int
    resumed_shards: int
    peak_staging_bytes: int
    seconds: float
    changed: bool
    warnings: tuple[str, ...]

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    def to_text(self) -> str:
        if not self.changed:
            return f"✓ Nothing to do: {self.repo_id} already holds this model\nurl: {self.url}"
        return (
            f"✓ Pushed {len(self.shards)} file{'s' * (len(self.shards) != 1)} "
            f"in {self.seconds:.1f} s\nurl: {self.url}"
        )


def push_plan(
    plan: Plan, assets: Assets, options: PushOptions, progress: Progress, ranks: Ranks = ALONE
) -> PushResult:
    """Publish the planned model.

    Raises:
        AccessError: the token may not do it; found before anything is converted.
        TargetChangedError: somebody else moved the target meanwhile.
        HubmergeError: any other of the tree. The target is then as it was, and the same command
            resumes.
    """
    began = time.monotonic()
    files = DataFiles(plan.checkpoint.folder)
    files.check_sizes(plan.data_files)
    cap_bytes = _cap(plan, options)
    job = _Job(plan, assets, options, fingerprint(plan, files))
    # Only rank 0 creates anything; the others then find it.
    prepared = ranks.gather(job.prepare(progress) if ranks.rank == 0 else None)[0]
    assert prepared is not None
    todo = [shard for shard in plan.shards if shard.filename not in prepared.held]
    place = _staging_path(options, job.staging.fingerprint, cap_bytes, ranks.rank)
    with _staging_folder(place, cap_bytes, plan) as folder:
        pipeline = Pipeline(
            files=files,
            hub=job.hub,
            staging=job.staging,
            folder=folder,
            cap_bytes=cap_bytes,
            total_shards=len(plan.shards),
            progress=progress,
            check=ranks.check,
        )
        progress.start(sum(s.size_bytes for s in ranks.share(todo)), len(ranks.share(todo)))
        mine = pipeline.run(ranks.share(todo))
    results = ranks.gather((mine, pipeline.uploaded_bytes, pipeline.peak_bytes))
    shards = dict(prepared.held)
    for theirs, _, _ in results:
        shards |= theirs
    ordered = {shard.filename: shards[shard.filename] for shard in plan.shards}
    published = ranks.gather(job.publish(ordered) if ranks.rank == 0 else None)[0]
    assert published is not None
    return PushResult(
        url=published.url,
        commit=published.commit,
        revision=options.revision,
        repo_id=options.repo_id,
        shards=tuple(ordered.values()),
        uploaded_bytes=sum(uploaded for _, uploaded, _ in results),
        resumed_shards=len(prepared.held),
        peak_staging_bytes=sum(peak for _, _, peak in results),
        seconds=round(time.monotonic() - began, 3),
        changed=published.changed,
        warnings=plan.warnings + assets.warnings,
    )


@dataclass(frozen=True, slots=True)
class _Prepared:
    """What preflight found out: shards that need neither conversion nor upload."""

    held: dict[str, WrittenShard]


class _Job:
    """What only rank 0 does: preflight and the final commit."""

    def __init__(self, plan: Plan, assets: Assets, options: PushOptions, fingerprint: str) -> None:
        self._plan, self._assets, self._options = plan, assets, options
        self.hub = Hub(options.repo_id, options.token)
        self.staging = Staging(self.hub, fingerprint)

    def prepare(self, progress: Progress) -> _Prepared:
        """Everything that can fail is tried before a byte is converted."""
        options, hub = self._options, self.hub
        hub.user()
        if hub.ensure_repo(private=options.private):
            progress.note(f"created {hub.url}")
        head = self._target_head()
        self._target = Target(hub, options.revision, head)
        if options.tag is not None:
            self._refuse_taken_tag(options.tag)
        self._small = self._small_files(head)
        refuse_secrets(self._small)
        hub.validate_card(self._small[CARD].decode())
        held = self._target.published(self.staging.fingerprint)
        branches = hub.branches()
        self._report_stale_branches(branches, progress)
        if len(held) < len(self._plan.shards):
            held = self.staging.open(head, branches) | held
        for name in held:
            progress.note(f"{name} is on the Hub already")
        return _Prepared(held)

    def _target_head(self) -> str:
        revision = self._options.revision
        head = self.hub.head(revision)
        if head is None:
            self.hub.create_branch(revision, DEFAULT_BRANCH)
            head = self.hub.head(revision)
        if head is None:
            raise UsageError(f"{self.hub.repo_id} has no branch {revision!r} and none can be made")
        return head

    def _refuse_taken_tag(self, tag: str) -> None:
        taken = self.hub.tag_target(tag)
        if taken is not None and taken != self._target.head:
            raise UsageError(
                f"the tag {tag!r} already names the commit {taken[:12]}",
                "Use another --tag; a tag that people rely on is never moved.",
            )

    def _small_files(self, head: str) -> dict[str, bytes]:
        small = {asset.name: asset.read() for asset in self._assets.files}
        if self._plan.index is not None:
            small[INDEX_NAME] = self._plan.index
        small[CARD] = self._card(head).encode()
        return small

    def _card(self, head: str) -> str:
        card = self._options.card
        if card.text is None and CARD in self._target.files:
            with tempfile.TemporaryDirectory() as folder:
                text = self.hub.read_text(CARD, head, Path(folder))
            if not is_ours(text):
                card = CardOptions(card.base_model, card.license, text)
        return make_card(self._plan, self._assets.config, card, self._options.repo_id)

    def _report_stale_branches(self, branches: list[str], progress: Progress) -> None:
        for branch in branches:
            if branch.startswith(BRANCH_PREFIX) and branch != self.staging.branch:
                if self._options.clean:
                    self.hub.delete_branch(branch)
                    progress.note(f"removed the staging branch {branch} of another run")
                else:
                    progress.warn(
                        f"another run left the staging branch {branch}; --clean removes it"
                    )

    def publish(self, shards: dict[str, WrittenShard]) -> Published:
        """The one commit, then the tag, then the staging branch goes."""
        options = self._options
        self.staging.check([s for s in shards.values() if not self._target.holds(s)])
        operations = self._target.operations(shards, self._small, self.staging)
        published = self._target.move(
            operations,
            message=options.commit_message or "Upload model with hubmerge",
            description=options.commit_description or "",
            record=Record(self.staging.fingerprint, shards, options.recorded or {}),
            create_pr=options.create_pr,
        )
        if options.tag is not None:
            self.hub.create_tag(options.tag, published.commit)
        self.staging.delete()
        return published


def _cap(plan: Plan, options: PushOptions) -> int:
    largest = max(shard.size_bytes for shard in plan.shards)
    if options.max_disk is None:
        return 2 * largest
    if options.max_disk < largest:
        raise UsageError(
            f"--max-disk {options.max_disk:,} is less than one shard, which has {largest:,} bytes",
            "Use a larger --max-disk or a smaller --shard-size.",
        )
    return options.max_disk


@contextmanager
def _staging_folder(folder: Path, cap_bytes: int, plan: Plan) -> Iterator[Path]:
    """The folder, with room for what is staged at a time, empty afterwards, locked meanwhile."""
    check_room(folder, min(cap_bytes, sum(shard.size_bytes for shard in plan.shards)))
    existed = folder.exists()
    with disk_errors(folder):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if folder.stat().st_uid != os.getuid():
            raise UnsafeInputError(f"{folder} belongs to another user", "Use --staging-dir.")
        lock = open(folder / _LOCK, "ab")  # noqa: SIM115 - held, as a lock
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UsageError(
                f"{folder}: another run stages its shards here",
                "Wait for it, or use another --staging-dir.",
            ) from None
        _remove_shards(folder, plan)
        try:
            yield folder
        finally:
            _remove_shards(folder, plan)
            (folder / _LOCK).unlink(missing_ok=True)
    if not existed:
        folder.rmdir()


def _remove_shards(folder: Path, plan: Plan) -> None:
    """What a run that was cut off left; every shard can be converted again."""
    for shard in plan.shards:
        (folder / shard.filename).unlink(missing_ok=True)
        (folder / (shard.filename + PARTIAL_SUFFIX)).unlink(missing_ok=True)


def _staging_path(options: PushOptions, fingerprint: str, needed_bytes: int, rank: int) -> Path:
    """Where to stage: what the user says, or a folder for temporary files on a disk with room.

    Its name is the same for a rerun, which removes what a run that was killed left there.
    """
    if options.staging_dir is not None:
        return options.staging_dir / f"rank-{rank}" if rank else options.staging_dir
    places = [Path(tempfile.gettempdir()), Path.cwd(), Path.home()]
    free_bytes = {place: shutil.disk_usage(place).free for place in places if place.is_dir()}
    for place, free in free_bytes.items():
        if free >= needed_bytes:
            return place / f"hubmerge-{os.getuid()}-{fingerprint[:16]}-{rank}"
    found = ", ".join(f"{place}: {free:,}" for place, free in free_bytes.items())
    raise NoRoomError(
        f"no disk has the {needed_bytes:,} bytes free that staging needs ({found})",
        "Use --staging-dir on a disk with room, a smaller --shard-size, or a lower --max-disk.",
    )
