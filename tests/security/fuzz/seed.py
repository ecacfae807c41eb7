"""Write the honest part of the corpus: python -m tests.security.fuzz.seed"""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
import zstandard
from safetensors.torch import save

from tests.security.attacks.checkpoints import RECORD, of_data, of_description
from tests.security.attacks.pickles import one_tensor
from tests.security.fuzz.targets import CORPUS
from tests.support.checkpoints.cases_plain import save_alone

# Attacks are small enough to commit below this.
_MAX_BYTES = 3000


def real_files() -> tuple[bytes, bytes]:
    """`.metadata` and data of a real checkpoint."""
    with TemporaryDirectory() as scratch:
        folder = Path(scratch) / "checkpoint"
        model = {"model.a.weight": torch.ones(4, 4), "model.b": torch.ones(3, dtype=torch.uint16)}
        save_alone(folder, {"model": model, "optimizer": {"step": 7, "state": [1, "x"]}})
        return (folder / ".metadata").read_bytes(), (folder / "__0_0.distcp").read_bytes()


def seeds() -> dict[str, list[bytes]]:
    """Honest inputs of each target, and small attacks."""
    description, _ = real_files()
    small = [a.files[".metadata"] for a in (of_description() | of_data()).values()
             if len(a.files.get(".metadata", b"x" * _MAX_BYTES)) < _MAX_BYTES]  # fmt: skip
    pickles = [description, one_tensor(len(RECORD)), *small[120::6]]
    records = [a.files["__0_0.distcp"] for name, a in of_data().items()
               if name.startswith("record-") and "name" not in name]  # fmt: skip
    packed = [a.files["__0_0.distcp"] for name, a in of_data().items()
              if name.startswith("zstd-")]  # fmt: skip
    headers = [next(iter(a.files.values())) for name, a in of_description().items()
               if name.startswith("header-")]  # fmt: skip
    auto_map = {
        "auto_map": {"AutoModel": "ok.A", "AutoConfig": ["../x.A", None]},
        "dtype": "float32",
    }
    weight_map = {
        "metadata": {"total_size": 1},
        "weight_map": {"a": "model-00001-of-00001.safetensors"},
    }
    found = {
        "metadata": pickles,
        "inspection": pickles[:12],
        "record": [RECORD, *records],
        "compressed": [zstandard.ZstdCompressor().compress(RECORD), *packed],
        "header": [save({"a": torch.ones(2), "b": torch.ones(3)}), *headers],
        "config": [json.dumps(auto_map).encode()],
        "code": [b"from .ok import A\nfrom . import b\nclass A: pass\n"],
        "index": [json.dumps(weight_map).encode()],
    }
    return {name: [d for d in data if len(d) < _MAX_BYTES] for name, data in found.items()}


if __name__ == "__main__":
    for target, inputs in seeds().items():
        (CORPUS / target).mkdir(parents=True, exist_ok=True)
        for number, content in enumerate(inputs):
            (CORPUS / target / f"seed-{number:02d}").write_bytes(content)
