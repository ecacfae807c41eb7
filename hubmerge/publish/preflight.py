"""Everything that can be known before a byte is converted; nothing is changed.

A push and its preview begin in the same way, so that a preview raises what the push would raise.
"""

from __future__ import annotations

from dataclasses import dataclass

from hubmerge.checkpoint.data_files import DataFiles
from hubmerge.conversion.slabs import open_data_files
from hubmerge.planning.card import CARD
from hubmerge.planning.fingerprint import fingerprint
from hubmerge.planning.publication import Publication
from hubmerge.publish.decide import Decision, Wanted, decide
from hubmerge.publish.hub import Hub
from hubmerge.publish.options import PushOptions
from hubmerge.publish.remote_state import RemoteState, read_state
from hubmerge.publish.secrets import check_no_secrets
from hubmerge.publish.staging_folder import (
    check_outside_checkpoint,
    staging_cap,
    staging_root,
)
from hubmerge.system.ranks import Ranks


@dataclass(frozen=True, slots=True)
class LocalState:
    """What a push needs on this machine.

    Attributes:
        files: the checkpoint's data files, all of them long enough.
        cap_bytes: the most that this process may stage at a time.
    """

    publication: Publication
    options: PushOptions
    files: DataFiles
    fingerprint: str
    cap_bytes: int

    def check_disk(self) -> None:
        """Raise InsufficientSpaceError or UsageError if the shards cannot be staged."""
        total_bytes = sum(shard.size_bytes for shard in self.publication.plan.shards)
        needed_bytes = min(self.cap_bytes, total_bytes)
        staging_root(self.options.staging_dir, needed_bytes, self.fingerprint)


def check_local(publication: Publication, options: PushOptions, ranks: Ranks) -> LocalState:
    """Check what can be checked without the Hub.

    Raises:
        DamagedFileError: a data file is missing or too short.
        UsageError: shards cannot be staged as the options say.
        UnsafeInputError: a text that would be public holds a secret.
    """
    plan = publication.plan
    files = open_data_files(plan)
    cap_bytes = staging_cap(plan, options.max_disk, ranks)
    check_outside_checkpoint(options.staging_dir, plan)
    check_no_secrets(publication.texts() | public_texts(options))
    return LocalState(publication, options, files, fingerprint(plan, files), cap_bytes)


def public_texts(options: PushOptions) -> dict[str, bytes]:
    """Return the options that anyone can read after the push."""
    return {
        "--commit-message": (options.commit_message or "").encode(),
        "--commit-description": (options.commit_description or "").encode(),
    }


def check_hub(hub: Hub, local: LocalState) -> tuple[RemoteState, Wanted, Decision]:
    """Read what the Hub holds, and decide what to do about it.

    Raises:
        AccessError: the token may not write to the repository.
        UsageError: the target cannot be what the options say, or the Hub refuses the card.
    """
    options = local.options
    state = read_state(hub, options.revision, local.fingerprint, create_pr=options.create_pr)
    small = local.publication.small_files(state.readme)
    check_no_secrets(small)
    hub.validate_card(small[CARD].decode())
    wanted = Wanted(local.publication.plan, small, options, local.fingerprint)
    return state, wanted, decide(state, wanted)
