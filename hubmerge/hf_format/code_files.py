"""The model's own code: the .py files that configs name. They are parsed, and never run here."""

from __future__ import annotations

import ast
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

# No filesystem has longer names (in bytes, of which a character may take four).
_MAX_NAME = 60


def code_files(folder: Path, named: Iterable[str]) -> list[str]:
    """Return the .py files of these classes (``"code.Model"``), and those that they import."""
    wanted = deque(name.partition(".")[0] for name in named)
    found: dict[str, None] = {}
    while wanted:
        module = wanted.popleft()
        if not module.isidentifier() or len(module) > _MAX_NAME or f"{module}.py" in found:
            continue
        path = folder / f"{module}.py"
        if path.is_file():
            found[path.name] = None
            wanted.extend(_relative_imports(path))
    return list(found)


def code_named_in(config: dict[str, Any]) -> Iterator[str]:
    """Return what each `auto_map` names; a processor's config holds those of its parts."""
    waiting: list[tuple[Any, bool]] = [(config, False)]
    while waiting:
        value, is_inside = waiting.pop()
        if isinstance(value, dict):
            waiting += [(v, is_inside or key == "auto_map") for key, v in value.items()]
        elif isinstance(value, list):
            waiting += [(v, is_inside) for v in value]
        elif is_inside and isinstance(value, str) and "--" not in value:
            # "ORG/NAME--module.Class" is code of another repository.
            yield value


def _relative_imports(path: Path) -> Iterator[str]:
    """Yield the modules of the same folder that the code imports."""
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level == 1:
            if node.module:
                yield node.module.partition(".")[0]
            else:
                yield from (alias.name for alias in node.names)
