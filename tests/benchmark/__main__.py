"""Measure hubmerge beside the old script, torch's own converter and plain I/O.

    python -m tests.benchmark [--size-gb 4.5] [--dir DIR] [--double] [--rounds N]

Everything runs in fresh processes, one after the other, from a warm page cache. Needs about
twice the size on disk (four times for torch's converter) and prints a markdown report.
"""

from __future__ import annotations

import argparse
import hashlib
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from tests.benchmark.measure import Measured, Task, best_of, measure, remove, warm
from tests.benchmark.push import (
    PUSH_SHARD_SIZE,
    convert_alone,
    limited_hub,
    push_sampled,
    upload_alone,
)

MB = 1_000_000
GB = 1_000_000_000
OWN = ["-m", "hubmerge"]
BASELINE = ["-m", "tests.benchmark.baselines"]
CHECKPOINTS = ["-m", "tests.benchmark.checkpoints"]
SIZES = ("2GB", "200MB", "5GB")
PARTS = ("read", "write", "sync")


def planning_command(load_dir: Path) -> list[str]:
    """How hubmerge plans a checkpoint whose data files are not there: the one place to adapt."""
    return [*OWN, "push", "--load-dir", str(load_dir), "--no-push", "--dry-run", "--json"]


def convert_command(load_dir: Path, save_dir: Path, shard_size: str = "2GB") -> list[str]:
    """A whole conversion to bfloat16."""
    return [*OWN, "push", "--load-dir", str(load_dir), "--no-push", "--save-dir", str(save_dir),
            "--shard-size", shard_size, "--json"]  # fmt: skip


@dataclass
class Report:
    """Rows of measurements, and the promises that they keep or break."""

    rows: list[str] = field(default_factory=list)
    promises: list[str] = field(default_factory=list)

    def add(self, what: str, run: Measured, inside_seconds: float | None = None) -> None:
        """One measured command."""
        inside = "" if inside_seconds is None else f"{inside_seconds:.2f}"
        peak = f"{run.peak_bytes / MB:,.0f}"
        wall = f"{run.wall_seconds:.2f}"
        if run.slowest_seconds > run.wall_seconds:
            wall += f" to {run.slowest_seconds:.2f}"
        self.rows.append(f"| {what} | {wall} | {inside} | {run.cpu_seconds:.2f} | {peak} |")
        print(self.rows[-1], flush=True)

    def promise(self, what: str, value: float, limit: float, unit: str) -> None:
        """One figure and the most that it may be."""
        verdict = "kept" if value <= limit else "BROKEN"
        self.promises.append(f"| {what} | {value:.2f} {unit} | {limit:.4g} {unit} | {verdict} |")

    def markdown(self) -> str:
        """Both tables."""
        runs = [
            "| | wall s | inside s | CPU s | peak RSS MB |",
            "|---|---|---|---|---|",
            *self.rows,
        ]
        head = ["", "| promise | measured | at most | |", "|---|---|---|---|"]
        return "\n".join([*runs, *head, *self.promises])


def build(folder: Path, what: str, *arguments: str) -> Path:
    """The checkpoint or config in this folder, written now unless a finished one is there."""
    if not any((folder / written_last).exists() for written_last in (".metadata", "config.json")):
        written = measure([*CHECKPOINTS, what, str(folder), *arguments])
        print(f"wrote {folder.name} in {written.wall_seconds:.0f} s", flush=True)
    return folder


