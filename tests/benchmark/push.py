"""A push against the local Hub with limited bandwidth, and the two halves that it overlaps."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from tests.benchmark.measure import REPOSITORY, Measured, measure, remove

PUSH_SHARD_SIZE = "200MB"
_SAMPLE_EVERY_SECONDS = 0.01


@dataclass(frozen=True)
class Converted:
    """Converting alone."""

    run: Measured
    seconds: float
    shards: int
    total_bytes: int
    cap_bytes: int

    @property
    def bytes_per_second(self) -> float:
        """The bandwidth at which uploading takes as long."""
        return self.total_bytes / self.seconds


def convert_alone(source: Path, output: Path) -> Converted:
    """Convert into `output`, which stays."""
    command = ["-m", "hubmerge", "push", "--load-dir", str(source), "--no-push", "--json"]
    run = measure([*command, "--save-dir", str(output), "--shard-size", PUSH_SHARD_SIZE])
    report = run.report()
    sizes = [shard["size"] for shard in report["shards"]]
    return Converted(run, report["seconds"], len(sizes), sum(sizes), 2 * max(sizes))


@contextmanager
def limited_hub(scratch: Path, bytes_per_second: float) -> Iterator[dict[str, str]]:
    """A local Hub in a process of its own; yields the environment for its clients."""
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        env_file = Path(folder) / "env"
        command = [sys.executable, "-m", "tests.support.fake_hub", "--lfs"]
        command += ["--dir", f"{folder}/hub"]
        command += ["--upload-bytes-per-s", str(bytes_per_second), "--env-file", str(env_file)]
        hub = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE)
        try:
            assert hub.stdout is not None
            hub.stdout.readline()  # its first line: it listens
            lines = env_file.read_text().splitlines()
            env = dict(line.split("=", 1) for line in lines)
            yield {**env, "HF_HUB_DISABLE_XET": "1"}
        finally:
            hub.terminate()
            hub.wait()


def upload_alone(folder: Path, env: dict[str, str]) -> Measured:
    """`hf upload` of a folder that is converted already, as far as its shards go."""
    script = (
        "import sys, pathlib; from huggingface_hub import HfApi, CommitOperationAdd; "
        "api = HfApi(); api.create_repo('alice/upload'); "
        "paths = sorted(pathlib.Path(sys.argv[1]).glob('*.safetensors')); "
        "[api.create_commit('alice/upload', [CommitOperationAdd(p.name, p)], commit_message='-')"
        " for p in paths]"
    )
    return measure(["-c", script, str(folder)], env)


def push_sampled(source: Path, staging: Path, env: dict[str, str]) -> tuple[Measured, int]:
    """Push, and look at the staging folder all the while; the most bytes it held."""
    remove(staging)
    command = ["-m", "hubmerge", "push", "--load-dir", str(source), "--repo-id", "alice/push"]
    command += [
        "--no-config",
        "--shard-size",
        PUSH_SHARD_SIZE,
        "--staging-dir",
        str(staging),
        "--json",
    ]
    most_bytes = 0
    done = threading.Event()

    def sample() -> None:
        nonlocal most_bytes
        while not done.is_set():
            most_bytes = max(most_bytes, _folder_bytes(staging))
            time.sleep(_SAMPLE_EVERY_SECONDS)

    sampler = threading.Thread(target=sample)
    sampler.start()
    try:
        return measure(command, env), most_bytes
    finally:
        done.set()
        sampler.join()
        remove(staging)


def _folder_bytes(folder: Path) -> int:
    """Bytes of all files at one moment; 0 where one was deleted while the others were counted."""
    sizes = {}
    with suppress(FileNotFoundError):
        for path in folder.glob("**/*"):
            if path.is_file():
                sizes[path] = path.stat().st_size
    return sum(sizes.values()) if all(path.exists() for path in sizes) else 0
