"""The README is true: each command in it is run, in its order, against a local Hub."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.fake_hub.server import Hub
from tests.support.installed import BIN, OTHER

README = Path(__file__).parent.parent / "README.md"
SETUP = 'pip install "torch=='


def blocks(language: str) -> list[str]:
    """The README's code blocks of one language."""
    return re.findall(rf"```{language}\n(.*?)```", README.read_text(), re.DOTALL)


def commands() -> list[str]:
    """Each command line of the README but those that install."""
    lines = [line for block in blocks("bash") for line in block.strip().splitlines()]
    return [line for line in lines if not line.startswith(SETUP)]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run and a base model, as `hubmerge demo` leaves them."""
    folder = tmp_path_factory.mktemp("readme")
    demo = run("hubmerge demo --dir demo", folder, {})
    assert "the model that was loaded" in demo
    shutil.copytree(folder / "demo" / "checkpoint", folder / "runs" / "my-run" / "global_step_20")
    shutil.copytree(folder / "demo" / "assets", folder / "base-model")
    return folder


@pytest.fixture(scope="module")
def readme_hub(tmp_path_factory: pytest.TempPathFactory) -> Hub:
    """One Hub for all commands, since each builds on the one before."""
    return Hub(tmp_path_factory.mktemp("hub"), "lfs").start()


def run(command: str, folder: Path, env: dict[str, str]) -> str:
    """Run one command as a reader of the README would, in `folder`."""
    path = os.pathsep.join([str(BIN), os.environ["PATH"]])
    done = subprocess.run(
        command.replace("my-org", "alice"),
        shell=True,
        cwd=folder,
        env={**os.environ, **env, "PATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def test_the_two_commands_that_set_up() -> None:
    """The two commands are there, word for word: .ci/run takes them from here."""
    setup = [line for block in blocks("bash") for line in block.splitlines() if SETUP in line]
    assert setup == [
        'pip install "torch==2.13.0" -e . && hubmerge demo',
        'pip install "torch==2.13.0" -e ".[test]" && pytest',
    ]


@pytest.mark.skipif(OTHER is None, reason="the tests' own environment is used")
def test_what_is_installed_is_not_the_tree(tmp_path: Path) -> None:
    """The commands run what a user gets, from a wheel."""
    found = run("python -c 'import hubmerge; print(hubmerge.__file__)'", tmp_path, {})
    assert Path(found).is_relative_to(BIN.parent)
    assert "site-packages" in found


def test_each_command_does_what_the_readme_says(workplace: Path, readme_hub: Hub) -> None:
    """All commands succeed in the README's order, and leave what their text promises."""
    assert len(commands()) >= 7
    env = readme_hub.env()
    said = {command: run(command, workplace, env) for command in commands()}
    published = readme_hub.files("alice/my-model", "main")
    local = {path.name for path in (workplace / "my-model").iterdir()}
    assert local - {".hubmerge.json"} == set(published) - {".gitattributes"}
    dry = next(text for command, text in said.items() if "--dry-run" in command)
    assert "model.safetensors" in dry
    assert sum("✓ Verified" in text for text in said.values()) == 2
    shared = (workplace / "my-model-2" / "model.safetensors").read_bytes()
    assert shared == (workplace / "my-model" / "model.safetensors").read_bytes()


def test_the_python_example_runs(workplace: Path, readme_hub: Hub) -> None:
    """The training script's lines publish, or find that all is published."""
    (script,) = blocks("python")
    (workplace / "script.py").write_text(script.replace("my-org", "alice"))
    url = run("python script.py", workplace, readme_hub.env())
    assert "alice/my-model" in url


def test_the_exit_codes_are_those_of_the_errors() -> None:
    """The README's table of exit codes has each code of the errors, and no other."""
    from hubmerge import errors

    table = README.read_text().partition("## Exit codes")[2].partition("\n## ")[0]
    listed = {int(code) for code in re.findall(r"\| (\d+) \|", table)}
    classes = [c for c in vars(errors).values() if isinstance(c, type)]
    known = {c.exit_code for c in classes if issubclass(c, errors.HubmergeError)}
    assert listed == known | {0, 130, 143}
