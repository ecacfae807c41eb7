"""The GitHub Action: its script as GitHub runs it, and its files as GitHub reads them."""

from __future__ import annotations

import html
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from hubmerge.cli.options import PUSH_GROUPS
from hubmerge.options import declared_in, flag_of
from tests.support.fake_hub import Hub
from tests.support.installed import BIN, OTHER
from tests.support.push.checks import expected_weights, readers_saw_only
from tests.support.push.models import Model

pytest_plugins = ["tests.support.push.plugin"]

ROOT = Path(__file__).parents[1]
ACTION = ROOT / ".github/actions/push/action.yml"
SCRIPT = ACTION.with_name("push.py")
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))


@pytest.fixture(scope="module")
def action() -> dict[str, Any]:
    """The action's metadata."""
    parsed: dict[str, Any] = yaml.safe_load(ACTION.read_text())
    return parsed


@pytest.fixture(scope="module")
def script() -> dict[str, Any]:
    """The script's names."""
    return runpy.run_path(str(SCRIPT))


Run = Callable[..., "Outcome"]


class Outcome:
    """What the script left: its exit code, output, and the files that GitHub reads."""

    def __init__(self, folder: Path, done: subprocess.CompletedProcess[str]) -> None:
        self.code, self.text = done.returncode, done.stdout + done.stderr
        self.outputs = dict(
            line.split("=", 1) for line in (folder / "outputs").read_text().splitlines()
        )
        self.summary = (folder / "summary").read_text()


@pytest.fixture
def run(hub: Hub, action: dict[str, Any], model: Model, tmp_path: Path) -> Run:
    """Run the script with the environment that GitHub makes of the action's inputs."""

    def start(
        env: dict[str, str] | None = None, steps: Sequence[Sequence[str]] = (), **inputs: str
    ) -> Outcome:
        given = {"load-dir": str(model.load_dir), "model-assets-dir": str(model.assets)}
        given |= {"repo-id": "alice/model", "shard-size": "15000", "token": hub.token}
        given |= {name.replace("_", "-"): value for name, value in inputs.items()}
        assert given.keys() <= action["inputs"].keys()
        variables = hub.env(token=None, TMPDIR=str(tmp_path))
        for name, value in action["runs"]["steps"][-1]["env"].items():
            match = re.fullmatch(r"\$\{\{ inputs\.([a-z-]+) \}\}", value)
            if match:
                variables[name] = given.get(match[1], action["inputs"][match[1]].get("default", ""))
        for name in ("outputs", "summary"):
            (tmp_path / name).write_text("")
        variables["GITHUB_OUTPUT"] = str(tmp_path / "outputs")
        variables["GITHUB_STEP_SUMMARY"] = str(tmp_path / "summary")
        for command in steps or [[str(BIN / "python"), str(SCRIPT)]]:
            done = subprocess.run(command, env=variables | (env or {}), capture_output=True,
                                  text=True, check=False, cwd=tmp_path)  # fmt: skip
        return Outcome(tmp_path, done)

    return start


def test_the_action_pushes(hub: Hub, run: Run, model: Model) -> None:
    """Outputs and the summary's table of shards say what was published."""
    outcome = run(tag="v1", commit_message="From CI")
    assert outcome.code == 0, outcome.text
    head = hub.head("alice/model")
    assert outcome.outputs == {
        "url": f"{hub.url}/alice/model/tree/main", "commit": head, "revision": "main",
    }  # fmt: skip
    weights = {n: oid for n, oid in expected_weights(model).items() if "index" not in n}
    for name, sha256 in weights.items():
        assert f"| {name} | {len(model.weights()[name]):,} | `{sha256}` |" in outcome.summary
    assert hub.repo("alice/model").resolve("main").title == "From CI"
    assert hub.repo("alice/model").refs["refs/tags/v1"] == head
    assert hub.token not in outcome.text + outcome.summary
    assert f"Pushed: {hub.url}/alice/model" in outcome.text
    readers_saw_only(hub, "alice/model", expected_weights(model))


