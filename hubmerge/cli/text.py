"""Results as text for a person and as JSON for a program."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import singledispatch
from typing import Any

from hubmerge.conversion.to_folder import ConvertResult
from hubmerge.errors import printable
from hubmerge.formatting import format_list, human_bytes, plural
from hubmerge.planning.inspection import Inspection
from hubmerge.planning.preview import Preview
from hubmerge.publish.preview import PushPreview
from hubmerge.publish.push import PushResult
from hubmerge.verification import VerifyResult

# Lines of one kind, and characters of one line, that a person is shown; --json has them all.
_MAX_LINES = 20
_MAX_LINE = 500


def as_json(result: Any) -> str:
    """Return a result as one JSON object, whole; sizes are in bytes."""
    return json.dumps(as_dict(result), default=str)


@singledispatch
def as_dict(result: Any) -> dict[str, Any]:
    """Return what a result's JSON object holds."""
    return asdict(result)


@singledispatch
def as_text(result: Any) -> str:
    """Return a result for a person; long lists are cut."""
    raise NotImplementedError(type(result))


def as_line(result: Any) -> str:
    """Return the one thing that a script wants of a result: its url or path."""
    return str(getattr(result, "url", getattr(result, "save_dir", ""))) or as_text(result)


@as_text.register
def _(result: PushResult) -> str:
    if result.changed:
        lines = [f"✓ Pushed {plural(len(result.shards), 'file')} in {result.seconds:.1f} s"]
    else:
        lines = [f"✓ Nothing to do: {result.repo_id} already holds this model"]
    lines += [f"url: {result.url}", f"commit: {result.commit} on {result.revision}"]
    if result.changed:
        there = f" ({plural(result.resumed_shards, 'file')} already there)"
        uploaded = human_bytes(result.uploaded_bytes)
        lines.append(f"uploaded: {uploaded}{there * bool(result.resumed_shards)}")
        if result.removed:
            lines.append(f"removed: {format_list(result.removed)}")
        if result.readme != "written":
            lines.append(f"README.md: {result.readme}")
    if result.tag is not None:
        lines.append(f"tag: {result.tag}")
    return "\n".join(lines)


@as_text.register
def _(result: ConvertResult) -> str:
    return (
        f"✓ Converted {result.total_parameters:,} parameters into "
        f"{plural(len(result.shards), 'file')} in {result.seconds:.1f} s\npath: {result.save_dir}"
    )


@as_text.register
def _(result: VerifyResult) -> str:
    if result.differences:
        differ = "file differs" if len(result.differences) == 1 else "files differ"
        lines = [f"✗ {len(result.differences)} {differ} in {result.place}"]
    else:
        lines = [
            f"✓ Verified {plural(result.files, 'file')} in {result.seconds:.1f} s",
            f"place: {result.place}",
        ]
    if result.options is not None:
        lines.append(f"made with these options: {_options(result.options)}"[:_MAX_LINE])
    if result.unchecked:
        lines.append(f"not checked: {', '.join(result.unchecked)}"[:_MAX_LINE])
    for difference in result.differences:
        where = f", first in {difference.tensor!r}" if difference.tensor else ""
        lines.append(
            f"  {difference.file}{where}: expected {difference.expected}, found {difference.found}"
        )
    return "\n".join(lines)


def _options(recorded: Mapping[str, Any]) -> str:
    """Return recorded options in one line; a stranger may have written the record."""
    naming = recorded.get("naming")
    flat = {name: value for name, value in recorded.items() if name != "naming"}
    flat |= naming if isinstance(naming, Mapping) else {}
    pairs = (
        f"{name.replace('_', '-')} {format_list(list(map(str, values)))}"
        for name, value in flat.items()
        if (values := value if isinstance(value, list) else [value]) != [None]
    )
    return " ".join(printable("; ".join(pairs)).split())


@as_dict.register
def _(preview: Preview) -> dict[str, Any]:
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
        "peak_memory_bytes": preview.peak_memory_bytes,
        "peak_disk_bytes": preview.peak_disk_bytes,
        "push": asdict(preview.push) if isinstance(preview.push, PushPreview) else None,
    }


