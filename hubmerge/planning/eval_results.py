"""Evaluation results, which the Hub reads from files of their own beside the model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from hubmerge.errors import UsageError
from hubmerge.hf_format.assets import MAX_JSON_BYTES, Asset

_FOLDER = ".eval_results"


def read_eval_results(path: Path) -> Asset:
    """Read a user's file of results and bring it to the Hub's form.

    Raises:
        UsageError: it is not there, or not a list of results.
    """
    from huggingface_hub import eval_result_entries_to_yaml, parse_eval_result_entries

    if not path.is_file():
        raise UsageError(f"{path}: no such file", "Check --eval-results.")
    if path.stat().st_size > MAX_JSON_BYTES:
        raise UsageError(f"{path}: is too large to be a file of results")
    try:
        data: Any = yaml.safe_load(path.read_bytes())
        entries = parse_eval_result_entries(data)
    except (yaml.YAMLError, LookupError, TypeError, ValueError, AttributeError) as error:
        raise UsageError(
            f"{path}: is not a list of evaluation results ({type(error).__name__}: {error})",
            'Give a list such as [{"dataset": {"id": "cais/hle", "task_id": "default"}, '
            '"value": 20.9}], as YAML or JSON.',
        ) from None
    if not entries:
        raise UsageError(f"{path}: holds no evaluation results")
    text = yaml.safe_dump(eval_result_entries_to_yaml(entries), sort_keys=False)
    return Asset(f"{_FOLDER}/{path.stem}.yaml", path, text.encode())
