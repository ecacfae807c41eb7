"""The files beside the weights: config, tokenizer, processor, the model's own code.

Only files that `hubmerge.hf_format.asset_names` knows are ever taken from the assets folder. They
are copied as they are; what must change in `config.json` is edited in its text, since transformers
would rewrite a config in its newest form, which older versions cannot load.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from hubmerge.errors import UsageError
from hubmerge.formatting import format_list
from hubmerge.hf_format.asset_names import (
    CONFIG,
    PICKLES,
    TEMPLATES,
    is_asset,
    is_expected,
    is_in_module,
    order_of,
)
from hubmerge.hf_format.code_files import code_files, code_named_in
from hubmerge.hf_format.filenames import DIFFUSERS_STEM, MODEL_STEM

# No config is larger.
MAX_JSON_BYTES = 64 * 2**20

# Configs nest three or four levels deep; no library reads entries below this level.
_MAX_LEVELS = 8

MODULES = "modules.json"
_MODULE_FOLDER = re.compile(r"(?:\w[\w-]*)?")

_DTYPE_ENTRY = re.compile(
    r'("(?:torch_)?dtype"\s*:\s*")(?:torch\.)?(?:float64|float32|float16|bfloat16)(")'
)


class Module(NamedTuple):
    """A module of sentence-transformers, as `modules.json` has it.

    Attributes:
        folder: of its files; "" for the model itself, whose files stand with the others.
        kind: its class, with dots.
    """

    name: str
    folder: str
    kind: str


@dataclass(frozen=True, slots=True)
class Asset:
    """One file to publish: from `source`, or with `content` if that is not None."""

    name: str
    source: Path
    content: bytes | None = None

    def read(self) -> bytes:
        return self.content if self.content is not None else self.source.read_bytes()


@dataclass(frozen=True, slots=True)
class Assets:
    """The contents of an assets folder.

    Attributes:
        config: the parsed `config.json`, or None if there is none.
        warnings: what the published folder will not be able to do, one sentence each.
        notes: what was left out or changed, one sentence each.
        modules: those of a sentence-transformers model.
    """

    files: tuple[Asset, ...]
    config: dict[str, Any] | None
    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    modules: tuple[Module, ...] = ()

    @property
    def names(self) -> frozenset[str]:
        return frozenset(asset.name for asset in self.files)

    @property
    def stem(self) -> str:
        """The beginning of the names of weights files that the library looks for."""
        return DIFFUSERS_STEM if self.library == "diffusers" else MODEL_STEM

    @property
    def library(self) -> str:
        """The library that loads the model, by its name on the Hub."""
        config = self.config or {}
        if "_class_name" in config:
            return "diffusers"
        if MODULES in self.names:
            return "sentence-transformers"
        is_policy = "model_type" not in config and {"type", "output_features"} <= config.keys()
        return "lerobot" if is_policy else "transformers"

    def get(self, name: str) -> Asset | None:
        """Return the file of this name; None if there is none."""
        return next((asset for asset in self.files if asset.name == name), None)

    def with_dtype(self, dtype: str | None) -> Assets:
        """Return the same assets, the config with the dtype that the weights have."""
        asset = self.get(CONFIG)
        if asset is None or dtype is None:
            return self
        return self.with_config(_with_dtype(asset.read(), dtype).decode())

    def with_config(self, text: str) -> Assets:
        """Return the same assets with another text of `config.json`."""
        files = tuple(
            replace(asset, content=text.encode()) if asset.name == CONFIG else asset
            for asset in self.files
        )
        return replace(self, files=files, config=json.loads(text))


def collect_assets(folder: Path | None, dtype: str | None) -> Assets:
    """Find the assets in `folder`.

    Args:
        folder: the assets folder, or None if the user gave none.
        dtype: what `config.json` shall say, or None to leave it.

    Raises:
        UsageError: there is no such folder, or a file in it is not what its name says.
    """
    if folder is None:
        return Assets((), None, (_without(CONFIG, "--model-assets-dir was not given"),))
    if not folder.is_dir():
        raise UsageError(f"{folder}: no such folder", "Check --model-assets-dir.")
    modules = read_modules(folder / MODULES) if (folder / MODULES).is_file() else ()
    names = _names_in(folder, modules)
    files = []
    config = None
    for name in names:
        asset = Asset(name, folder / name)
        if name == CONFIG:
            config = read_json(asset.source)
            asset = Asset(name, asset.source, _with_dtype(asset.read(), dtype))
        files.append(asset)
    missing = () if config is not None else (_without(CONFIG, "the assets folder has none"),)
    return Assets(tuple(files), config, missing, tuple(_notes(folder, names)), modules)


def _names_in(folder: Path, modules: tuple[Module, ...]) -> list[str]:
    """Return the names of the files to publish, as paths that the libraries look for."""
    found = [path.name for path in folder.iterdir() if path.is_file()]
    found += [f"{TEMPLATES}/{path.name}" for path in (folder / TEMPLATES).glob("*.jinja")]
    names = sorted(filter(is_asset, found), key=order_of)
    for module in modules:
        paths = sorted((folder / module.folder).glob("*")) if module.folder else ()
        inside = [path.name for path in paths if is_in_module(path.name) and path.is_file()]
        names += [f"{module.folder}/{name}" for name in inside]
    configs = [name for name in names if name.endswith("config.json") and "/" not in name]
    named = [name for config in configs for name in code_named_in(read_json(folder / config))]
    return names + code_files(folder, [*named, *(module.kind for module in modules)])


def read_modules(path: Path) -> tuple[Module, ...]:
    """Read a `modules.json`, without its malformed entries."""
    modules = _parse_json(path)
    return tuple(
        Module(str(module.get("name")), module["path"], str(module.get("type")))
        for module in (modules if isinstance(modules, list) else ())
        if isinstance(module, dict) and _MODULE_FOLDER.fullmatch(str(module.get("path")))
    )


def _notes(folder: Path, names: list[str]) -> Iterator[str]:
    taken = {name.partition("/")[0] for name in names}
    left_out = sorted(
        path.name + "/" * path.is_dir()
        for path in folder.iterdir()
        if path.name not in taken and not is_expected(path.name)
    )
    if left_out:
        yield f"not published from {folder}: {format_list(left_out)}"
    for name in filter(PICKLES.__contains__, names):
        yield f"{name} is a pickle: its bytes are published as they are, and never read here"


def _without(name: str, why: str) -> str:
    return f"no {name} ({why}): from_pretrained cannot load the result"


def read_json(path: Path) -> dict[str, Any]:
    """Parse a JSON object.

    Raises:
        UsageError: it is not one.
    """
    value = _parse_json(path)
    if not isinstance(value, dict):
        raise UsageError(f"{path}: is not a JSON object")
    return value


def _parse_json(path: Path) -> Any:
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise UsageError(f"{path}: is too large to be a config")
        return json.loads(path.read_bytes().decode())  # no other encoding can be loaded
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path}: is not valid JSON: {error}") from None


def config_levels(config: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Return a config and the configs inside it, each after its path (``"text_config."``)."""
    waiting: list[tuple[str, Mapping[str, Any]]] = [("", config)]
    while waiting:
        path, level = waiting.pop(0)
        yield path, level
        if path.count(".") < _MAX_LEVELS:
            waiting += [
                (f"{path}{key}.", value)
                for key, value in level.items()
                if isinstance(value, Mapping)
            ]


def _with_dtype(content: bytes, dtype: str | None) -> bytes:
    """Return the config's text with every dtype entry replaced and no other byte changed."""
    if dtype is None:
        return content
    return _DTYPE_ENTRY.sub(rf"\g<1>{dtype}\g<2>", content.decode()).encode()