@pytest.mark.parametrize("transport", ["lfs"])
@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        ({"revision": "--no-push"}, "revision: '--no-push' looks like an option"),
        ({"include": "lm_head\n--token=x"}, "include: '--token=x' looks like an option"),
        ({"tag": "v1\nv2"}, "tag: one line is expected"),
        ({"private": "yes"}, "private: 'yes' is neither true nor false"),
        ({"repo_id": " "}, "repo-id: is missing"),
        ({"trusted_publisher": "true"}, "token and trusted-publisher exclude each other"),
        (
            {"trusted_publisher": "true", "token": ""},
            "trusted-publisher: the job needs `permissions: id-token: write`",
        ),
    ],
)
def test_inputs_that_are_refused(inputs: dict[str, str], said: str, hub: Hub, run: Run) -> None:
    """What looks like an option, or is none of what is expected, ends before anything is run."""
    outcome = run(**inputs)
    assert (outcome.code, outcome.outputs) == (2, {})
    assert said in html.unescape(outcome.summary)
    assert f"::error title=hubmerge push failed::Error: {said}" in outcome.text
    assert len(hub.log) == 0


@pytest.mark.parametrize("transport", ["lfs"])
def test_the_commands_exit_code_is_the_actions(hub: Hub, run: Run) -> None:
    """A refused token ends the step with the command's code; error and hint are annotated."""
    outcome = run(token=hub.tokens["read"])
    assert (outcome.code, outcome.outputs) == (6, {})
    error, hint = re.findall(r"^((?:Error|Hint): .*)$", outcome.text, re.MULTILINE)
    assert f"\n::error title=hubmerge push failed::{error}%0A{hint}\n" in outcome.text
    heading, _, reasons = outcome.summary.partition("\n\n")
    assert heading == "### Push failed, exit code 6"
    assert html.unescape(reasons) == f"<pre>{error}\n{hint}</pre>\n"


@pytest.mark.parametrize("transport", ["lfs"])
def test_a_push_with_nothing_to_do_says_so(hub: Hub, run: Run) -> None:
    """In the log and in the summary, with the same outputs."""
    first = run()
    again = run()
    assert (again.code, again.outputs) == (0, first.outputs)
    assert f"Nothing to do: {hub.url}/alice/model" in again.text
    assert "Pushed" not in again.text + again.summary


def test_the_message_of_an_annotation_is_one_line(script: dict[str, Any]) -> None:
    """What a message quotes neither ends it nor is undone by the runner's own escapes."""
    made = script["workflow_command"]("error", "50%0A\r\n::add-mask::x", "title")
    assert made == "::error title=title::50%250A%0D%0A::add-mask::x\n"


@pytest.mark.parametrize(
    ("program", "code", "reasons"),
    [
        ("print('##[add-mask]x', file=sys.stderr); print('out')", 0, []),
        ("print('Error: a\\nHint: b', file=sys.stderr); sys.exit(6)", 6, ["Error: a", "Hint: b"]),
        ("os.kill(os.getpid(), 9)", 137, []),
    ],
)
def test_what_the_command_prints_is_no_command_to_the_runner(
    program: str, code: int, reasons: list[str], script: dict[str, Any], capfd: Any
) -> None:
    """All of it stands between two lines that stop the runner's commands and resume them."""
    command = [sys.executable, "-c", f"import os, sys; {program}"]
    ended, out, why = script["run_command"](command, os.environ)
    assert (ended, out, why) == (code, "out\n" if code == 0 else "", reasons)
    first, *_, last = capfd.readouterr().out.splitlines()
    assert first.startswith("::stop-commands::")
    assert last == f"::{first.removeprefix('::stop-commands::')}::"


