"""Identify an output, so that a run can use what an earlier one has finished."""

from __future__ import annotations

import hashlib

from hubmerge.checkpoint.data_files import DataFiles
from hubmerge.planning.plan import Plan


def fingerprint(plan: Plan, files: DataFiles) -> str:
    """Return what identifies the output: a hash of the checkpoint, the names and the options.

    Reading all data would cost as much as converting it. The metadata is hashed whole, and nearly
    always it has the id of the save that wrote it; each data file contributes its size and a
    sample. Without such an id (`HuggingFaceStorageWriter`, torch before 2.3), two steps may differ
    in a single tensor: then the middle of each chunk is sampled too. A change that misses all
    samples (in place, or of single rows without an id) is found only by `hubmerge verify`.
    """
    digest = hashlib.sha256(plan.digest.encode())
    for name in sorted(plan.data_files):
        digest.update(files.sample(name))
    if not plan.checkpoint.has_save_id:
        chunks = {chunk for source in plan.sources.values() for chunk in source.chunks}
        for chunk in sorted(chunks, key=lambda chunk: (chunk.file, chunk.offset, chunk.length)):
            digest.update(files.sample_chunk(chunk))
    return digest.hexdigest()
