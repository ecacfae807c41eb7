"""Measure hubmerge beside the old script, torch's own converter and plain I/O.

    python -m tests.benchmark [--size-gb 4.5] [--dir DIR] [--double] [--rounds N]

Everything runs in fresh processes, one after the other, from a warm page cache. Needs about
twice the size on disk (four times for torch's converter) and prints a markdown report.
"""

from __future__ import annotations

import argparse
import hashlib
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from tests.benchmark.measure import CommandFailedError, Measured, best_of, measure, remove, warm

MB = 1_000_000
GB = 1_000_000_000
OWN = ["-m", "hubmerge"]
BASELINE = ["-m", "tests.benchmark.baselines"]
CHECKPOINTS = ["-m", "tests.benchmark.checkpoints"]


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
        self.rows.append(f"| {what} | {wall} | {inside} | {peak} |")
        print(self.rows[-1], flush=True)

    def promise(self, what: str, value: float, limit: float, unit: str) -> None:
        """One figure and the most that it may be."""
        verdict = "kept" if value <= limit else "BROKEN"
        self.promises.append(f"| {what} | {value:.2f} {unit} | {limit:g} {unit} | {verdict} |")

    def skipped(self, what: str, why: Exception) -> None:
        """A command that failed: the others still count."""
        self.promises.append(f"| {what} | not measured | | {str(why).strip().splitlines()[-1]} |")

    def markdown(self) -> str:
        """Both tables."""
        return "\n".join([
            "| | wall s | inside s | peak RSS MB |", "|---|---|---|---|", *self.rows, "",
            "| promise | measured | at most | |", "|---|---|---|---|", *self.promises,
        ])  # fmt: skip


def build(folder: Path, what: str, *arguments: str) -> Path:
    """The checkpoint in this folder, written now unless a finished one is there."""
    if not (folder / ".metadata").exists():
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


def measure_baselines(
    report: Report, source: Path, output: Path, rounds: int
) -> dict[str, Measured]:
    """Rows (b), (c), (d) and `import torch`; (b)'s last output stays for a comparison."""
    weight_bytes = sum(path.stat().st_size for path in source.glob("*.distcp"))
    commands = {
        "import torch": [*BASELINE, "import_torch"],
        "(d) floor": [*BASELINE, "floor", str(source), str(output), str(weight_bytes // 2)],
        "(c) dcp_to_torch_save": [*BASELINE, "torch_save", str(source), str(output)],
        "(b) old algorithm, 2 GB shards": [*BASELINE, "old", str(source), str(output)],
    }
    runs = {}
    for what, command in commands.items():
        runs[what] = best_of(rounds, command, output)
        report.add(what, runs[what], runs[what].report()["seconds"])
    floor = runs["(d) floor"].report()
    parts = ", ".join(
        f"{part} {floor[part + '_seconds']:.2f}" for part in ("read", "write", "sync")
    )
    report.rows.append(f"| (d)'s parts in s: {parts} | | | |")
    return runs


def measure_own(
    report: Report, source: Path, double: Path | None, output: Path, rounds: int,
    baselines: dict[str, Measured],
) -> None:  # fmt: skip
    """Rows (a), and what they promise against the baselines."""
    old, floor = baselines["(b) old algorithm, 2 GB shards"], baselines["(d) floor"]
    torch_bytes = baselines["import torch"].peak_bytes
    cases = {f"{size} shards": (source, size) for size in ("2GB", "200MB", "5GB")}
    if double:
        cases["2GB shards, twice the checkpoint"] = (double, "2GB")
    for what, (folder, shard_size) in cases.items():
        warm(folder)
        run = best_of(rounds, convert_command(folder, output, shard_size), output)
        report.add(f"(a) hubmerge, {what}", run, run.report()["seconds"])
        over = (run.peak_bytes - torch_bytes) / MB
        report.promise(f"peak over `import torch`, {what}", over, 128, "MB")
        if what == "2GB shards":
            ratio = run.wall_seconds / old.wall_seconds
            report.promise("wall (a) / wall (b)", ratio, 0.25, "x")
            ratio = run.report()["seconds"] / floor.report()["seconds"]
            report.promise("conversion (a) / floor (d)", ratio, 1.5, "x")


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


def measure_planning(report: Report, huge: Path, rounds: int) -> None:
    """Planning 671B from metadata alone, beside a bare `pickle.load` of it."""
    warm(huge)
    load = best_of(rounds, [*BASELINE, "unpickle", str(huge)])
    load_seconds = load.report()["seconds"]
    size = (huge / ".metadata").stat().st_size / MB
    what = f"671B metadata ({size:.0f} MB, {load.report()['pieces']:,} pieces)"
    report.add(f"{what}: pickle.load", load, load_seconds)
    plan = best_of(rounds, planning_command(huge))
    report.add(f"{what}: hubmerge plans", plan)
    report.promise("planning / pickle.load", plan.wall_seconds / load_seconds, 3, "x")
    report.promise("planning peak", plan.peak_bytes / GB, 4, "GB")


def measure_start(report: Report, source: Path, rounds: int) -> None:
    """The commands that must feel instant."""
    report.add("python -c pass", best_of(max(rounds, 3), ["-c", "pass"]))
    commands = {"--help": ([*OWN, "--help"], 0.3),
                "inspect": ([*OWN, "inspect", "--load-dir", str(source)], 1.0)}  # fmt: skip
    for what, (command, limit) in commands.items():
        run = best_of(max(rounds, 3), command)
        report.add(f"hubmerge {what}", run)
        report.promise(f"hubmerge {what}", run.wall_seconds, limit, "s")


def attempt(report: Report, what: str, step: Callable[[], None]) -> None:
    """Run one part of the benchmark; a failure is reported, and the rest goes on."""
    try:
        step()
    except CommandFailedError as error:
        report.skipped(what, error)


def run_all(options: argparse.Namespace, folder: Path) -> Report:
    """Build what is missing, then measure everything."""
    report = Report()
    rounds, output = options.rounds, folder / "output"
    source = build(folder / f"weights-{options.size_gb:g}", "weights", str(options.size_gb))
    huge = build(folder / "metadata-671b", "metadata")
    double = None
    warm(source)
    baselines = measure_baselines(report, source, output, rounds)
    if options.double:
        name = f"weights-{2 * options.size_gb:g}"
        double = build(folder / name, "weights", str(2 * options.size_gb))
    steps: dict[str, Callable[[], None]] = {
        "conversion": lambda: measure_own(report, source, double, output, rounds, baselines),
        "equality": lambda: compare_outputs(report, source, output),
        "planning": lambda: measure_planning(report, huge, rounds),
        "start": lambda: measure_start(report, source, rounds),
    }
    for what, step in steps.items():
        attempt(report, what, step)
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
