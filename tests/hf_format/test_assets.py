"""What is copied from the assets folder, held against what transformers' own classes look for."""

from __future__ import annotations

import importlib
import json
import pkgutil
from pathlib import Path
from typing import Any

import pytest
import transformers.models

from hubmerge.hf_format.asset_names import is_asset
from hubmerge.hf_format.assets import collect_assets


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
    """Return the names that are taken from a folder of these files, and the notes."""
    for name, content in files.items():
        (folder / name).write_text(content if isinstance(content, str) else json.dumps(content))
    assets = collect_assets(folder, None)
    return set(assets.names), assets.notes


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


def test_what_is_left_out_is_named_once(tmp_path: Path) -> None:
    """One line names what is not taken, but for weights, the card and the like."""
    for name in ("model.safetensors", "README.md", ".gitattributes", "training_args.bin"):
        (tmp_path / name).write_text("")
    (tmp_path / "logs").mkdir()
    names, notes = collected(
        tmp_path, {"config.json": {}, "notes.txt": "", "trainer_state.json": {}}
    )
    assert names == {"config.json"}
    assert notes == (f"not published from {tmp_path}: logs/, notes.txt, trainer_state.json",)


def test_a_pickle_that_a_model_needs_is_copied_and_named(tmp_path: Path) -> None:
    """Omni's voices are published, byte for byte, and it is said that nobody looked inside."""
    names, notes = collected(tmp_path, {"config.json": {}, "spk_dict.pt": "\x80any bytes"})
    assert names == {"config.json", "spk_dict.pt"}
    assert len(notes) == 1
    assert "pickle" in notes[0]


MODULES = [
    {"name": "0", "path": "", "type": "custom_st.Transformer"},
    {"name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
    {"name": "2", "path": "2_Dense", "type": "sentence_transformers.models.Dense"},
    {"name": "3", "path": "../outside", "type": "sentence_transformers.models.Dense"},
]


def test_the_modules_of_sentence_transformers_are_taken(tmp_path: Path) -> None:
    """The folders that modules.json names, inside the assets folder alone, and its own code."""
    assets = tmp_path / "assets"
    for folder in ("1_Pooling", "2_Dense", "../outside", "4_Other"):
        (assets / folder).mkdir(parents=True)
        (assets / folder / "config.json").write_text("{}")
    for name in ("model.safetensors", "optimizer.pt"):
        (assets / "2_Dense" / name).write_text("")
    names, notes = collected(
        assets,
        {
            "config.json": {},
            "modules.json": MODULES,
            "sentence_bert_config.json": {},
            "config_sentence_transformers.json": {},
            "custom_st.py": "",
        },
    )
    assert names == {
        "config.json",
        "modules.json",
        "sentence_bert_config.json",
        "config_sentence_transformers.json",
        "1_Pooling/config.json",
        "2_Dense/config.json",
        "2_Dense/model.safetensors",
        "custom_st.py",
    }
    assert notes == (f"not published from {assets}: 4_Other/",)


def test_the_files_of_a_policy_are_taken(tmp_path: Path) -> None:
    """LeRobot's steps before and after the policy, with their statistics."""
    files = {
        "config.json": {"type": "act", "output_features": {}},
        "policy_preprocessor.json": {},
        "policy_preprocessor_step_3_normalizer_processor.safetensors": "",
        "policy_postprocessor.json": {},
        "train_config.json": {},
    }
    names, notes = collected(tmp_path, files)
    assert names == files.keys()
    assert notes == ()
