"""Plans and inspections as text for a person and as JSON for a program."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hubmerge.conversion.shard_writer import BUFFER_BYTES
from hubmerge.formatting import human_bytes
from hubmerge.planning.inspection import Inspection
from hubmerge.planning.plan import Plan, PlannedTensor

# Lines of one kind that a person is shown; --json has them all.
_MAX_LINES = 20


@dataclass(frozen=True, slots=True)
class Preview:
    """What a run would do.

    Attributes:
        sizes: of each file that would be written, in bytes, by its name.
        peak_disk_bytes: the most that would stand on this machine's disk at a time.
    """

    plan: Plan
    sizes: Mapping[str, int]
    warnings: tuple[str, ...]
    peak_disk_bytes: int


def plan_to_dict(preview: Preview) -> dict[str, Any]:
    """The plan with all sizes in bytes; `peak_*` are bounds, memory without the libraries'."""
    plan = preview.plan
    tensors = [t for shard in plan.shards for t in shard.tensors]
    return {
        "layout": plan.layout,
        "files": [{"filename": name, "size": size} for name, size in preview.sizes.items()],
        "total_size": plan.total_size,
        "total_parameters": plan.total_parameters,
        "renamed": [{"key": t.key, "name": t.name} for t in tensors if t.key != t.name],
        "cast": [
            {"name": t.name, "from": t.source_dtype.name, "to": t.dtype.name}
            for t in tensors
            if t.is_cast
        ],
        "dropped": [dropped._asdict() for dropped in plan.dropped],
        "notes": list(plan.notes),
        "warnings": list(preview.warnings),
        "peak_memory_bytes": BUFFER_BYTES,
        "peak_disk_bytes": preview.peak_disk_bytes,
    }


def plan_to_json(preview: Preview) -> str:
    """The plan as one JSON object, whole."""
    return json.dumps(plan_to_dict(preview))


def plan_to_text(preview: Preview) -> str:
    """The plan for a person; long lists are cut."""
    plan, view = preview.plan, plan_to_dict(preview)
    tensors: list[PlannedTensor] = [t for shard in plan.shards for t in shard.tensors]
    lines = [
        f"{len(tensors):,} tensors, {plan.total_parameters:,} parameters, "
        f"{human_bytes(plan.total_size)} ({plan.layout})",
        "",
        "Files:",
        *_cut([f"  {human_bytes(f['size']):>9}  {f['filename']}" for f in view["files"]]),
    ]
    renamed = [f"  {r['key']} -> {r['name']}" for r in view["renamed"]]
    lines += _section(f"Renamed ({len(renamed)}):", renamed)
    casts: dict[tuple[str, str], int] = {}
    for cast in view["cast"]:
        pair = cast["from"], cast["to"]
        casts[pair] = casts.get(pair, 0) + 1
    lines += _section("Cast:", [f"  {a} -> {b}: {n} tensors" for (a, b), n in casts.items()])
    reasons: dict[str, tuple[int, int]] = {}
    for dropped in plan.dropped:
        count, size = reasons.get(dropped.reason, (0, 0))
        reasons[dropped.reason] = count + 1, size + dropped.size_bytes
    lines += _section(
        f"Dropped ({len(plan.dropped)}):",
        [f"  {n} tensors, {human_bytes(size)}: {r}" for r, (n, size) in reasons.items()],
    )
    lines += _section("Notes:", [f"  {note}" for note in plan.notes])
    lines += _section("Warnings:", [f"  {warning}" for warning in view["warnings"]])
    lines += [
        "",
        f"Peak memory: that of the libraries + {human_bytes(view['peak_memory_bytes'])}",
        f"Peak disk: {human_bytes(view['peak_disk_bytes'])}",
    ]
    return "\n".join(lines)


def _section(title: str, lines: Sequence[str]) -> list[str]:
    return ["", title, *_cut(lines)] if lines else []


def _cut(lines: Sequence[str]) -> list[str]:
    if len(lines) <= _MAX_LINES:
        return list(lines)
    return [*lines[:_MAX_LINES], f"  … and {len(lines) - _MAX_LINES:,} more (see --json)"]


def inspection_to_text(inspection: Inspection) -> str:
    """The inspection for a person."""
    lines = [
        f"{inspection.load_dir}",
        f"layout: {inspection.layout}",
        f"stored: {inspection.files} files by {inspection.ranks} ranks, "
        f"{human_bytes(inspection.file_bytes)}, {inspection.format}",
        *(f"note: {note}" for note in inspection.notes),
        "",
        f"{'top-level key':<24} {'tensors':>8} {'objects':>8} {'parameters':>18} {'bytes':>10}"
        "  dtypes",
    ]
    lines += [
        f"{g.key:<24} {g.tensors:>8,} {g.objects:>8,} {g.parameters:>18,} "
        f"{human_bytes(g.size_bytes):>10}  {', '.join(g.dtypes)}"
        for g in inspection.groups
    ]
    if inspection.names:
        lines += ["", "first names, and what they become:"]
        lines += [f"  {name['key']} -> {name['name']}" for name in inspection.names]
    lines += ["", "largest tensors:"]
    for tensor in inspection.largest:
        size = human_bytes(float(str(tensor["size_bytes"])))
        lines.append(f"{size:>10}  {tensor['dtype']} {tensor['shape']}  {tensor['key']}")
    return "\n".join(lines)
