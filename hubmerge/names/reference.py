"""The base model's own names, dtypes and files, which are authoritative if it is available.

Read from the index and the headers of its safetensors files; no tensor is read, nothing downloaded.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from hubmerge.errors import CheckpointError, HubmergeError, UsageError
from hubmerge.formatting import format_list
from hubmerge.hf_format.assets import read_json
from hubmerge.hf_format.dtypes import DType
from hubmerge.hf_format.filenames import STEMS, is_model_weights
from hubmerge.hf_format.safetensors_header import read_header

# ORG/NAME, as the Hub takes it.
REPO_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")

_MAX_LISTED = 10

# Beyond this many names, the search for similar ones would take longer than the conversion.
_MAX_COMPARED = 3000


@dataclass(frozen=True)
class Reference:
    """A model's weights as its files describe them.

    Attributes:
        label: the folder or repository, for messages.
        files: the file of each tensor, by name.
        dtypes: of each tensor whose file's header could be read.
    """

    label: str
    files: dict[str, str]
    dtypes: dict[str, DType]

    def main_dtype(self) -> DType | None:
        """The floating dtype that most tensors have."""
        found = [dtype for dtype in self.dtypes.values() if dtype.kind == "float"]
        return max(set(found), key=found.count) if found else None


def read_reference(folder: Path) -> Reference | None:
    """Return the model in `folder`; None if it holds none that can be read."""
    try:
        files = _weight_map(folder)
        singles = {folder / f"{stem}.safetensors" for stem in STEMS}
        paths = {folder / name for name in files.values()} or singles
        dtypes: dict[str, DType] = {}
        for path in sorted(paths):
            if path.is_file():
                for name, dtype in _header(path):
                    dtypes[name] = dtype
                    files.setdefault(name, path.name)
    except (HubmergeError, OSError):
        return None
    return Reference(str(folder), files, dtypes) if files else None


def is_on_hub(base_model: str) -> bool:
    """Return whether it is the name of a repository and not a folder."""
    return bool(REPO_ID.fullmatch(base_model)) and not Path(base_model).exists()


def find_base_model(base_model: str) -> Path | None:
    """Return the folder of a base model: a path, or a repository in the local cache; or None.

    Raises:
        UsageError: it can be neither.
    """
    if Path(base_model).is_dir():
        return Path(base_model)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(base_model, local_files_only=True))
    except LocalEntryNotFoundError:
        return None
    except HFValidationError:
        raise UsageError(
            f"--base-model {base_model!r} is neither a folder nor the name of a repository"
        ) from None


def _weight_map(folder: Path) -> dict[str, str]:
    found = [folder / f"{stem}.safetensors.index.json" for stem in STEMS]
    index = next((path for path in found if path.is_file()), None)
    if index is None:
        return {}
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict):
        return {}
    return {
        name: file
        for name, file in weight_map.items()
        if isinstance(file, str) and file == Path(file).name and file.endswith(".safetensors")
    }


def _header(path: Path) -> Iterator[tuple[str, DType]]:
    with path.open("rb") as file:
        tensors, _ = read_header(file, path.name)
    yield from ((tensor.name, tensor.dtype) for tensor in tensors)


def differences(names: Iterable[str], expected: Iterable[str]) -> str:
    """Describe missing and unexpected names, with the nearest ones; "" if there are none."""
    have, want = set(names), set(expected)
    missing, unexpected = sorted(want - have), sorted(have - want)
    parts = []
    if missing:
        parts.append(f"{len(missing)} missing: {_listed(missing, unexpected)}")
    if unexpected:
        parts.append(f"{len(unexpected)} unexpected: {_listed(unexpected, missing)}")
    return "; ".join(parts)


def _listed(names: list[str], others: list[str]) -> str:
    shown = []
    for name in names[:_MAX_LISTED]:
        near = get_close_matches(name, others[:_MAX_COMPARED], n=1, cutoff=0.6)
        shown.append(name + (f" (nearest: {near[0]})" if near else ""))
    return format_list([*shown, *names[_MAX_LISTED:]], _MAX_LISTED)


def assign_files(names: Iterable[str], reference: Reference) -> dict[str, str]:
    """Return the base model's file for each name.

    Raises:
        CheckpointError: the base model lacks a name.
        UsageError: its files have names that are not the Hub's.
    """
    files = {}
    unknown = []
    for name in names:
        file = reference.files.get(name)
        if file is None:
            unknown.append(name)
        elif not is_model_weights(file):
            raise UsageError(f"--like-base-shards: {file!r} is no name for a file of weights")
        else:
            files[name] = file
    if unknown:
        raise CheckpointError(
            f"--like-base-shards: {reference.label} has no file for {_listed(unknown, [])}",
            "Leave the option out, or correct the names with --rename.",
        )
    return files