@as_text.register
def _(preview: Preview) -> str:
    plan, view = preview.plan, as_dict(preview)
    count = sum(len(shard.tensors) for shard in plan.shards)
    lines = [
        f"{plural(count, 'tensor')}, {plan.total_parameters:,} parameters, "
        f"{human_bytes(plan.total_size)} ({plan.layout})"
    ]
    files = [f"  {human_bytes(f['size']):>9}  {f['filename']}" for f in view["files"]]
    lines += _section("Files:", files)
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
        [f"  {plural(n, 'tensor')}, {human_bytes(s)}: {r}" for r, (n, s) in reasons.items()],
    )
    lines += _section("Notes:", [f"  {note}" for note in plan.notes])
    lines += _section("Warnings:", [f"  {warning}" for warning in preview.warnings])
    lines += [
        "",
        f"Peak memory: that of the libraries + {human_bytes(preview.peak_memory_bytes)}",
        f"Peak disk: {human_bytes(preview.peak_disk_bytes)}",
    ]
    if isinstance(preview.push, PushPreview):
        lines += ["", as_text(preview.push)]
    return "\n".join(lines)


@as_text.register
def _(push: PushPreview) -> str:
    visibility = "private" if push.is_private else "public"
    branch = "will be created" if push.creates_branch and push.exists else "exists"
    tag = f", tag {push.tag}" if push.tag is not None else ""
    lines = [
        f"Repository: {push.url} ({visibility}, {'exists' if push.exists else 'will be created'})",
        f"Token: {push.user or 'of a job, which may not say whose it is'}, may write",
        f"Branch: {push.revision} ({branch if push.exists else 'will be created'}){tag}",
    ]
    if push.create_pr:
        lines.append(f"Pull request: {push.pull_request or 'will be opened'}")
    if push.is_published:
        return "\n".join([*lines, "Nothing to do: it holds this model already"])
    if push.upload_bytes or push.staged:
        there = f" ({plural(len(push.staged), 'file')} already there)" * bool(push.staged)
        lines.append(f"Upload: {human_bytes(push.upload_bytes)}{there}")
    if push.readme != "written":
        lines.append(f"README.md: will be {push.readme}")
    for title, names in (
        ("Replaced", push.replaced), ("Removed", push.removed), ("Kept", push.kept)
    ):  # fmt: skip
        lines += [f"{title}: {format_list(names)}"] if names else []
    lines += _section("Warnings:", [f"  {warning}" for warning in push.warnings])
    return "\n".join(lines)


@as_dict.register
def _(pushes: list) -> dict[str, Any]:  # type: ignore[type-arg]
    return {"staged": [asdict(push) for push in pushes]}


@as_text.register
def _(pushes: list) -> str:  # type: ignore[type-arg]
    if not pushes:
        return "Nothing is staged"
    return "\n".join(
        f"{push.branch}  {plural(push.shards, 'shard')}, {human_bytes(push.bytes)}, "
        f"{push.updated:%Y-%m-%d %H:%M} UTC"
        if push.updated is not None
        else push.branch
        for push in pushes
    )


@as_text.register
def _(inspection: Inspection) -> str:
    lines = [
        f"{inspection.load_dir}",
        f"layout: {inspection.layout}",
        f"stored: {plural(inspection.files, 'file')} by {plural(inspection.ranks, 'rank')}, "
        f"{human_bytes(inspection.file_bytes)}, {inspection.format}",
        *(f"note: {note}" for note in inspection.notes),
        *(f"damaged: {problem}" for problem in inspection.damaged),
        "",
        f"{'top-level key':<24} {'tensors':>8} {'objects':>8} {'parameters':>18} {'bytes':>10}"
        "  dtypes",
    ]
    lines += [
        f"{g.key:<24} {g.tensors:>8,} {g.objects:>8,} {g.parameters:>18,} "
        f"{human_bytes(g.size_bytes):>10}  {', '.join(g.dtypes)}"
        for g in inspection.groups
    ]
    names = [f"  {name['key']} -> {name['name']}" for name in inspection.names]
    lines += _section("First names, and what they become:", names)
    largest = [
        f"{human_bytes(float(str(t['size_bytes']))):>10}  {t['dtype']} {t['shape']}  {t['key']}"
        for t in inspection.largest
    ]
    return "\n".join([*lines, *_section("Largest tensors:", largest)])


def _section(title: str, lines: Sequence[str]) -> list[str]:
    if not lines:
        return []
    more = len(lines) - _MAX_LINES
    cut = [f"  … and {more:,} more (see --json)"] if more > 0 else []
    return ["", title, *lines[:_MAX_LINES], *cut]
