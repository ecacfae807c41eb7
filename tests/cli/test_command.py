"""The command as a process: what it refuses, and what it prints where."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

import hubmerge
from hubmerge import errors
from tests.support.checkpoints.cases_plain import save_alone
from tests.support.faults.conversion import (
    DATA_FILE,
    TOKEN,
    content,
    damaged,
    push,
    run,
    source,
)


@pytest.mark.parametrize(
    "wrong", [["--shard-size", "0"], ["--shard-size", "2 EB"], ["--save-dir", ""],
              ["--load-dir", ""], ["--model-assets-dir", ""]]
)  # fmt: skip
def test_an_option_that_cannot_be_used_is_exit_2(wrong: list[str], tmp_path: Path) -> None:
    """An empty path (a variable that is not set) is not the current folder."""
    done = run(*push(source(), tmp_path / "out"), *wrong)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "option", [["--tag", "v1"], ["--private"], ["--create-pr"], ["--max-disk", "1GB"]]
)  # fmt: skip
def test_what_only_a_push_does_needs_a_push(option: list[str], tmp_path: Path) -> None:
    """An option that would be passed over in silence is refused."""
    done = run(*push(source(), tmp_path / "out"), *option)
    assert done.returncode == 2
    assert f"{option[0]} cannot be used with --no-push" in done.stderr


def test_positionals_are_the_options(tmp_path: Path) -> None:
    """`hubmerge push RUN ORG/NAME`, as `hf upload`; what is given twice or too much is refused."""
    arguments = ["--no-push", "--save-dir", tmp_path / "out", "--quiet"]
    done = run("push", source(), "a/b", *arguments)
    assert (done.returncode, done.stdout) == (0, f"{tmp_path / 'out'}\n")
    assert "a/b" in (tmp_path / "out" / "README.md").read_text()
    for wrong, said in (
        (["push", source(), "a/b", "c"], "unexpected argument 'c'"),
        (["push", source(), "--load-dir", "x", "a/b"], "--load-dir 'x': was given as"),
        (["push"], "--load-dir is missing"),
        (["push", source()], "--repo-id is missing"),
    ):
        refused = run(*wrong)
        assert (refused.returncode, said in refused.stderr) == (2, True), refused.stderr


def test_variables_are_options(tmp_path: Path) -> None:
    """HUBMERGE_*; the command line comes first, and a list has one entry a line."""
    variables = {"HUBMERGE_SHARD_SIZE": "1KB", "HUBMERGE_DTYPE": "nothing",
                 "HUBMERGE_EXCLUDE": "never\nthis", "HUBMERGE_TAG": "of-a-push"}  # fmt: skip
    arguments = ["push", source(), "--no-push", "--save-dir", tmp_path / "out", "--dtype", "fp32"]
    done = run(*arguments, "--dry-run", "--json", **variables)
    assert done.returncode == 0, done.stderr
    assert len(json.loads(done.stdout)["files"]) > 3
    wrong = run("push", source(), "--no-push", HUBMERGE_EXCLUDE="(", HUBMERGE_DTYPE="bf16")
    assert (wrong.returncode, "--exclude '('" in wrong.stderr) == (2, True)


def test_errors_are_json_too() -> None:
    """A program reads on stdout what a person reads on stderr."""
    for arguments, code in ((["push", "nowhere", "a/b"], 3), (["push", "--bogus"], 2)):
        done = run(*arguments, "--json")
        error = json.loads(done.stdout)["error"]
        assert (done.returncode, error["exit_code"]) == (code, code)
        assert f"Error: {error['message']}" in done.stderr
        assert f"Hint: {error['hint']}" in done.stderr


def test_help_has_groups_examples_and_defaults() -> None:
    """Each group of options has its title."""
    shown = run("push", "--help").stdout
    for title in ("Checkpoint:", "Where to publish:", "Names, precision and layout:", "Examples:"):
        assert f"\n{title}\n" in shown
    assert "[default: bfloat16]" in " ".join(shown.split())


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion(shell: str) -> None:
    """The script that a shell evaluates, and what it then asks for."""
    assert "_HUBMERGE_COMPLETE" in run("completion", shell).stdout
    words = {"COMP_WORDS": "hubmerge push --dtype b", "COMP_CWORD": "3"}
    asked = run(_HUBMERGE_COMPLETE="bash_complete", **words)
    assert "bfloat16" in asked.stdout


def test_inspect_looks_at_the_data_files(tmp_path: Path) -> None:
    """What is missing or short is said, and it is exit 3; what can be told is told."""
    folder = damaged(tmp_path)
    os.truncate(folder / DATA_FILE, 10)
    done = run("inspect", folder)
    assert done.returncode == 3
    assert f"damaged: {DATA_FILE}: the file is too short" in done.stdout
    assert done.stderr.startswith(f"Error: {DATA_FILE}: the file is too short")


def test_a_folder_of_safetensors_is_told(tmp_path: Path) -> None:
    """What needs no conversion is uploaded with the Hub's own command."""
    assert run(*push(source(), tmp_path / "out")).returncode == 0
    done = run("push", tmp_path / "out", "a/b")
    assert done.returncode == 3
    assert "already in safetensors" in done.stderr
    assert "hf upload" in done.stderr


