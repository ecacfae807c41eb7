"""The whole push: preflight, pipeline, one commit; `publish.staging_branch` has the order."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass
from functools import partial

from hubmerge.checkpoint.records import DataFiles
from hubmerge.conversion.shard_writer import WrittenShard
from hubmerge.conversion.slabs import open_data_files
from hubmerge.planning.fingerprint import fingerprint
from hubmerge.planning.plan import Plan, share_of
from hubmerge.planning.publication import Publication
from hubmerge.progress import Progress
from hubmerge.publish.decide import Job, Prepared, PushOptions
from hubmerge.publish.hub import quiet_hub
from hubmerge.publish.pipeline import Pipeline
from hubmerge.publish.staging_folder import (
    check_outside_checkpoint,
    remove_leftovers,
    staging_cap,
    staging_folder,
    staging_root,
)
from hubmerge.system.ranks import Ranks


@dataclass(frozen=True, slots=True)
class PushResult:
    """What a push did; sizes in bytes.

    Attributes:
        revision: the branch that has the commit, a pull request's where one was opened.
        peak_staging_bytes: the most that the staging folders held, summed over processes.
        changed: false where nothing had to be committed.
    """

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
    began = time.monotonic()
    plan = publication.plan
    for note in plan.notes:
        progress.note(note)
    files = open_data_files(plan)
    cap_bytes = staging_cap(plan, options.max_disk, ranks)
    check_outside_checkpoint(options.staging_dir, plan)
    job = Job(publication, options, fingerprint(plan, files))
    if options.staging_dir is None:
        remove_leftovers(job.staging.fingerprint, ranks)
    needed_bytes = min(cap_bytes, sum(shard.size_bytes for shard in plan.shards))
    check_disk = partial(staging_root, options.staging_dir, needed_bytes, job.staging.fingerprint)
    # Only rank 0 creates anything; the others then find it.
    prepared = ranks.on_rank_zero(lambda: job.prepare(progress, check_disk))
    shares = ranks.all_gather(
        _upload_share(
            plan=plan,
            options=options,
            job=job,
            prepared=prepared,
            files=files,
            progress=progress,
            ranks=ranks,
            cap_bytes=cap_bytes,
        )
    )
    shards = dict(prepared.held)
    for share in shares:
        shards |= share.shards
    ordered = {shard.filename: shards[shard.filename] for shard in plan.shards}
    published = ranks.on_rank_zero(lambda: job.publish(ordered, prepared.published))
    return PushResult(
        url=published.url,
        commit=published.commit,
        revision=published.revision,
        repo_id=options.repo_id,
        shards=tuple(ordered.values()),
        uploaded_bytes=sum(share.uploaded_bytes for share in shares),
        resumed_shards=len(prepared.held),
        peak_staging_bytes=sum(share.peak_bytes for share in shares),
        seconds=round(time.monotonic() - began, 3),
        changed=published.changed,
        warnings=publication.warnings,
    )


def _upload_share(
    *,
    plan: Plan,
    options: PushOptions,
    job: Job,
    prepared: Prepared,
    files: DataFiles,
    progress: Progress,
    ranks: Ranks,
    cap_bytes: int,
) -> _Share:
    """Bring this process's part of the missing shards to the staging branch."""
    missing = [shard for shard in plan.shards if shard.filename not in prepared.held]
    todo = share_of(missing, ranks.rank, ranks.count)
    total_bytes = sum(shard.size_bytes for shard in todo)
    progress.start(total_bytes, len(todo))
    # Entered also where nothing is left to do: what a run that was killed left there goes.
    needed_bytes = min(cap_bytes, total_bytes)
    place = staging_folder(options.staging_dir, needed_bytes, job.staging.fingerprint, ranks.rank)
    with place as folder:
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
        shards = pipeline.run(todo)
        return _Share(shards, pipeline.uploaded_bytes, pipeline.peak_bytes)
