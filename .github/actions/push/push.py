"""Run ``hubmerge push`` for the action: inputs from the environment, outputs and a job summary.

Each input is HUBMERGE_INPUT_<NAME>, made of a declared option of the command (`inputs.py`); an
empty one is left out. The token goes to the command by its environment, never on its command line.
"""

from __future__ import annotations

import html
import json
import os
import secrets
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING
from pathlib import Path
from typing import Any

from hubmerge.cli.options import PUSH_GROUPS
from hubmerge.options import declared_in, flag_of

PREFIX = "HUBMERGE_INPUT_"
DECLARED = {
    flag_of(declared).removeprefix("--"): declared
    for declared, about in declared_in(*PUSH_GROUPS)
    if about.is_input
}
SWITCHES = {name: d.default for name, d in DECLARED.items() if isinstance(d.default, bool)}
LISTS = tuple(name for name, d in DECLARED.items() if isinstance(d.default, tuple))
VALUES = tuple(name for name in DECLARED if name not in {*SWITCHES, *LISTS, "token"})
REQUIRED = tuple(name for name, d in DECLARED.items() if d.default is MISSING)
MAY_HAVE_LINES = ("commit-description",)


class InputError(Exception):
    """An input that cannot be used."""


def value_of(env: Mapping[str, str], name: str) -> str:
    """Return an input's value; it is empty if the input was not given."""
    return env.get(PREFIX + name.replace("-", "_").upper(), "").strip()


def checked(name: str, value: str) -> str:
    """Return the value if it cannot be taken for an option."""
    if value.startswith("-"):
        raise InputError(f"{name}: {value!r} looks like an option")
    if "\n" in value and name not in MAY_HAVE_LINES:
        raise InputError(f"{name}: one line is expected")
    return value


def flag(env: Mapping[str, str], name: str, default: bool = False) -> bool:
    """Return whether a yes-or-no input is true."""
    value = value_of(env, name).lower()
    if value not in ("", "true", "false"):
        raise InputError(f"{name}: {value!r} is neither true nor false")
    return value == "true" if value else default


def arguments(env: Mapping[str, str]) -> Iterator[str]:
    """Yield the command's arguments."""
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
    for name, default in SWITCHES.items():
        if flag(env, name, default) is not default:
            yield f"--no-{name}" if default else f"--{name}"


def environment(env: Mapping[str, str]) -> dict[str, str]:
    """Return the command's environment: no inputs, but the token or the trusted publisher."""
    kept = {name: value for name, value in env.items() if not name.startswith(PREFIX)}
    # What lies in the workspace is the job's: no `hubmerge` or `torch` in it is imported.
    kept["PYTHONSAFEPATH"] = "1"
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


def workflow_command(name: str, message: str, title: str) -> str:
    """Return a line that the runner takes for a command, whatever is in the message."""
    data = message.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")
    return f"::{name} title={title}::{data}\n"


def run_command(command: Sequence[str], env: Mapping[str, str]) -> tuple[int, str, list[str]]:
    """Run the command with its stderr in the log.

    What it prints may quote a checkpoint: no line of it is a command to the runner.

    Returns:
        Its exit code, its stdout, and why it failed: the error and the hint, if it gave them.
    """
    resume, reasons = secrets.token_hex(16), []
    write(f"::stop-commands::{resume}\n")
    with (
        tempfile.TemporaryFile("w+", encoding="utf-8") as out,
        subprocess.Popen(  # noqa: S603 - our own command
            command, env=env, stdout=out, stderr=subprocess.PIPE, encoding="utf-8", errors="replace"
        ) as process,
    ):
        assert process.stderr is not None
        for line in process.stderr:
            write(line)
            if line.startswith(("Error: ", "Hint: ")):
                reasons.append(line.strip())
        code = process.wait()
        out.seek(0)
        write(f"::{resume}::\n")
        return code if code >= 0 else 128 - code, out.read(), reasons


def summary(result: Mapping[str, Any]) -> str:
    """Return the job summary of a push, in Markdown."""
    lines = [
        f"### {done(result)}: [{result['repo_id']}]({result['url']})",
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


def done(result: Mapping[str, Any]) -> str:
    """Return in words whether anything was pushed."""
    return "Pushed" if result["changed"] else "Nothing to do"


def append(env: Mapping[str, str], variable: str, text: str) -> None:
    """Add text to the file that the runner names in a variable."""
    if env.get(variable):
        with Path(env[variable]).open("a", encoding="utf-8") as file:
            file.write(text)


def write(text: str) -> None:
    """Write to the log at once: the order of its lines has a meaning to the runner."""
    sys.stdout.write(text)
    sys.stdout.flush()


def fail(env: Mapping[str, str], code: int, reasons: Sequence[str]) -> int:
    """Say in an annotation and in the job summary why nothing was pushed; return the exit code."""
    text = "\n".join(reasons) or f"hubmerge ended with exit code {code}; its log says more"
    write(workflow_command("error", text, "hubmerge push failed"))
    append(
        env,
        "GITHUB_STEP_SUMMARY",
        f"### Push failed, exit code {code}\n\n<pre>{html.escape(text)}</pre>\n",
    )
    return code


def main() -> int:
    """Push; return the command's own exit code."""
    try:
        command = [sys.executable, "-m", "hubmerge", "push", "--json", *arguments(os.environ)]
        env = environment(os.environ)
    except InputError as error:
        return fail(os.environ, 2, [f"Error: {error}"])
    code, out, reasons = run_command(command, env)
    if code:
        return fail(os.environ, code, reasons)
    result = json.loads(out)
    outputs = "".join(f"{name}={result[name]}\n" for name in ("url", "commit", "revision"))
    append(os.environ, "GITHUB_OUTPUT", outputs)
    append(os.environ, "GITHUB_STEP_SUMMARY", summary(result))
    write(f"{done(result)}: {result['url']}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
