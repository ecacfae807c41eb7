"""What names an output: equal for two runs only if they would write the same files."""

from __future__ import annotations

import hashlib

from hubmerge.checkpoint.records import DataFiles
from hubmerge.plan import Plan


def fingerprint(plan: Plan, files: DataFiles) -> str:
    """Names the output: equal for two runs only if checkpoint, names and options are equal.

    The metadata is hashed whole; of the data files their size and a sparse sample, since a
    checkpoint is never changed in place and reading it all would cost as much as converting it.
    """
    digest = hashlib.sha256(plan.digest.encode())
    for name in sorted(plan.data_files):
        digest.update(files.sample(name))
    return digest.hexdigest()
