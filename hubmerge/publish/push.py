"""The whole push: read, decide, act; `publish.staging_branch` has the order of what is done."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from hubmerge.conversion.shard_writer import WrittenShard
from hubmerge.errors import UsageError
from hubmerge.planning.plan import share_of
from hubmerge.planning.publication import Publication
from hubmerge.progress import Progress
from hubmerge.publish.decide import Decision, Wanted, changes_to
from hubmerge.publish.hub import Hub, quiet_hub
from hubmerge.publish.options import DEFAULT_BRANCH, PushOptions
from hubmerge.publish.pipeline import Pipeline
from hubmerge.publish.preflight import LocalState, check_hub, check_local
from hubmerge.publish.record import Record
from hubmerge.publish.remote import Change, NewCommit, PullRequest, RemoveFile
from hubmerge.publish.remote_state import RemoteBranch, read_branch
from hubmerge.publish.staging_branch import Staging, move_target
from hubmerge.publish.staging_folder import remove_leftovers, staging_folder, staging_note
from hubmerge.system.ranks import Ranks


@dataclass(frozen=True, slots=True)
class PushResult:
    """What a push did; sizes in bytes.

    Attributes:
        revision: the branch that has the commit, a pull request's if one was opened.
        peak_staging_bytes: the most that the staging folders held, summed over processes.
        changed: false if there was nothing to commit.
        created: whether the repository was created.
        removed: files of an older model that the commit removed.
        readme: ``written``, ``kept`` (a person's card) or ``extended`` (with missing metadata).
        tag: names the commit, if one was asked for.
        pull_request: url of the pull request that was opened, or was open already.
        seconds: of the whole call, planning included.
    """

    url: str
    commit: str
    revision: str
    repo_id: str
    shards: tuple[WrittenShard, ...]
    uploaded_bytes: int
    resumed_shards: int
    peak_staging_bytes: int
    changed: bool
    warnings: tuple[str, ...]
    created: bool = False
    removed: tuple[str, ...] = ()
    readme: str = "written"
    tag: str | None = None
    pull_request: str | None = None
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class _Prepared:
    """What rank 0 knows after preflight.

    Attributes:
        target: the branch to move; or that holds everything already, if `is_done`.
    """

    target: RemoteBranch
    wanted: Wanted
    is_done: bool
    created: bool
    readme: str
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Published:
    """How it ended; see `PushResult`."""

    url: str
    commit: str
    revision: str
    changed: bool
    created: bool
    removed: tuple[str, ...]
    readme: str
    tag: str | None
    pull_request: str | None
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Share:
    """What one process did."""

    shards: dict[str, WrittenShard]
    uploaded_bytes: int = 0
    peak_bytes: int = 0


@quiet_hub()
def push_plan(
    publication: Publication, options: PushOptions, progress: Progress, ranks: Ranks
) -> PushResult:
    """Publish the planned model.

    Raises:
        AccessError: the token may not do it; found before anything is converted.
        TargetChangedError: somebody else moved the target meanwhile.
        HubmergeError: any other of the tree. The target is then as it was, and the same command
            resumes.
    """
    publication.check_config()
    plan = publication.plan
    for note in plan.notes:
        progress.note(note)
    local = check_local(publication, options, ranks)
    if options.staging_dir is None:
        remove_leftovers(local.fingerprint, ranks)
    push = _Push(local, progress)
    # Only rank 0 creates anything; the others then find it.
    uploaded = ranks.on_rank_zero(push.prepare)
    shares = ranks.all_gather(push.upload_share(uploaded, ranks))
    shards = dict(uploaded)
    for share in shares:
        shards |= share.shards
    ordered = {shard.filename: shards[shard.filename] for shard in plan.shards}
    published = ranks.on_rank_zero(lambda: push.publish(ordered))
    return PushResult(
        **asdict(published),
        repo_id=options.repo_id,
        shards=tuple(ordered.values()),
        uploaded_bytes=sum(share.uploaded_bytes for share in shares),
        resumed_shards=len(uploaded),
        peak_staging_bytes=sum(share.peak_bytes for share in shares),
    )


class _Push:
    """The steps of one push, in their order; rank 0 alone prepares and publishes."""

    _prepared: _Prepared

    def __init__(self, local: LocalState, progress: Progress) -> None:
        self._local, self._progress = local, progress
        self._publication, self._options = local.publication, local.options
        self._hub = Hub(self._options.repo_id, self._options.token, progress.note)
        self._staging = Staging(self._hub, local.fingerprint)

    def prepare(self) -> Mapping[str, WrittenShard]:
        """Try everything that can fail before a byte is converted; change things last.

        Returns:
            The shards that need neither conversion nor upload, by name.
        """
        state, wanted, decision = check_hub(self._hub, self._local)
        self._say(decision)
        if self._options.clean:
            self._remove_branches(decision.other_staging)
        target = decision.published_on
        if target is None:
            if state.staged is None:  # else less may be needed, as will be seen
                self._local.check_disk()
            target = self._create_target(decision) if decision.creates_branch else state.base
            assert target is not None
            if state.staged is None:
                self._staging.create(target.head)
            self._staging.add_files(wanted.small)
            for name in decision.already_uploaded:
                self._progress.note(f"{name} is already on the Hub")
        self._prepared = _Prepared(
            target,
            wanted,
            is_done=decision.published_on is not None,
            created=decision.creates_repository,
            readme=self._publication.what_becomes_of(state.readme),
            warnings=decision.warnings,
        )
        return decision.already_uploaded

    def _say(self, decision: Decision) -> None:
        for note in decision.notes:
            self._progress.note(note)
        for warning in decision.warnings:
            self._progress.warn(warning)

    def _remove_branches(self, branches: tuple[str, ...]) -> None:
        for branch in branches:
            self._hub.delete_branch(branch)
            self._progress.note(f"removed the staging branch {branch} of another run")

    def _create_target(self, decision: Decision) -> RemoteBranch:
        """Create the repository and the branch, whichever is missing."""
        hub, revision = self._hub, self._options.revision
        if decision.creates_repository:
            hub.create_repo(private=self._options.private)
            self._progress.note(f"created {hub.url}")
        head = hub.head(revision)
        if head is None:
            hub.create_branch(revision, DEFAULT_BRANCH)
            head = hub.head(revision)
        if head is None:
            raise UsageError(
                f"{hub.repo_id}: branch {revision!r} does not exist and cannot be created"
            )
        return read_branch(hub, revision, head)

    def upload_share(
        self,
        already_uploaded: Mapping[str, WrittenShard],
        ranks: Ranks,
    ) -> _Share:
        """Bring this process's share of the missing shards to the staging branch."""
        local, shards = self._local, self._publication.plan.shards
        missing = [s for s in shards if s.filename not in already_uploaded]
        todo = share_of(missing, ranks.rank, ranks.count)
        total_bytes = sum(shard.size_bytes for shard in todo)
        self._progress.start(total_bytes, len(todo))
        # Entered even if nothing is left to do: what a killed run left there is removed.
        place = staging_folder(
            self._options.staging_dir,
            min(local.cap_bytes, total_bytes),
            local.fingerprint,
            ranks.rank,
        )
        with place as folder:
            if todo:
                self._progress.note(staging_note(folder.parent, self._options.staging_dir))
            pipeline = Pipeline(
                files=local.files,
                staging=self._staging,
                folder=folder,
                cap_bytes=local.cap_bytes,
                total_shards=len(shards),
                progress=self._progress,
                check=ranks.check,
            )
            written = pipeline.run(todo)
            return _Share(written, pipeline.uploaded_bytes, pipeline.peak_bytes)

    def publish(self, shards: Mapping[str, WrittenShard]) -> _Published:
        """Make the one commit, then the tag, then remove the staging branch."""
        prepared, target, tag = self._prepared, self._prepared.target, self._options.tag
        changes: list[Change] = []
        if not prepared.is_done:
            self._staging.check([s for s in shards.values() if not target.holds(s)])
            changes = changes_to(target, shards, prepared.wanted)
        made = self._commit(shards, changes) if changes else NewCommit(target.head)
        pull = made.pull_request
        if pull is None and target.revision.startswith("refs/"):
            pull = PullRequest(target.url, target.revision)
        if tag is not None:
            self._hub.create_tag(tag, made.sha)
        self._staging.delete()
        return _Published(
            url=pull.url if pull is not None else target.url,
            commit=made.sha,
            revision=pull.revision if pull is not None else target.revision,
            changed=bool(changes),
            created=prepared.created,
            removed=tuple(change.path for change in changes if isinstance(change, RemoveFile)),
            readme=prepared.readme,
            tag=tag,
            pull_request=pull.url if pull is not None else None,
            warnings=self._publication.warnings + prepared.warnings,
        )

    def _commit(self, shards: Mapping[str, WrittenShard], changes: Sequence[Change]) -> NewCommit:
        options, prepared = self._options, self._prepared
        small = prepared.wanted.small
        return move_target(
            self._hub,
            changes,
            revision=options.revision,
            head=prepared.target.head,
            message=options.commit_message or "Upload model with hubmerge",
            description=options.commit_description or "",
            record=Record.of_model(self._local.fingerprint, shards, self._publication, small),
            create_pr=options.create_pr,
        )
