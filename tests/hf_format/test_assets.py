"""What is copied from the assets folder, held against what transformers' own classes look for."""

from __future__ import annotations

import importlib
import json
import pkgutil
from pathlib import Path
from typing import Any

import pytest
import transformers.models

from hubmerge.hf_format.assets import collect_assets, is_asset


def test_every_tokenizer_of_transformers_is_known() -> None:
    """Each file that one of its tokenizers says it needs is copied."""
    wanted: set[str] = set()
    packages = pkgutil.iter_modules(transformers.models.__path__, "transformers.models.")
    for package in packages:
        name = f"{package.name}.tokenization_{package.name.rpartition('.')[2]}"
        try:
            module = importlib.import_module(name)
        except (ImportError, RuntimeError, NameError):  # none, or a library is not here
            continue
        wanted.update(getattr(module, "VOCAB_FILES_NAMES", {}).values())
    assert len(wanted) > 15
    assert [name for name in wanted if not is_asset(name)] == []


def collected(folder: Path, files: dict[str, Any]) -> tuple[set[str], tuple[str, ...]]:
    """The names that are taken from a folder of these files, and the warnings."""
    for name, content in files.items():
        (folder / name).write_text(content if isinstance(content, str) else json.dumps(content))
    assets = collect_assets(folder, None)
    return {asset.name for asset in assets.files}, assets.warnings


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("config.json", {"auto_map": {"AutoModel": "code.Model"}}),
        ("tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["code.Slow", None]}}),
        ("video_preprocessor_config.json", {"auto_map": {"AutoVideoProcessor": "code.Video"}}),
        ("preprocessor_config.json",
         {"auto_map": {"AutoImageProcessor": {"torchvision": "code.Fast", "pil": "code.Slow"}}}),
        ("processor_config.json",
         {"image_processor": {"auto_map": {"AutoImageProcessor": "code.Image"}}}),
    ],
)  # fmt: skip
def test_code_is_found_wherever_an_auto_map_stands(
    file: str, content: dict[str, Any], tmp_path: Path
) -> None:
    """As transformers reads it: by backend, and in the parts of a processor's config."""
    names, _ = collected(tmp_path, {file: content, "code.py": "", "other.py": ""})
    assert names == {file, "code.py"}


@pytest.mark.parametrize(
    ("files", "warned"),
    [
        (["tokenizer.json"], []),
        (["spm.model", "tokenizer_config.json"], []),
        (["qwen.tiktoken"], []),
        (["tokenizer_config.json", "special_tokens_map.json"], ["no vocabulary"]),
        (["special_tokens_map.json"], ["no tokenizer"]),
    ],
)
def test_a_tokenizer_that_cannot_be_loaded_is_a_warning(
    files: list[str], warned: list[str], tmp_path: Path
) -> None:
    """Settings alone are no tokenizer, unless its class needs no vocabulary."""
    names, warnings = collected(tmp_path, dict.fromkeys([*files, "config.json"], "{}"))
    assert names == {*files, "config.json"}
    assert len(warnings) == len(warned)
    assert all(text.startswith(start) for text, start in zip(warnings, warned, strict=True))
