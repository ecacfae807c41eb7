"""The files beside the weights: config, tokenizer, processor, the model's own code.

Only files that this module knows by name are ever taken from the assets folder. They are copied
verbatim, but for the dtype in `config.json`, which must be that of the weights: transformers would
rewrite a config in its newest form, and older versions could no longer load it.
"""

from __future__ import annotations

import ast
import json
import re
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from hubmerge.errors import UsageError

CONFIG = "config.json"

_NAMES = (
    CONFIG,
    "generation_config.json",
    # tokenizers
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "sentencepiece.model",
    "tekken.json",
    "source.spm",
    "target.spm",
    # chat templates
    "chat_template.jinja",
    "chat_template.json",
    # processors
    "preprocessor_config.json",
    "processor_config.json",
    "image_processor_config.json",
    "video_preprocessor_config.json",
    "feature_extractor_config.json",
)
_PATTERNS = ("*.tiktoken", "additional_chat_templates/*.jinja")

# Each may name classes in .py files of the same folder.
_WITH_AUTO_MAP = (
    CONFIG,
    "tokenizer_config.json",
    "processor_config.json",
    "preprocessor_config.json",
)

# No filesystem has longer names (in bytes, of which a character may take four).
_MAX_NAME = 60

# Larger is no config.
MAX_JSON_BYTES = 64 * 2**20

_DTYPE_ENTRY = re.compile(
    r'("(?:torch_)?dtype"\s*:\s*")(?:torch\.)?(?:float32|float16|bfloat16)(")'
)


@dataclass(frozen=True, slots=True)
class Asset:
    """One file to publish: from `source`, or with `content` where that is not None."""

    name: str
    source: Path
    content: bytes | None = None

    @property
    def size_bytes(self) -> int:
        return len(self.content) if self.content is not None else self.source.stat().st_size

    def read(self) -> bytes:
        return self.content if self.content is not None else self.source.read_bytes()


@dataclass(frozen=True, slots=True)
class Assets:
    """What an assets folder gives.

    Attributes:
        config: the parsed `config.json`, or None where there is none.
        warnings: what the published folder will not be able to do, one sentence each.
    """

    files: tuple[Asset, ...]
    config: dict[str, Any] | None
    warnings: tuple[str, ...]


def is_asset(name: str) -> bool:
    """Is it the name of a file that `collect_assets` takes from the top of a folder?"""
    return name in _NAMES or any(fnmatch(name, pattern) for pattern in _PATTERNS)


def collect_assets(folder: Path | None, dtype: str | None) -> Assets:
    """Find the assets in `folder`.

    Args:
        folder: the assets folder, or None where the user gave none.
        dtype: what `config.json` shall say, or None to leave it.

    Raises:
        UsageError: there is no such folder, or a file in it is not what its name says.
    """
    if folder is None:
        return Assets((), None, (_without("config.json", "--model-assets-dir was not given"),))
    if not folder.is_dir():
        raise UsageError(f"{folder}: no such folder", "Check --model-assets-dir.")
    names = [name for name in _NAMES if (folder / name).is_file()]
    for pattern in _PATTERNS:
        paths = sorted(p for p in folder.glob(pattern) if p.is_file())
        names.extend(p.relative_to(folder).as_posix() for p in paths)
    names.extend(_code_files(folder))
    files = []
    config = None
    for name in names:
        asset = Asset(name, folder / name)
        if name == CONFIG:
            config = read_json(asset.source)
            asset = Asset(name, asset.source, _with_dtype(asset.read(), dtype))
        files.append(asset)
    return Assets(tuple(files), config, tuple(_warnings(names)))


def _warnings(names: list[str]) -> Iterator[str]:
    if CONFIG not in names:
        yield _without("config.json", "the assets folder has none")
    if not any(
        name.startswith(("tokenizer", "vocab", "spiece", "sentencepiece", "tekken"))
        for name in names
    ):
        yield "no tokenizer: AutoTokenizer and pipelines cannot be used with the result"


def _without(name: str, why: str) -> str:
    return f"no {name} ({why}): from_pretrained cannot load the result"


def read_json(path: Path) -> dict[str, Any]:
    """Parse a JSON object.

    Raises:
        UsageError: it is not one.
    """
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise UsageError(f"{path.name} is too large to be a config")
        value = json.loads(path.read_bytes().decode())  # no other encoding can be loaded
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path.name} in the assets folder is not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise UsageError(f"{path.name} in the assets folder is not a JSON object")
    return value


def _with_dtype(content: bytes, dtype: str | None) -> bytes:
    """The config's text with another dtype, wherever it says one, and no other byte changed."""
    if dtype is None:
        return content
    return _DTYPE_ENTRY.sub(rf"\g<1>{dtype}\g<2>", content.decode()).encode()


def _code_files(folder: Path) -> list[str]:
    """The .py files that an `auto_map` names, and those that they import from beside them."""
    wanted: deque[str] = deque()
    for name in _WITH_AUTO_MAP:
        if (folder / name).is_file():
            wanted.extend(_auto_map_modules(read_json(folder / name).get("auto_map")))
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


def _auto_map_modules(auto_map: Any) -> Iterator[str]:
    references = auto_map.values() if isinstance(auto_map, dict) else ()
    for reference in references:
        for entry in reference if isinstance(reference, list) else [reference]:
            # "ORG/NAME--module.Class" is code of another repository.
            if isinstance(entry, str) and "--" not in entry:
                yield entry.partition(".")[0]


def _relative_imports(path: Path) -> Iterator[str]:
    """Modules of the same folder that the code imports; it is parsed, never run."""
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
