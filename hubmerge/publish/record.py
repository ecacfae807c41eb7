"""What a commit records about itself, as a comment in its description.

The next push reads which shards the commit holds, and `verify` how they were made. Anyone with
write access to the repository can forge a record: a shard in it counts only if the Hub's own
listing agrees, and every value is checked to be of its type.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from hubmerge.conversion.folder_record import recorded_options
from hubmerge.conversion.shard_writer import WrittenShard
from hubmerge.planning.publication import Publication
from hubmerge.publish.remote import RemoteCommit

_COMMENT = re.compile(r"<!-- hubmerge (\{.*\}) -->")


@dataclass(frozen=True, slots=True)
class Record:
    """One commit's record.

    Attributes:
        shards: those that the commit adds, or the whole model's if it moves a target.
        options: how the plan was made, and what the small files are; empty on a staging branch.
        run: distinguishes this run's commit from any other's, should its response be lost.
    """

    fingerprint: str
    shards: Mapping[str, WrittenShard]
    options: Mapping[str, Any] = field(default_factory=dict)
    run: str = field(default_factory=lambda: secrets.token_hex(8))

    @classmethod
    def of_model(
        cls,
        fingerprint: str,
        shards: Mapping[str, WrittenShard],
        publication: Publication,
        small: Mapping[str, bytes],
    ) -> Record:
        """Return the record of the commit that publishes a model."""
        return cls(fingerprint, shards, recorded_options(publication, small))

    @classmethod
    def parse(cls, text: str) -> Record | None:
        """Return the record in a commit's text; None if there is none, or it is malformed."""
        match = _COMMENT.search(text)
        if not match:
            return None
        try:
            entry = json.loads(match[1])
            fingerprint, options = entry["fingerprint"], entry["options"]
            shards = [(name, size, sha256) for name, size, sha256 in entry["shards"]]
        except (ValueError, KeyError, TypeError, RecursionError):
            return None
        is_sound = type(fingerprint) is str and type(options) is dict
        if not is_sound or any(tuple(map(type, shard)) != (str, int, str) for shard in shards):
            return None
        return cls(fingerprint, {shard[0]: WrittenShard(*shard) for shard in shards}, options)

    def to_text(self) -> str:
        """Return the comment."""
        entry = {
            "run": self.run,
            "fingerprint": self.fingerprint,
            "shards": [[s.filename, s.size, s.sha256] for s in self.shards.values()],
            "options": self.options,
        }
        return f"<!-- hubmerge {json.dumps(entry, separators=(',', ':'))} -->"

    def is_in(self, commit: RemoteCommit) -> bool:
        """Return whether it is this very run that made the commit."""
        return self.to_text() in commit.description


def records_of(commits: Iterable[RemoteCommit]) -> Iterable[Record]:
    """Yield the records of these commits, in their order."""
    for commit in commits:
        record = Record.parse(f"{commit.title}\n{commit.description}")
        if record is not None:
            yield record
