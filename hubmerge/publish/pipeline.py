"""Convert, upload and delete, all at once.

The caller's thread converts shard after shard into the staging folder. A second thread takes each
finished one, uploads it, commits it to the staging branch, checks the Hub's listing, and deletes
the local copy, which makes room for the next. An error in either ends both.

Up to `_MOST_COMMITS` shards have a staging commit each. Of more, several share one, so that the
Hub's quota (about 128 commits an hour) is never met: each is uploaded, which frees its copy, and
the listing is checked at their commit; one that it lacks then is converted again.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING

from hubmerge.checkpoint.records import DataFiles
from hubmerge.plan import PlannedShard
from hubmerge.progress import Progress
from hubmerge.publish.hub import Hub
from hubmerge.publish.room import Aborted, Room
from hubmerge.publish.staging import Staging
from hubmerge.shard_writer import WrittenShard, write_shard

if TYPE_CHECKING:
    from huggingface_hub import CommitOperationAdd

_MOST_COMMITS = 60
_ATTEMPTS = 3


class Pipeline:
    """Brings shards from the checkpoint to the staging branch.

    Args:
        folder: where shards stand between conversion and upload.
        cap_bytes: what `folder` holds at most.
        total_shards: of the whole run, of which this pipeline may have only a share.
        check: called often; raises where the run must end for a reason elsewhere.
    """

    def __init__(
        self,
        *,
        files: DataFiles,
        hub: Hub,
        staging: Staging,
        folder: Path,
        cap_bytes: int,
        total_shards: int,
        progress: Progress,
        check: Callable[[], None],
    ) -> None:
        self._files, self._hub, self._staging = files, hub, staging
        self._folder, self._progress, self._check = folder, progress, check
        self._per_commit = ceil(total_shards / _MOST_COMMITS)
        self._room = Room(cap_bytes)
        self.uploaded_bytes = 0

    @property
    def peak_bytes(self) -> int:
        """The most that the staging folder held at one time."""
        return self._room.peak_bytes

    def run(self, shards: Iterable[PlannedShard]) -> dict[str, WrittenShard]:
        """Bring `shards` to the staging branch; returns when the Hub's listing shows them all."""
        wanted = {shard.filename: shard for shard in shards}
        done: dict[str, WrittenShard] = {}
        for attempt in range(_ATTEMPTS):
            written = self._pass([s for name, s in wanted.items() if name not in done])
            done |= self._staging.held(written) if written else {}
            if len(done) == len(wanted):
                return done
            if attempt == _ATTEMPTS - 1 or self._per_commit == 1:
                self._staging.check(written)  # raises, and says what is wrong
        return done

    def _pass(self, shards: list[PlannedShard]) -> list[WrittenShard]:
        finished: queue.Queue[WrittenShard | None] = queue.Queue()
        failures: list[BaseException] = []
        uploaded: list[WrittenShard] = []
        uploader = threading.Thread(
            target=self._upload_all, args=(finished, uploaded, failures), name="upload", daemon=True
        )
        uploader.start()
        try:
            for shard in shards:
                self._room.take(shard.size_bytes)
                finished.put(write_shard(shard, self._files, self._folder, self._on_bytes))
            finished.put(None)
            while uploader.is_alive():
                uploader.join(0.5)
                self._check()
        except Aborted:
            pass
        except BaseException:
            self._room.abort()
            finished.put(None)
            raise
        if failures:
            raise failures[0]
        return uploaded

    def _on_bytes(self, size_bytes: int) -> None:
        self._room.check()
        self._check()
        self._progress.converted(size_bytes)

    def _upload_all(
        self,
        finished: queue.Queue[WrittenShard | None],
        uploaded: list[WrittenShard],
        failures: list[BaseException],
    ) -> None:
        try:
            group: list[tuple[WrittenShard, CommitOperationAdd]] = []
            while (shard := finished.get()) is not None:
                self._room.check()
                group.append((shard, self._upload(shard)))
                if len(group) == self._per_commit:
                    self._commit(group, uploaded)
                    group = []
            if group:
                self._commit(group, uploaded)
        except Aborted:
            pass
        except BaseException as error:  # noqa: BLE001 - raised again in the caller's thread
            failures.append(error)
            self._room.abort()

    def _upload(self, shard: WrittenShard) -> CommitOperationAdd:
        from huggingface_hub import CommitOperationAdd

        operation = CommitOperationAdd(shard.filename, self._folder / shard.filename)
        # It was hashed while it was written: nobody needs to read it for that again.
        operation.upload_info.sha256 = bytes.fromhex(shard.sha256)
        self._hub.upload([operation], self._staging.branch)
        self.uploaded_bytes += shard.size
        if self._per_commit > 1:
            self._delete(shard)
        return operation

    def _commit(
        self,
        group: list[tuple[WrittenShard, CommitOperationAdd]],
        uploaded: list[WrittenShard],
    ) -> None:
        shards = [shard for shard, _ in group]
        self._staging.add(group)
        if self._per_commit == 1:
            self._staging.check(shards)
            self._delete(shards[0])
        uploaded.extend(shards)
        for shard in shards:
            self._progress.uploaded(shard.filename)

    def _delete(self, shard: WrittenShard) -> None:
        (self._folder / shard.filename).unlink()
        self._room.give_back(shard.size)
