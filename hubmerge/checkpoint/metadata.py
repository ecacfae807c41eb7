"""Read the metadata of a checkpoint, in any of its three forms, into a `Checkpoint`.

- `.metadata`: one pickled ``torch.distributed.checkpoint.metadata.Metadata`` for all ranks;
- `__{rank}.metadata`: the same, one file per rank (``dcp.save(use_collectives=False)``); their
  chunks are merged;
- neither, but safetensors files with ``DCP_SHARDING_INFO`` in the header
  (``HuggingFaceStorageWriter(save_distributed=True)``).

Each file is read once. Nothing in it is trusted: types, signs, sizes and paths are checked here, so
that no other module has to.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from math import prod
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from hubmerge.checkpoint.description import GLOBAL_FILE, check_none_missing, describing_files
from hubmerge.checkpoint.files import open_inside, read_inside
from hubmerge.checkpoint.schema import Checkpoint, Chunk, StoredTensor
from hubmerge.checkpoint.sharding_info import saved_offsets
from hubmerge.checkpoint.unpickle import Inert, fields, load, new_dict, pairs, same_tuple
from hubmerge.errors import CheckpointError, NotACheckpointError, UnsafeInputError
from hubmerge.hf_format.dtypes import BY_NAME, UNSUPPORTED_NAMES
from hubmerge.hf_format.safetensors_header import read_header
from hubmerge.system.gc_pause import gc_paused

# The largest one known (a 671B model on 256 ranks) has about 150 MB.
_MAX_METADATA_BYTES = 4 * 2**30

# No real file has an element count or a byte offset beyond this.
_MAX_SIZE = 2**62
_MAX_DIMS = 64

# More than any checkpoint has. A longer sequence would be copied for each chunk that shares it.
_MAX_PATH_PARTS = 256
_MAX_CODECS = 8


class _Metadata(Inert):
    __slots__ = ()


class _TensorEntry(Inert):
    __slots__ = ()


class _ObjectEntry(Inert):
    __slots__ = ()


class _ChunkBox(Inert):
    __slots__ = ()


class _Index(Inert):
    __slots__ = ()


class _StorageInfo(Inert):
    __slots__ = ()


class _Properties(Inert):
    __slots__ = ()


_DCP = "torch.distributed.checkpoint.metadata"
_MEGATRON = "megatron.core.dist_checkpointing.strategies.torch"
_STAND_INS: dict[tuple[str, str], Any] = {
    (_DCP, "Metadata"): _Metadata,
    (_DCP, "TensorStorageMetadata"): _TensorEntry,
    (_DCP, "BytesStorageMetadata"): _ObjectEntry,
    (_DCP, "ChunkStorageMetadata"): _ChunkBox,
    (_DCP, "MetadataIndex"): _Index,
    (_DCP, "TensorProperties"): _Properties,
    (_DCP, "StorageMeta"): Inert,
    (_DCP, "_MEM_FORMAT_ENCODING"): Inert,
    ("torch.distributed._shard.sharded_tensor.metadata", "TensorProperties"): _Properties,
    ("torch.distributed._shard.sharded_tensor.metadata", "MEM_FORMAT_ENCODING"): Inert,
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"): _StorageInfo,
    ("olmo_core.distributed.checkpoint.filesystem", "_StorageInfo"): _StorageInfo,
    (
        "nemo_automodel.components.checkpoint._backports.filesystem",
        "_StorageInfo",
    ): _StorageInfo,
    (_MEGATRON, "MCoreMetadata"): _Metadata,
    (_MEGATRON, "MCoreSavePlan"): Inert,
    ("torch", "Size"): same_tuple,
    ("torch.serialization", "_get_layout"): Inert,
    ("pathlib", "PosixPath"): Inert,
    ("pathlib", "WindowsPath"): Inert,
    ("pathlib", "PurePosixPath"): Inert,
    ("pathlib", "PureWindowsPath"): Inert,
    ("pathlib._local", "PosixPath"): Inert,
    ("pathlib._local", "WindowsPath"): Inert,
    ("pathlib._local", "PurePosixPath"): Inert,
    ("pathlib._local", "PureWindowsPath"): Inert,
    ("collections", "OrderedDict"): new_dict,
}


def _dtype_name(module: str, name: str) -> str | None:
    """Return the name of `torch.<dtype>`, or None for anything else in torch."""
    known = module == "torch" and (name in BY_NAME or name in UNSUPPORTED_NAMES)
    return name if known else None


@gc_paused()
def read_checkpoint(folder: Path) -> Checkpoint:
    """Read the metadata in `folder`; of data files, only safetensors headers are opened.

    Raises:
        NotACheckpointError: there is no metadata, or the save was interrupted.
        CheckpointError: the metadata is damaged, inconsistent or incomplete.
        UnsafeInputError: it names something to execute, or a path outside the folder.
    """
    paths = describing_files(folder)
    if not paths:
        raise _not_a_checkpoint(folder)
    check_none_missing(folder, paths)
    digest = hashlib.sha256()
    merged = _Merged()
    real_folder = folder.resolve()
    for path in paths:
        if path.suffix == ".safetensors":
            _add_safetensors(merged, real_folder, path.name, digest)
        else:
            data = read_inside(real_folder, path.name, _MAX_METADATA_BYTES)
            digest.update(data)
            _add_metadata(merged, data, path.name)
    return Checkpoint(
        folder=folder,
        tensors=merged.tensors(),
        objects=tuple(merged.objects),
        metadata_sha256=digest.hexdigest(),
        has_save_id=merged.has_save_id,
    )


def _not_a_checkpoint(folder: Path) -> NotACheckpointError:
    if (folder / f"{GLOBAL_FILE}.tmp").exists():
        return NotACheckpointError(
            f"{folder}: the save was interrupted: there is a .metadata.tmp but no .metadata",
            "The checkpoint is incomplete and cannot be used; take an earlier step.",
        )
    if not folder.is_dir():
        what = "not a folder" if folder.exists() else "no such folder"
        return NotACheckpointError(f"{folder}: {what}", "Check --load-dir.")
    data_files = sum(1 for _ in folder.glob("*.distcp"))
    return NotACheckpointError(
        f"{folder}: there are {data_files} .distcp files but no .metadata: "
        "the save was interrupted, or the file was left behind by a copy",
        "Copy .metadata too (it is a hidden file), or take an earlier step.",
    )


class _Merged:
    """The union of one or more metadata files."""

    def __init__(self) -> None:
        self.objects: dict[str, None] = {}
        self.has_save_id = False
        self._found: dict[str, tuple[str, tuple[int, ...], tuple[str, ...] | None]] = {}
        self._chunks: dict[str, dict[tuple[tuple[int, ...], tuple[int, ...]], Chunk]] = {}

    def add_object(self, key: str) -> None:
        self.objects[key] = None

    def add(
        self,
        key: str,
        dtype: str,
        shape: tuple[int, ...],
        path: tuple[str, ...] | None,
        chunks: Iterable[Chunk],
        *,
        grow: bool = False,
    ) -> None:
        """Add chunks of a tensor; `grow` if this file knows only a lower bound of its shape."""
        known = self._found.get(key)
        if known is not None:
            if grow and len(known[1]) == len(shape):
                shape = tuple(map(max, shape, known[1]))
            elif known[1] != shape:
                raise CheckpointError(
                    f"{key!r} has shape {known[1]} in one file, {shape} in another"
                )
            if known[0] != dtype:
                raise CheckpointError(f"{key!r} is {known[0]} in one file, {dtype} in another")
        self._found[key] = (dtype, shape, path)
        boxes = self._chunks.setdefault(key, {})
        for chunk in chunks:
            # A box that is listed twice is a replica (each rank lists its own copy).
            boxes.setdefault(chunk[:2], chunk)

    def tensors(self) -> dict[str, StoredTensor]:
        return {
            key: StoredTensor(key, dtype, shape, tuple(self._chunks[key].values()), path)
            for key, (dtype, shape, path) in self._found.items()
        }


def _add_metadata(merged: _Merged, data: bytes, label: str) -> None:
    metadata = load(data, label, _STAND_INS, _dtype_name)
    known = _fields(metadata, _Metadata, label, "the metadata object")
    _refuse_megatron_reformulation(known, label)
    merged.has_save_id |= bool((fields(known.get("storage_meta")) or {}).get("save_id"))
    entries = _pairs(known.get("state_dict_metadata"), label, "state_dict_metadata")
    paths = {k: v for k, v in pairs(known.get("planner_data")) or () if type(k) is str}
    stored = _storage_by_key(known.get("storage_data"), label)
    safe_paths: dict[str, str] = {}
    # A chunk takes more bytes than this, unless a hostile file lists the same one repeatedly.
    boxes_left = len(data) // 16
    for key, entry in entries:
        if type(key) is not str:
            raise CheckpointError(f"{label}: a key is {type(key).__name__}, not text")
        if isinstance(entry, _ObjectEntry):
            merged.add_object(key)
        else:
            dtype, shape, boxes = _tensor_entry(entry, key, label)
            boxes_left -= len(boxes)
            if boxes_left < 0:
                raise UnsafeInputError(f"{label}: lists more chunks than it can hold")
            chunks = _chunks(key, boxes, stored.get(key, {}), safe_paths, label)
            merged.add(key, dtype, shape, _path(paths.get(key)), chunks)


def _refuse_megatron_reformulation(known: dict[str, Any], label: str) -> None:
    # Many ranks may share one plan; it is searched once.
    distinct = {id(plan): plan for _, plan in pairs(known.get("mcore_data")) or ()}.values()
    if any(
        isinstance(name, str) and "nd_reformulated" in name
        for plan in distinct
        for name, _ in pairs(plan) or ()
    ):
        raise CheckpointError(
            f"{label}: Megatron stored some tensors in a reformulated shape",
            "Convert it with Megatron Bridge, which knows the original shapes.",
        )


def _fields(value: Any, kind: type[Inert], label: str, what: str) -> dict[str, Any]:
    found = fields(value)
    if not isinstance(value, kind) or found is None:
        raise CheckpointError(f"{label}: {what} has an unexpected type")
    return found


def _pairs(value: Any, label: str, what: str) -> list[tuple[Any, Any]]:
    found = pairs(value)
    if found is None:
        raise CheckpointError(f"{label}: {what} is {type(value).__name__}, not a dict")
    return found


def _storage_by_key(value: Any, label: str) -> dict[str, dict[tuple[int, ...] | None, Any]]:
    """Return where each chunk is stored, by key and offsets."""
    by_key: dict[str, dict[tuple[int, ...] | None, Any]] = {}
    for index, info in _pairs(value, label, "storage_data"):
        known = fields(index)
        if type(index) is not _Index or known is None:
            raise CheckpointError(f"{label}: storage_data has a key that is not a MetadataIndex")
        key, offset = known.get("fqn"), known.get("offset")
        if type(key) is not str or not (offset is None or type(offset) is tuple):
            raise CheckpointError(f"{label}: storage_data has a malformed key")
        stored = by_key.get(key)
        if stored is None:
            stored = by_key[key] = {}
        if offset is not None and not _are_sizes(offset):
            raise CheckpointError(f"{label}: {key!r} is stored at a malformed offset"[:500])
        if offset in stored:
            raise CheckpointError(f"{label}: {key!r} is stored twice at {offset}"[:500])
        stored[offset] = info
    return by_key


def _tensor_entry(entry: Any, key: str, label: str) -> tuple[str, tuple[int, ...], list[Any]]:
    known = _fields(entry, _TensorEntry, label, f"the entry of {key!r}")
    properties = known.get("properties")
    state = getattr(properties, "state", None) if isinstance(properties, _Properties) else None
    dtype = None
    if isinstance(state, tuple) and state:
        dtype = state[0]
    elif attributes := fields(properties):  # older writers pickled the attributes
        dtype = attributes.get("dtype")
    shape, boxes = known.get("size"), known.get("chunks")
    if not isinstance(dtype, str):
        raise CheckpointError(f"{label}: {key!r} has no dtype")
    if not (type(shape) is tuple and _are_sizes(shape)) or not isinstance(boxes, list):
        raise CheckpointError(f"{label}: {key!r} has a malformed shape or list of chunks")
    if prod(shape) >= _MAX_SIZE:
        raise UnsafeInputError(f"{label}: {key!r} claims the impossible shape {shape}")
    return dtype, shape, boxes


def _path(value: Any) -> tuple[str, ...] | None:
    """Return the nested keys of a flattened key; DCP also puts list indices among them."""
    if not isinstance(value, tuple) or not 0 < len(value) <= _MAX_PATH_PARTS:
        return None
    return tuple(str(part) for part in value if isinstance(part, (str, int)))


def _are_sizes(values: tuple[Any, ...]) -> bool:
    """Return whether these are sizes or offsets, and so safe to hash and to print."""
    if len(values) > _MAX_DIMS:
        return False
    for value in values:  # noqa: SIM110 - called a million times; a generator takes twice as long
        if type(value) is not int or not 0 <= value < _MAX_SIZE:
            return False
    return True


def _chunks(
    key: str,
    boxes: list[Any],
    stored: dict[tuple[int, ...] | None, Any],
    safe_paths: dict[str, str],
    label: str,
) -> Iterator[Chunk]:
    # About a million iterations for the largest models: avoid function calls here.
    # `safe_paths` caches one checked string per file for all chunks.
    for box in boxes:
        known = fields(box)
        if type(box) is not _ChunkBox or known is None:
            raise CheckpointError(f"{label}: {key!r} has a malformed chunk")
        offsets, sizes = known.get("offsets"), known.get("sizes")
        if type(offsets) is not tuple or type(sizes) is not tuple:
            raise CheckpointError(f"{label}: {key!r} has a malformed chunk")
        if not (_are_sizes(offsets) and _are_sizes(sizes)):
            raise CheckpointError(f"{label}: {key!r} has a malformed chunk")
        info = stored.get(offsets)
        location = fields(info)
        if type(info) is not _StorageInfo or location is None:
            if 0 in sizes:
                continue  # some writers do not store empty chunks
            raise CheckpointError(
                f"{label}: the chunk of {key!r} at {offsets} is stored nowhere"[:500],
                "The save was incomplete; use an earlier step.",
            )
        file, offset, length = (
            location.get("relative_path"),
            location.get("offset"),
            location.get("length"),
        )
        if type(file) is not str or type(offset) is not int or type(length) is not int:
            raise CheckpointError(f"{label}: {key!r} has a malformed location in a file")
        if not (0 <= offset < _MAX_SIZE and 0 <= length < _MAX_SIZE):
            raise UnsafeInputError(
                f"{label}: {key!r} claims an impossible location in {file!r}"[:300]
            )
        if file not in safe_paths:
            safe_paths[file] = safe_relative_path(file, label)
        yield Chunk(
            offsets,
            sizes,
            safe_paths[file],
            offset,
            length,
            _codecs(location.get("transform_descriptors"), key, label),
        )


def _codecs(value: Any, key: str, label: str) -> tuple[str, ...]:
    if not value:
        return ()
    if (
        isinstance(value, (list, tuple))
        and len(value) <= _MAX_CODECS
        and all(isinstance(name, str) for name in value)
    ):
        return tuple(value)
    raise CheckpointError(f"{label}: {key!r} has malformed transform_descriptors")


def safe_relative_path(path: str, label: str) -> str:
    """Return `path` if it cannot leave the folder on any system.

    Raises:
        UnsafeInputError: it is absolute, has a drive, `..` or a control character, or is empty.
    """
    windows = PureWindowsPath(path)
    unsafe = (
        not path
        or not path.isprintable()
        or PurePosixPath(path).is_absolute()
        or windows.drive
        or windows.root
        or ".." in windows.parts
        or not windows.parts
    )
    if unsafe:
        raise UnsafeInputError(
            f"{label}: refused the data file path {path!r}, which may lie outside the checkpoint"[
                :500
            ],
            "Nothing was read from it. Do not use this checkpoint unless you know who wrote it.",
        )
    return path


def _add_safetensors(merged: _Merged, folder: Path, name: str, digest: Any) -> None:
    with open(open_inside(folder, name), "rb") as file:
        tensors, metadata = read_header(file, name)
        file.seek(0)
        digest.update(file.read(tensors[0].offset if tensors else -1))
    offsets = saved_offsets(tensors, metadata, name)
    for tensor in tensors:
        begin = offsets.get(tensor.name, (0,) * len(tensor.shape))
        chunk = Chunk(begin, tensor.shape, name, tensor.offset, tensor.size_bytes, is_record=False)
        extent = tuple(map(int.__add__, begin, tensor.shape))
        merged.add(tensor.name, tensor.dtype.name, extent, None, [chunk], grow=True)
