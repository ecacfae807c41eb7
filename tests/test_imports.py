"""What modules import: only from lower floors of the house, and only packages that are declared."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "hubmerge"
PYPROJECT = PACKAGE.with_name("pyproject.toml")
FLOORS = (
    {"__main__"}, {"cli"}, {"", "api"}, {"verification"}, {"publish"}, {"conversion"}, {"planning"},
    {"names"}, {"checkpoint"}, {"hf_format", "system"}, {"options", "progress_bars"},
    {"formatting", "progress", "errors"},
)  # fmt: skip
"""From the roof to the cellar; "" is `hubmerge` itself, which gives the names of `api`."""


def modules() -> dict[str, ast.Module]:
    """Return each module's syntax tree by its name below `hubmerge`."""
    found = {}
    for path in PACKAGE.rglob("*.py"):
        name = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
        found[name.removesuffix("__init__").removesuffix(".")] = ast.parse(path.read_text())
    return found


def imports(tree: ast.Module) -> Iterator[str]:
    """Yield the full name of each module that a module imports, at its top or in a function."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide which floor they lead to"
            assert node.module is not None
            if node.module == "hubmerge":
                yield from (f"hubmerge.{alias.name}" for alias in node.names)
            else:
                yield node.module


def floor_of(room: str) -> int:
    """Return how far below the roof a room is."""
    return next(number for number, floor in enumerate(FLOORS) if room in floor)


def rooms() -> dict[str, set[str]]:
    """Return by module the rooms that it imports from, but for its own."""
    top = set().union(*FLOORS)
    found = {}
    for module, tree in modules().items():
        ours = [name.split(".") for name in imports(tree) if name.split(".")[0] == "hubmerge"]
        taken = {parts[1] if len(parts) > 1 and parts[1] in top else "" for parts in ours}
        found[module] = taken - {module.split(".", 1)[0]}
    return found


def test_no_import_runs_up() -> None:
    """A module imports from its own room and from lower floors."""
    upwards = {
        (module, room)
        for module, taken in rooms().items()
        for room in taken
        if floor_of(room) <= floor_of(module.split(".")[0]) and module != ""
    }
    assert upwards == set()


def test_each_room_has_its_floor() -> None:
    """A new folder or module at the top is given a floor, and none that has gone keeps one."""
    assert {module.split(".")[0] for module in modules()} == set().union(*FLOORS)


def declared() -> set[str]:
    """Return the names of the packages that hubmerge requires, and of its extras for users."""
    text = re.sub(r"^test = \[.*?^\]", "", PYPROJECT.read_text(), flags=re.DOTALL | re.MULTILINE)
    tables = re.findall(r"^(?:dependencies|\w+) = \[(.*?)\]$",
                        text.partition("\n[project]\n")[2].partition("\n[project.scripts]")[0],
                        re.DOTALL | re.MULTILINE)  # fmt: skip
    return set(re.findall(r'"([a-z_]+)>=', "".join(tables)))


def test_each_package_that_is_imported_is_declared() -> None:
    """Nothing works only because another package, or the tests, happen to bring it."""
    module_of = {"pyyaml": "yaml"}
    packages = declared()
    known = {module_of.get(package, package) for package in packages} | {"hubmerge"}
    taken = {name.split(".")[0] for tree in modules().values() for name in imports(tree)}
    assert taken - set(sys.stdlib_module_names) == known