def checksums(folder: Path) -> dict[str, str]:
    """sha256 of each safetensors file."""
    return {path.name: _sha256(path) for path in folder.glob("*.safetensors")}


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def measure_conversions(report: Report, source: Path, output: Path, rounds: int) -> None:
    """Rows (a) to (d) and `import torch`, side by side, and what they promise."""
    output_bytes = sum(path.stat().st_size for path in source.glob("*.distcp")) // 2
    folders = [str(source), str(output)]
    commands = {
        "import torch": [*BASELINE, "import_torch"],
        "(d) floor": [*BASELINE, "floor", *folders, str(output_bytes)],
        "(c) dcp_to_torch_save": [*BASELINE, "torch_save", *folders],
        "(b) old algorithm, 2GB shards": [*BASELINE, "old", *folders],
        **{f"(a) hubmerge, {size} shards": convert_command(source, output, size) for size in SIZES},
    }
    tasks = {what: Task(command, source, output) for what, command in commands.items()}
    runs = best_of(rounds, tasks)
    for what, run in runs.items():
        report.add(what, run, run.report()["seconds"])
    own, old, floor = (runs[what] for what in (
        "(a) hubmerge, 2GB shards", "(b) old algorithm, 2GB shards", "(d) floor"))  # fmt: skip
    parts = ", ".join(f"{part} {floor.report()[f'{part}_seconds']:.2f}" for part in PARTS)
    report.rows.append(f"| (d)'s parts in s: {parts} | | | | |")
    report.promise("wall (a) / wall (b)", own.wall_seconds / old.wall_seconds, 0.25, "x")
    ratio = own.report()["seconds"] / floor.report()["seconds"]
    report.promise("conversion (a) / floor (d)", ratio, 1.5, "x")
    for size in SIZES:
        promise_peak(report, f"{size} shards", runs[f"(a) hubmerge, {size} shards"], runs)


def promise_peak(report: Report, what: str, run: Measured, runs: dict[str, Measured]) -> None:
    """How much more memory a conversion needs than its libraries."""
    over_bytes = run.peak_bytes - runs["import torch"].peak_bytes
    report.promise(f"peak over `import torch`, {what}", over_bytes / MB, 128, "MB")


def measure_with_config(
    report: Report, source: Path, output: Path, assets: Path, rounds: int
) -> None:
    """Row (a) with a config: transformers checks the names first."""
    command = [*convert_command(source, output), "--model-assets-dir", str(assets)]
    tasks = {
        "import transformers": Task([*BASELINE, "import_transformers"]),
        "(a) hubmerge, with a config": Task(command, source, output),
    }
    runs = best_of(rounds, tasks)
    for what, run in runs.items():
        report.add(what, run, run.report()["seconds"])
    libraries, own = runs.values()
    over_bytes = own.peak_bytes - libraries.peak_bytes
    report.promise("peak over `import transformers`, with a config", over_bytes / MB, 128, "MB")


def measure_double(report: Report, double: Path, output: Path, rounds: int) -> None:
    """Row (a) at twice the checkpoint."""
    tasks = {
        "import torch": Task([*BASELINE, "import_torch"]),
        "twice the checkpoint": Task(convert_command(double, output), double, output),
    }
    runs = best_of(rounds, tasks)
    run = runs["twice the checkpoint"]
    report.add("(a) hubmerge, twice the checkpoint", run, run.report()["seconds"])
    promise_peak(report, "twice the checkpoint", run, runs)


def compare_outputs(report: Report, source: Path, output: Path) -> None:
    """Shards of (a) must be (b)'s, byte for byte."""
    other = output.with_name("output-of-old")
    for folder in (output, other):
        remove(folder)
    own = measure(convert_command(source, output)).report()
    measure([*BASELINE, "old", str(source), str(other)])
    equal = {shard["filename"]: shard["sha256"] for shard in own["shards"]} == checksums(other)
    equal = equal and checksums(output) == checksums(other)
    report.promises.append(
        f"| shards of (a) and (b) | {'equal' if equal else 'DIFFERENT'} | equal | |"
    )
    for folder in (output, other):
        remove(folder)


def measure_start(report: Report, source: Path, rounds: int) -> None:
    """The commands that must feel instant."""
    limits = {"hubmerge --help": 0.3, "hubmerge inspect": 1.0}
    tasks = {
        "python -c pass": Task(["-c", "pass"]),
        "hubmerge --help": Task([*OWN, "--help"]),
        "hubmerge inspect": Task([*OWN, "inspect", "--load-dir", str(source)]),
    }
    for what, run in best_of(max(rounds, 3), tasks).items():
        report.add(what, run)
        if what in limits:
            report.promise(what, run.wall_seconds, limits[what], "s")


