"""Runs ``hubmerge push`` for the action: inputs from the environment, outputs and a job summary.

Each input is HUBMERGE_INPUT_<NAME>; an empty one is left out. The token goes to the command by its
environment, never on its command line.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

PREFIX = "HUBMERGE_INPUT_"
VALUES = (
    "load-dir", "repo-id", "model-assets-dir", "revision", "tag", "commit-message",
    "commit-description", "staging-dir", "max-disk", "shard-size", "dtype", "license", "card",
    "base-model", "model-key", "experts", "mode", "adapter-config-path",
)  # fmt: skip
LISTS = ("include", "exclude", "rename", "keep-dtype")
FLAGS = ("private", "create-pr", "clean", "like-base-shards", "allow-overflow", "trust-remote-code")
REQUIRED = ("load-dir", "repo-id")
MAY_HAVE_LINES = ("commit-description",)


class InputError(Exception):
    """An input that cannot be used."""


def value_of(env: Mapping[str, str], name: str) -> str:
    """An input's value, empty where it was not given."""
    return env.get(PREFIX + name.replace("-", "_").upper(), "").strip()


def checked(name: str, value: str) -> str:
    """The value, if it cannot be taken for an option."""
    if value.startswith("-"):
        raise InputError(f"{name}: {value!r} looks like an option")
    if "\n" in value and name not in MAY_HAVE_LINES:
        raise InputError(f"{name}: one line is expected")
    return value


def flag(env: Mapping[str, str], name: str, default: bool = False) -> bool:
    """A yes-or-no input."""
    value = value_of(env, name).lower()
    if value not in ("", "true", "false"):
        raise InputError(f"{name}: {value!r} is neither true nor false")
    return value == "true" if value else default


def arguments(env: Mapping[str, str]) -> Iterator[str]:
    """The command's arguments."""
    for name in REQUIRED:
        if not value_of(env, name):
            raise InputError(f"{name}: is missing")
    for name in VALUES:
        value = checked(name, value_of(env, name))
        if value:
            yield f"--{name}={value}"
    for name in LISTS:
        for line in filter(None, map(str.strip, value_of(env, name).splitlines())):
            yield f"--{name}={checked(name, line)}"
    for name in FLAGS:
        if flag(env, name):
            yield f"--{name}"
    if not flag(env, "check-model", default=True):
        yield "--no-check-model"


def environment(env: Mapping[str, str]) -> dict[str, str]:
    """The command's environment: without the inputs, with the token or the trusted publisher."""
    kept = {name: value for name, value in env.items() if not name.startswith(PREFIX)}
    token = value_of(env, "token")
    if flag(env, "trusted-publisher"):
        if token:
            raise InputError("token and trusted-publisher exclude each other")
        if "ACTIONS_ID_TOKEN_REQUEST_URL" not in env and "HF_OIDC_ID_TOKEN" not in env:
            raise InputError("trusted-publisher: the job needs `permissions: id-token: write`")
        kept.pop("HF_TOKEN", None)
        kept["HF_OIDC_RESOURCE"] = value_of(env, "repo-id")
    elif token:
        kept["HF_TOKEN"] = token
    return kept


def summary(result: dict[str, Any]) -> str:
    """The job summary, in Markdown."""
    done = "Pushed" if result["changed"] else "Nothing to do"
    lines = [
        f"### {done}: [{result['repo_id']}]({result['url']})",
        "",
        f"Commit `{result['commit']}` on `{result['revision']}`, "
        f"{result['uploaded_bytes']:,} bytes uploaded in {result['seconds']} s, "
        f"{result['resumed_shards']} of {len(result['shards'])} shards were there already.",
        "",
        "| shard | bytes | sha256 |",
        "| --- | ---: | --- |",
    ]
    lines += [f"| {s['filename']} | {s['size']:,} | `{s['sha256']}` |" for s in result["shards"]]
    return "\n".join(lines) + "\n"


def append(env: Mapping[str, str], variable: str, text: str) -> None:
    """Add text to the file that the runner names in a variable."""
    if env.get(variable):
        with Path(env[variable]).open("a", encoding="utf-8") as file:
            file.write(text)


def main() -> int:
    """Push; the command's own exit code."""
    try:
        command = [sys.executable, "-m", "hubmerge", "push", "--json", *arguments(os.environ)]
        env = environment(os.environ)
    except InputError as error:
        sys.stdout.write(f"::error title=hubmerge push::{error}\n")
        return 2
    run = subprocess.run(  # noqa: S603 - our own command
        command, env=env, stdout=subprocess.PIPE, text=True, check=False
    )
    if run.returncode:
        return run.returncode
    result = json.loads(run.stdout)
    outputs = "".join(f"{name}={result[name]}\n" for name in ("url", "commit", "revision"))
    append(os.environ, "GITHUB_OUTPUT", outputs)
    append(os.environ, "GITHUB_STEP_SUMMARY", summary(result))
    sys.stdout.write(f"Pushed: {result['url']}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