@pytest.mark.parametrize("transport", ["lfs"])
def test_nothing_in_the_workspace_is_imported(run: Run, tmp_path: Path) -> None:
    """A job's own folder named as ours, or as a package that we use, is not taken for it."""
    if sys.version_info < (3, 11):
        pytest.skip("Python 3.10 has no PYTHONSAFEPATH")
    for name in ("hubmerge", "torch"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('the wrong one')")
    assert run().code == 0


@pytest.mark.skipif(OTHER is None, reason="installs from a package registry; .ci/run has this run")
@pytest.mark.parametrize("transport", ["lfs"])
def test_the_two_steps_of_the_action(
    hub: Hub, run: Run, action: dict[str, Any], tmp_path: Path
) -> None:
    """Its own install lines, then its push, with the shell options that a runner gives."""
    shell = ["bash", "--noprofile", "--norc", "-e", "-o", "pipefail", "-c"]
    env = {
        "RUNNER_TEMP": str(tmp_path),
        "HUBMERGE_SOURCE": str(ROOT),
        "HUBMERGE_SCRIPT": str(SCRIPT),
    }
    outcome = run(env, [[*shell, step["run"]] for step in action["runs"]["steps"]])
    assert outcome.code == 0, outcome.text
    assert outcome.outputs["commit"] == hub.head("alice/model")
    python = tmp_path / "hubmerge" / "bin" / "python"
    where = [str(python), "-c", "import hubmerge; print(hubmerge.__file__)"]
    found = subprocess.run(where, capture_output=True, text=True, check=True, cwd=tmp_path).stdout
    assert Path(found).is_relative_to(tmp_path)


def test_the_trusted_publisher(script: dict[str, Any]) -> None:
    """With OIDC the command is told the repository and no token at all."""
    env = {"HUBMERGE_INPUT_TRUSTED_PUBLISHER": "true", "HUBMERGE_INPUT_REPO_ID": "org/model",
           "ACTIONS_ID_TOKEN_REQUEST_URL": "here", "HF_TOKEN": "other"}  # fmt: skip
    assert script["environment"](env) == {
        "HF_OIDC_RESOURCE": "org/model", "ACTIONS_ID_TOKEN_REQUEST_URL": "here",
        "PYTHONSAFEPATH": "1",
    }  # fmt: skip


def test_all_options_are_inputs(action: dict[str, Any]) -> None:
    """The file has just the inputs that its script makes of the declared options."""
    written = runpy.run_path(str(SCRIPT.with_name("inputs.py")))["written"]
    assert ACTION.read_text() == written(ACTION.read_text())
    here_only = {"no-push", "save-dir", "overwrite", "dry-run", "json", "quiet", "verbose"}
    options = {flag_of(declared).removeprefix("--") for declared, _ in declared_in(*PUSH_GROUPS)}
    assert set(action["inputs"]) == (options - here_only) | {"trusted-publisher"}


def test_inputs_travel_by_environment(action: dict[str, Any]) -> None:
    """No expression stands in a script, and each input has its own variable."""
    steps = action["runs"]["steps"]
    assert not any("${{" in step["run"] for step in steps)
    env = {v: k for k, v in steps[-1]["env"].items() if k.startswith("HUBMERGE_INPUT_")}
    assert env == {
        f"${{{{ inputs.{name} }}}}": "HUBMERGE_INPUT_" + name.replace("-", "_").upper()
        for name in action["inputs"]
    }


def test_the_action_installs_its_own_checkout(action: dict[str, Any]) -> None:
    """What is installed is the version that the action is pinned to."""
    install = action["runs"]["steps"][0]
    source = install["env"]["HUBMERGE_SOURCE"]
    assert source == "${{ github.action_path }}/../../.."
    assert ACTION.parent.joinpath("../../..").resolve() == ROOT
    assert 'pip install --quiet "$HUBMERGE_SOURCE"' in install["run"]


def test_zizmor_finds_nothing() -> None:
    """The auditor of workflows has nothing to say."""
    done = subprocess.run(
        [tool("zizmor"), "--offline", "--format=json", str(ROOT / ".github")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, json.loads(done.stdout)) == (0, [])


@pytest.mark.parametrize(
    ("schema", "path"),
    [
        ("vendor.github-actions", ACTION),
        ("vendor.dependabot", ROOT / ".github/dependabot.yml"),
        ("vendor.github-issue-forms", ROOT / ".github/ISSUE_TEMPLATE/bug.yml"),
        ("vendor.github-issue-forms", ROOT / ".github/ISSUE_TEMPLATE/trainer.yml"),
        *(("vendor.github-workflows", path) for path in WORKFLOWS),
    ],
)
def test_the_schemas_hold(schema: str, path: Path) -> None:
    """GitHub's own schemas accept the files."""
    done = subprocess.run(
        [tool("check-jsonschema"), "--builtin-schema", schema, str(path)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout


def tool(name: str) -> str:
    """A program of this environment."""
    found = shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)
    assert found is not None, f"{name} is not installed"
    return found


def test_workflows_are_pinned_and_granted_little() -> None:
    """No right at the top, each job's own; other people's actions by their full SHA."""
    for path in WORKFLOWS:
        workflow = yaml.safe_load(path.read_text())
        assert workflow["permissions"] == {}
        for job in workflow["jobs"].values():
            assert "permissions" in job
        for line in re.findall(r"uses: (.*)", path.read_text()):
            assert re.fullmatch(r"\./.*|[\w.-]+/[\w./-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", line)