def test_a_shard_size_of_any_length_is_one(tmp_path: Path) -> None:
    """Larger than any float, and larger than the model."""
    done = run(*push(source(), tmp_path / "out", "--shard-size", "9" * 400))
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "model.safetensors").exists()


def test_help_documents_every_exit_code() -> None:
    """Each class of error has its exit code in --help, and in the module's tree."""
    shown = " ".join(run("--help").stdout.split())
    kinds = [kind for kind in vars(errors).values()
             if isinstance(kind, type) and issubclass(kind, hubmerge.HubmergeError)]  # fmt: skip
    for code in {kind.exit_code for kind in kinds} | {0, 130, 143}:
        assert f" {code} " in shown, code
    for kind in kinds:
        assert kind.__name__ in (errors.__doc__ or "")


def test_json_is_all_there_is_on_stdout(tmp_path: Path) -> None:
    """A run, a dry run and an inspection print exactly one JSON object, warnings on stderr."""
    for arguments in (
        push(source(), tmp_path / "out", "--json"),
        push(source(), tmp_path / "none", "--json", "--dry-run"),
        ["inspect", "--load-dir", source(), "--json"],
    ):
        done = run(*arguments)
        assert done.returncode == 0, done.stderr
        assert isinstance(json.loads(done.stdout), dict)
        assert done.stdout.count("\n") == 1
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("debug", [False, True])
def test_errors_are_lines_without_a_traceback_or_the_token(debug: bool, tmp_path: Path) -> None:
    """`Error:` and `Hint:` on stderr, the right exit code; a traceback only with HF_DEBUG."""
    folder = damaged(tmp_path)
    os.truncate(folder / DATA_FILE, 10)
    env = {"HF_TOKEN": TOKEN} | ({"HF_DEBUG": "1"} if debug else {})
    done = run(*push(folder, tmp_path / "out"), **env)
    assert done.returncode == 3
    assert done.stdout == ""
    assert ("Traceback" in done.stderr) == debug
    lines = done.stderr.splitlines()[-2:]
    assert lines[0].startswith(f"Error: {DATA_FILE}: ")
    assert lines[1].startswith("Hint: ")
    assert TOKEN not in done.stdout + done.stderr


def test_the_token_is_in_no_output(tmp_path: Path) -> None:
    """A whole run with a token in the environment, and debugging on: it is nowhere."""
    done = run(*push(source(), tmp_path / "out", "--json"), HF_TOKEN=TOKEN, HF_DEBUG="1")
    assert done.returncode == 0
    written = b"".join(content(tmp_path / "out").values())
    assert TOKEN not in done.stdout + done.stderr
    assert TOKEN.encode() not in written


def test_no_key_moves_the_cursor_or_breaks_the_output(tmp_path: Path) -> None:
    """What stands in a checkpoint is escaped on a terminal, whatever the terminal can show."""
    folder = tmp_path / "c"
    hostile = {"\x1b]0;owned\x07\x1b[2J": torch.ones(2)}
    save_alone(folder, {"model": {"model.a.weight": torch.ones(2)}, "optimizer": hostile})
    for text, coding in (("inspect", "utf-8"), ("inspect", "latin-1"), ("convert", "ascii")):
        words = push(folder, tmp_path / "out", "--overwrite") if text == "convert" else [text]
        done = run(*words, "--load-dir", folder, PYTHONIOENCODING=coding)
        assert (done.returncode, "\x1b" in done.stdout + done.stderr) == (0, False), done.stderr
    assert "\\x1b]0;owned" in run("inspect", "--load-dir", folder).stdout
