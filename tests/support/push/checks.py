"""What must hold after every push, whatever happened on the way."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from transformers import AutoModelForCausalLM

from tests.support import oracle
from tests.support.fake_hub import Hub
from tests.support.fake_hub.repo import Files
from tests.support.push.models import SHARD_SIZE, Model

INDEX = oracle.INDEX_NAME


def weights_of(files: Files) -> dict[str, str]:
    """The weight files of a tree and the index, with the id of their content."""
    return {
        path: entry.oid
        for path, entry in files.items()
        if path.endswith(".safetensors") or path == INDEX
    }


def expected_weights(model: Model, shard_size: int = SHARD_SIZE) -> dict[str, str]:
    """What `weights_of` must give for a published model."""
    found = {}
    for name, content in model.weights(shard_size).items():
        blob = b"blob %d\0" % len(content) + content
        git = hashlib.sha1(blob, usedforsecurity=False).hexdigest()
        found[name] = git if name == INDEX else hashlib.sha256(content).hexdigest()
    return found


def readers_saw_only(hub: Hub, repo_id: str, *whole: dict[str, str], branch: str = "main") -> None:
    """Every state that the branch was ever in is no model at all, or one of these, whole."""
    states = [weights_of(state.files) for state in hub.states(repo_id, branch)]
    assert states
    seen = [
        state for number, state in enumerate(states) if number == 0 or state != states[number - 1]
    ]
    for state in seen:
        assert state == {} or state in whole
    assert len(seen) <= 1 + len(whole)
    for state in hub.states(repo_id, branch):
        if weights_of(state.files):
            assert {"config.json", "README.md"} <= state.files.keys()


def staging_branches(hub: Hub, repo_id: str) -> list[str]:
    """The staging branches that are left."""
    return [ref for ref in hub.repo(repo_id).refs if ref.startswith("refs/heads/hubmerge/")]


def downloads_whole(
    hub: Hub, model: Model, folder: Path, *, repo_id: str, revision: str = "main",
    shard_size: int = SHARD_SIZE,
) -> Path:  # fmt: skip
    """What a user downloads is byte-identical to what was to be published, and loads."""
    path = Path(
        snapshot_download(
            repo_id, revision=revision, local_dir=folder, token=hub.token,
            endpoint=hub.url,
        )
    )  # fmt: skip
    for name, content in model.weights(shard_size).items():
        assert (path / name).read_bytes() == content, name
    config = json.loads((model.assets / "config.json").read_text())
    assert json.loads((path / "config.json").read_text()) == config | {"dtype": "bfloat16"}
    loaded = AutoModelForCausalLM.from_pretrained(path).state_dict()
    for name, tensor in model.tensors.items():
        assert torch.equal(loaded[name], tensor.to(torch.bfloat16)), name
    return path