def measure_planning(report: Report, huge: Path, rounds: int) -> None:
    """Planning 671B from metadata alone, beside a bare `pickle.load` of it."""
    tasks = {
        "pickle.load": Task([*BASELINE, "unpickle", str(huge)], huge),
        "plan": Task(planning_command(huge), huge),
    }
    runs = best_of(rounds, tasks)
    load, plan = runs["pickle.load"], runs["plan"]
    load_seconds = load.report()["seconds"]
    size_mb = (huge / ".metadata").stat().st_size / MB
    what = f"671B metadata ({size_mb:.0f} MB, {load.report()['pieces']:,} pieces)"
    report.add(f"{what}: pickle.load", load, load_seconds)
    report.add(f"{what}: hubmerge plans", plan)
    report.promise("planning / pickle.load", plan.wall_seconds / load_seconds, 3, "x")
    report.promise("planning peak", plan.peak_bytes / GB, 4, "GB")


def measure_push(report: Report, source: Path, output: Path, scratch: Path) -> None:
    """A push to a Hub that takes as long as converting does, beside its two halves alone."""
    remove(output)
    warm(source)
    converted = convert_alone(source, output)
    with limited_hub(scratch, converted.bytes_per_second) as env:
        upload = upload_alone(output, env)
        remove(output)
        pushed, most_bytes = push_sampled(source, scratch / "staging", env)
    report.add(f"converting alone, {PUSH_SHARD_SIZE} shards", converted.run, converted.seconds)
    report.add("uploading alone, as slow as converting", upload)
    report.add("hubmerge push", pushed)
    longer_seconds = max(converted.run.wall_seconds, upload.wall_seconds)
    limit_seconds = 1.15 * longer_seconds + converted.seconds / converted.shards
    report.promise("push, by the longer half", pushed.wall_seconds, limit_seconds, "s")
    report.promise("staging folder at most", most_bytes / MB, converted.cap_bytes / MB, "MB")
    over_bytes = pushed.peak_bytes - converted.run.peak_bytes
    report.promise("peak of push over convert", over_bytes / MB, 400, "MB")


def run_all(options: argparse.Namespace, folder: Path) -> Report:
    """Build what is missing, then measure everything."""
    report = Report()
    rounds, output = options.rounds, folder / "output"
    source = build(folder / f"weights-{options.size_gb:g}", "weights", str(options.size_gb))
    assets = build(folder / f"config-{options.size_gb:g}", "config", str(options.size_gb))
    measure_start(report, source, rounds)
    measure_conversions(report, source, output, rounds)
    measure_with_config(report, source, output, assets, rounds)
    compare_outputs(report, source, output)
    measure_push(report, source, output, folder)
    if options.double:
        size = f"{2 * options.size_gb:g}"
        measure_double(report, build(folder / f"weights-{size}", "weights", size), output, rounds)
    measure_planning(report, build(folder / "metadata-671b", "metadata"), rounds)
    return report


def main() -> None:
    """Parse the command line, measure, print."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmark", description=__doc__)
    parser.add_argument("--size-gb", type=float, default=4.5, help="fp32 weights, in 10^9 bytes")
    parser.add_argument("--dir", type=Path, help="keep (and reuse) the checkpoints here")
    parser.add_argument("--double", action="store_true", help="also twice the checkpoint")
    parser.add_argument("--rounds", type=int, default=1, help="runs of each; the fastest counts")
    options = parser.parse_args()
    if options.dir:
        options.dir.mkdir(parents=True, exist_ok=True)
        print(run_all(options, options.dir).markdown())
        return
    with tempfile.TemporaryDirectory(prefix="hubmerge-benchmark-") as scratch:
        print(run_all(options, Path(scratch)).markdown())


if __name__ == "__main__":
    main()
