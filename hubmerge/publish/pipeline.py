"""Convert, upload and delete shards concurrently.

The caller's thread converts one shard after another into the staging folder. A second thread
uploads each finished one, commits it to the staging branch, checks the Hub's listing, and deletes
the local copy, which makes space for the next. An error in either thread ends both.

Up to `_MAX_COMMITS` shards have a staging commit each. If there are more, several share one, to
stay below the Hub's quota (about 128 commits an hour): each is deleted once it is uploaded, and
the listing is checked at their commit; one that the Hub lacks then is converted again.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from math import ceil
from pathlib import Path

from hubmerge.checkpoint.data_files import DataFiles
from hubmerge.conversion.shard_writer import WrittenShard, write_shard
from hubmerge.errors import BlobMissingError
from hubmerge.planning.plan import PlannedShard
from hubmerge.progress import Progress
from hubmerge.publish.byte_budget import Aborted, ByteBudget
from hubmerge.publish.remote import AddFile, UploadedFile
from hubmerge.publish.staging_branch import Staging, not_listed
from hubmerge.system.linux_files import read_position

_MAX_COMMITS = 60
_ATTEMPTS = 3
_WATCH_EVERY_SECONDS = 0.3


class Pipeline:
    """Brings shards from the checkpoint to the staging branch.

    Args:
        folder: holds shards between conversion and upload.
        cap_bytes: the most that `folder` may hold.
        total_shards: of the whole run, of which this pipeline may have only a share.
        check: called often; raises if the run must end because another rank has failed.
    """

    def __init__(
        self,
        *,
        files: DataFiles,
        staging: Staging,
        folder: Path,
        cap_bytes: int,
        total_shards: int,
        progress: Progress,
        check: Callable[[], None],
    ) -> None:
        self._files, self._staging = files, staging
        self._folder, self._progress, self._check = folder, progress, check
        self._per_commit = ceil(total_shards / _MAX_COMMITS)
        self._budget = ByteBudget(cap_bytes)
        self._staged: dict[str, WrittenShard] = {}
        self._loss: BlobMissingError | None = None
        self.uploaded_bytes = 0

    @property
    def peak_bytes(self) -> int:
        """The most that the staging folder held at one time."""
        return self._budget.peak_bytes

    def run(self, shards: Iterable[PlannedShard]) -> dict[str, WrittenShard]:
        """Bring `shards` to the staging branch; return when the Hub's listing shows them all."""
        todo = list(shards)
        for attempt in range(_ATTEMPTS):
            self._pass(todo)
            todo = [shard for shard in todo if shard.filename not in self._staged]
            if not todo:
                break
            if attempt == _ATTEMPTS - 1:
                names = ", ".join(shard.filename for shard in todo)
                raise self._loss or not_listed(names, self._staging.branch)
        return self._staged

    def _pass(self, shards: list[PlannedShard]) -> None:
        finished: queue.Queue[WrittenShard | None] = queue.Queue()
        failures: list[BaseException] = []
        uploader = threading.Thread(
            target=self._upload_all, args=(finished, failures), name="upload", daemon=True
        )
        uploader.start()
        try:
            for shard in shards:
                self._budget.acquire(shard.size_bytes, self._check, self._progress.waiting)
                written = write_shard(
                    shard, self._files, self._folder, self._on_bytes, keep_in_page_cache=True
                )
                finished.put(written)
            finished.put(None)
            self._wait_for(uploader, self._check)
        except Aborted:
            uploader.join()
        except BaseException as error:
            self._budget.abort()
            finished.put(None)
            if isinstance(error, Exception):
                # The upload in flight may end. An interrupt does not wait for it, nor does a rank
                # that stops because another has failed and waits for it to be reported.
                self._wait_for(uploader, self._check)
            raise
        if failures:
            raise failures[0]

    @staticmethod
    def _wait_for(uploader: threading.Thread, check: Callable[[], None]) -> None:
        while uploader.is_alive():
            uploader.join(0.2)
            check()

    def _on_bytes(self, size_bytes: int) -> None:
        self._budget.check()
        self._check()
        self._progress.converted(size_bytes)

    def _upload_all(
        self, finished: queue.Queue[WrittenShard | None], failures: list[BaseException]
    ) -> None:
        try:
            group: list[tuple[WrittenShard, UploadedFile]] = []
            while (shard := finished.get()) is not None:
                self._budget.check()
                group.append((shard, self._upload(shard)))
                if len(group) == self._per_commit:
                    self._commit(group)
                    group = []
            if group:
                self._commit(group)
        except Aborted:
            pass
        except BaseException as error:  # noqa: BLE001 - raised again in the caller's thread
            failures.append(error)
            self._budget.abort()

    def _upload(self, shard: WrittenShard) -> UploadedFile:
        path = self._folder / shard.filename
        with _watched(path, shard.size, self._progress.uploaded_bytes):
            uploaded = self._staging.upload(AddFile(shard.filename, path, shard.sha256))
        self.uploaded_bytes += shard.size
        if self._per_commit > 1:
            self._delete(shard)
        return uploaded

    def _commit(self, group: list[tuple[WrittenShard, UploadedFile]]) -> None:
        shards = [shard for shard, _ in group]
        if self._per_commit == 1:
            self._staging.add(group)
            self._staging.check(shards)
            self._delete(shards[0])
        else:
            shards = self._commit_deleted(group)
        for shard in shards:
            self._staged[shard.filename] = shard
            self._progress.uploaded(shard.filename)

    def _commit_deleted(self, group: list[tuple[WrittenShard, UploadedFile]]) -> list[WrittenShard]:
        """Commit shards that are deleted here; return those that the Hub still had."""
        shards = [shard for shard, _ in group]
        try:
            self._staging.add(group)
        except BlobMissingError as error:
            self._loss = error
            return []  # it refuses the whole commit, and does not say which content is missing
        lacking = self._staging.lacking(shards)
        return [shard for shard in shards if shard not in lacking]

    def _delete(self, shard: WrittenShard) -> None:
        (self._folder / shard.filename).unlink()
        self._budget.release(shard.size)


@contextmanager
def _watched(path: Path, size: int, report: Callable[[int], None]) -> Iterator[None]:
    """Report how far an upload has read its file; all the rest when it is complete.

    Neither huggingface_hub nor hf_xet tells a caller how many bytes it has sent.
    """
    reported, is_over = 0, threading.Event()

    def watch() -> None:
        nonlocal reported
        while not is_over.wait(_WATCH_EVERY_SECONDS):
            position = min(read_position(path), size)
            if position > reported:
                report(position - reported)
                reported = position

    watcher = threading.Thread(target=watch, name="watch", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        is_over.set()
        watcher.join()
    report(size - reported)
