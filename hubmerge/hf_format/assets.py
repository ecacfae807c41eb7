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
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from hubmerge.errors import UsageError

CONFIG = "config.json"

# By the `vocab_files_names` of transformers' tokenizers: any one of these makes a tokenizer.
_VOCABULARIES = (
    "tokenizer.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "spiece.model",
    "spm.model",
    "spm_char.model",
    "sentencepiece.model",
    "sentencepiece.bpe.model",
    "source.spm",
    "target.spm",
    "tekken.json",
    "vocab-src.json",
    "vocab-tgt.json",
    "dict.txt",
    "entity_vocab.json",
    "prophetnet.tokenizer",
)
_TOKENIZER_CONFIG = "tokenizer_config.json"
_NAMES = (
    CONFIG,
    "generation_config.json",
    *_VOCABULARIES,
    # what a tokenizer has beside its vocabulary
    _TOKENIZER_CONFIG,
    "special_tokens_map.json",
    "added_tokens.json",
    "merges.txt",
    "bpe.codes",
    "normalizer.json",
    "emoji.json",
    "byte_maps.json",
    "target_vocab.json",
    "word_shape.json",
    "word_pronunciation.json",
    # chat templates
    "chat_template.jinja",
    "chat_template.json",
    # processors
    "preprocessor_config.json",
    "processor_config.json",
    "image_processor_config.json",
    "video_preprocessor_config.json",
    "feature_extractor_config.json",
    "audio_tokenizer_config.json",
)
TEMPLATES = "additional_chat_templates"
_PATTERNS = ("*.tiktoken", f"{TEMPLATES}/*.jinja")

# No filesystem has longer names (in bytes, of which a character may take four).
_MAX_NAME = 60

# Larger is no config.
MAX_JSON_BYTES = 64 * 2**20

_DTYPE_ENTRY = re.compile(
    r'("(?:torch_)?dtype"\s*:\s*")(?:torch\.)?(?:float64|float32|float16|bfloat16)(")'
)


@dataclass(frozen=True, slots=True)
class Asset:
    """One file to publish: from `source`, or with `content` where that is not None."""

    name: str
    source: Path
    content: bytes | None = None

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
    """Is it the name of a file that `collect_assets` takes, code apart?"""
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
    if not is_tokenizer(names):
        yield "no tokenizer: AutoTokenizer and pipelines cannot be used with the result"
    elif all(map(_is_no_vocabulary, names)):
        yield (
            f"no vocabulary beside {_TOKENIZER_CONFIG}: AutoTokenizer can only be used with the "
            "result if its class needs none"
        )


def is_tokenizer(names: Collection[str]) -> bool:
    """Is there among these files one that AutoTokenizer could load a tokenizer by?"""
    return not all(map(_is_no_vocabulary, names)) or _TOKENIZER_CONFIG in names


def _is_no_vocabulary(name: str) -> bool:
    return name not in _VOCABULARIES and not name.endswith(".tiktoken")


def _without(name: str, why: str) -> str:
    return f"no {name} ({why}): from_pretrained cannot load the result"


def read_json(path: Path) -> dict[str, Any]:
    """Parse a JSON object.

    Raises:
        UsageError: it is not one.
    """
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise UsageError(f"{path}: is too large to be a config")
        value = json.loads(path.read_bytes().decode())  # no other encoding can be loaded
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path}: is not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise UsageError(f"{path}: is not a JSON object")
    return value


def _with_dtype(content: bytes, dtype: str | None) -> bytes:
    """The config's text with another dtype, wherever it says one, and no other byte changed."""
    if dtype is None:
        return content
    return _DTYPE_ENTRY.sub(rf"\g<1>{dtype}\g<2>", content.decode()).encode()


def _code_files(folder: Path) -> list[str]:
    """The .py files that an `auto_map` names, and those that they import from beside them."""
    wanted: deque[str] = deque()
    for name in _NAMES:
        if name.endswith("config.json") and (folder / name).is_file():
            wanted.extend(_auto_map_modules(read_json(folder / name)))
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


def _auto_map_modules(config: dict[str, Any]) -> Iterator[str]:
    """The modules that each `auto_map` names; a processor's config holds those of its parts."""
    waiting: list[tuple[Any, bool]] = [(config, False)]
    while waiting:
        value, is_inside = waiting.pop()
        if isinstance(value, dict):
            waiting += [(v, is_inside or key == "auto_map") for key, v in value.items()]
        elif isinstance(value, list):
            waiting += [(v, is_inside) for v in value]
        elif is_inside and isinstance(value, str) and "--" not in value:
            # "ORG/NAME--module.Class" is code of another repository.
            yield value.partition(".")[0]


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
