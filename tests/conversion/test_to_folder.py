"""Conversion of real checkpoints, against torch, safetensors and transformers themselves."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

import hubmerge
from hubmerge.names.options import NamingOptions
from tests.support import oracle
from tests.support.checkpoints.cases_models import CHAT_TEMPLATE
from tests.support.checkpoints.cases_plain import save_model_alone
from tests.support.checkpoints.fixtures import (
    CASES,
    assets_path,
    checkpoint_path,
    expected_tensors,
    load_all,
)

DEFAULT_SHARD_SIZE = 2_000_000_000

# Of a folder, what neither torch nor transformers writes.
OURS = {"README.md", ".hubmerge.json"}
ASSETS = {"config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json",
          "chat_template.jinja"}  # fmt: skip

# Small enough to part every case, and another one for each dtype so that all get their turn.
SHARD_SIZES = {"bfloat16": 1, "float16": 150, "float32": 4_000, "auto": 700}
BIG_CASES = {"several_shards", "several_shards_2", "zstd"}
MODEL_CASES = sorted(name for name, case in CASES.items() if case.is_model)


def wanted(name: str, dtype: str) -> dict[str, torch.Tensor]:
    """The case's model tensors by Hub name, cast."""
    named = oracle.hub_tensors(expected_tensors(name), bare=CASES[name].naming == "bare")
    return oracle.cast(named, dtype)


def assert_converted(folder: Path, tensors: Mapping[str, torch.Tensor], shard_size: int) -> None:
    """The folder holds these tensors in exactly the files that `save_file` would write."""
    found = {name: tensor for path in folder.glob("*.safetensors")
             for name, tensor in load_file(path).items()}  # fmt: skip
    assert found.keys() == tensors.keys()
    differ = [name for name in tensors if not oracle.same_tensor(found[name], tensors[name])]
    assert not differ
    expected = oracle.expected_folder(tensors, shard_size)
    written = {p.name: p.read_bytes() for p in folder.iterdir() if p.name not in OURS}
    assert written.keys() == expected.files.keys()
    assert [name for name in written if written[name] != expected.files[name]] == []


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.torch_reads])
def test_cases_hold_what_torch_loads(name: str) -> None:
    """The tensors that a case expects are those that torch's own `dcp.load` returns."""
    loaded, expected = load_all(checkpoint_path(name)), expected_tensors(name)
    assert expected
    for key, tensor in expected.items():
        assert oracle.same_tensor(loaded[key], tensor), key


@pytest.mark.parametrize("name", CASES)
def test_one_file(name: str, tmp_path: Path) -> None:
    """Every case becomes one `model.safetensors`, byte for byte what `save_file` writes."""
    dtype = CASES[name].dtypes[0]
    hubmerge.convert(checkpoint_path(name), tmp_path / "out", dtype=dtype)
    assert_converted(tmp_path / "out", wanted(name, dtype), DEFAULT_SHARD_SIZE)


@pytest.mark.parametrize(
    ("name", "dtype"), [(name, dtype) for name, case in CASES.items() for dtype in case.dtypes]
)
def test_shards_and_dtypes(name: str, dtype: str, tmp_path: Path) -> None:
    """Every case becomes, in every dtype, the old script's shards and index."""
    size = SHARD_SIZES[dtype] * (5_000 if name in BIG_CASES else 1)
    naming = NamingOptions(allow_overflow=True)  # the cases hold values that float16 cannot
    hubmerge.convert(
        checkpoint_path(name), tmp_path / "out", dtype=dtype, shard_size=size, naming=naming
    )
    assert_converted(tmp_path / "out", wanted(name, dtype), size)


@pytest.mark.parametrize("shard_size", [1_000_000, 4_500_000, 9_009_002, 9_009_001])
@pytest.mark.parametrize("name", ["several_shards", "several_shards_2"])
def test_larger_shards(name: str, shard_size: int, tmp_path: Path) -> None:
    """Shards of megabytes, among them one that a tensor just fits and one that it just exceeds."""
    hubmerge.convert(checkpoint_path(name), tmp_path / "out", shard_size=shard_size)
    assert_converted(tmp_path / "out", wanted(name, "bfloat16"), shard_size)


def test_a_shard_may_be_exactly_full(tmp_path: Path) -> None:
    """A model of exactly the shard size stays in one file; one byte less parts it."""
    tensors = wanted("rows_and_columns_2", "bfloat16")
    total = sum(tensor.nbytes for tensor in tensors.values())
    for shard_size, count in ((total, 1), (total - 1, 2)):
        out = tmp_path / str(shard_size)
        hubmerge.convert(checkpoint_path("rows_and_columns_2"), out, shard_size=shard_size)
        assert len(list(out.glob("*.safetensors"))) == count
        assert_converted(out, tensors, shard_size)


@pytest.mark.parametrize("name", ["dtypes_fp8", "fp8_2", "dtypes_fp4"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_fp8_is_never_cast(name: str, dtype: str, tmp_path: Path) -> None:
    """Without its scale it means nothing: refused before a file is written, with the way out."""
    out = tmp_path / "out"
    with pytest.raises(hubmerge.HubmergeError) as refusal:
        hubmerge.convert(checkpoint_path(name), out, dtype=dtype)
    assert re.search("float[48]_e", str(refusal.value))
    assert "auto" in refusal.value.hint
    assert not out.exists() or not list(out.iterdir())


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
@pytest.mark.parametrize(
    "tensor",
    [
        torch.zeros(1, dtype=torch.uint8).view(torch.float4_e2m1fn_x2).reshape(()),
        torch.zeros(3, dtype=torch.complex128),
    ],
)
def test_what_safetensors_cannot_hold(tensor: torch.Tensor, tmp_path: Path) -> None:
    """`save_file` refuses these too; the message names the tensor and the way to leave it out."""
    with pytest.raises((SafetensorError, ValueError, KeyError)):
        save_file({"a": tensor}, tmp_path / "refused.safetensors")
    save_model_alone(tmp_path / "checkpoint", {"model.a.weight": tensor, "model.b": torch.zeros(2)})
    with pytest.raises(
        hubmerge.HubmergeError, match=r"model\.a\.weight.*no safetensors form"
    ) as refusal:
        hubmerge.convert(tmp_path / "checkpoint", tmp_path / "out", dtype="auto")
    assert refusal.value.hint
    naming = NamingOptions(exclude=(r"\.a\.weight$",))
    hubmerge.convert(tmp_path / "checkpoint", tmp_path / "out", dtype="auto", naming=naming)


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_a_lazily_conjugated_tensor_is_refused(tmp_path: Path) -> None:
    """torch stores the numbers unconjugated with a flag beside; they must not pass as they are."""
    tensor = torch.randn(4, dtype=torch.complex64).conj()
    save_model_alone(tmp_path / "checkpoint", {"model.rotation": tensor})
    with pytest.raises(hubmerge.HubmergeError, match="conjugated"):
        hubmerge.convert(tmp_path / "checkpoint", tmp_path / "out", dtype="auto")


def test_the_source_stays_untouched(tmp_path: Path) -> None:
    """Converting changes no file of the checkpoint, and adds none."""
    source = checkpoint_path("rows_and_columns_2")
    before = {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in source.iterdir()}
    hubmerge.convert(source, tmp_path / "out")
    after = {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in source.iterdir()}
    assert after == before


@pytest.mark.parametrize("shard_size", [DEFAULT_SHARD_SIZE, 20_000])
def test_the_command_reports_what_it_wrote(shard_size: int, tmp_path: Path) -> None:
    """`--json` names each shard with the size and sha256 that the file really has."""
    out = tmp_path / "out"
    report = run_json(checkpoint_path("llama_fsdp_2"), out, "--shard-size", str(shard_size))
    tensors = wanted("llama_fsdp_2", "bfloat16")
    expected = oracle.expected_folder(tensors, shard_size)
    assert Path(report["save_dir"]) == out
    assert report["shards"] == [
        {"filename": name, "size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        for name, data in sorted(expected.files.items())
        if name != oracle.INDEX_NAME
    ]
    assert report["total_size"] == expected.total_size
    assert report["total_parameters"] == expected.total_parameters
    assert report["seconds"] > 0
    dropped = json.dumps(report["dropped"])
    assert "optimizer.state.model.embed_tokens.weight.exp_avg" in dropped
    assert_converted(out, tensors, shard_size)


def run_json(load_dir: Path, save_dir: Path, *options: str) -> dict[str, Any]:
    """`python -m hubmerge push --no-push --json`: the object that it prints."""
    command = [sys.executable, "-m", "hubmerge", "push", "--load-dir", str(load_dir), "--no-push",
               "--save-dir", str(save_dir), "--json", *options]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    report: dict[str, Any] = json.loads(done.stdout)
    return report


@pytest.mark.parametrize("name", MODEL_CASES)
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_transformers_gets_the_same_logits(name: str, dtype: str, tmp_path: Path) -> None:
    """`from_pretrained` builds the model that was trained: every logit is equal."""
    from transformers import AutoModelForCausalLM

    out = tmp_path / "out"
    hubmerge.convert(checkpoint_path(name), out, model_assets_dir=assets_path(name), dtype=dtype,
                     shard_size=20_000)  # fmt: skip
    loaded, info = AutoModelForCausalLM.from_pretrained(out, output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert loaded.dtype == getattr(torch, dtype)
    tokens = torch.arange(40).reshape(2, 20)
    with torch.no_grad():
        assert torch.equal(loaded(tokens).logits, trained_model(name, dtype)(tokens).logits)


def trained_model(name: str, dtype: str) -> Any:
    """The case's model, put together from its own tensors without hubmerge."""
    from transformers import AutoConfig, AutoModelForCausalLM

    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(assets_path(name)))
    model.load_state_dict(oracle.hub_tensors(expected_tensors(name)))
    return model.to(getattr(torch, dtype)).eval()


def test_a_trained_model_differs_from_a_fresh_one(tmp_path: Path) -> None:
    """The comparison of logits can fail: training has changed the weights."""
    from tests.support.checkpoints.cases_models import tiny_llama

    name, tokens = "llama_fsdp_2", torch.arange(40).reshape(2, 20)
    fresh = tiny_llama().eval()
    with torch.no_grad():
        logits = trained_model(name, "float32")(tokens).logits
        assert not torch.allclose(fresh(tokens).logits, logits, atol=1e-3)


def test_assets_are_copied_and_nothing_else(tmp_path: Path) -> None:
    """Config and tokenizer come verbatim, but for the dtype; weights and secrets stay behind."""
    out, assets = tmp_path / "out", assets_path("llama_fsdp_2")
    hubmerge.convert(checkpoint_path("llama_fsdp_2"), out, model_assets_dir=assets)
    written = {path.name for path in out.iterdir()} - OURS
    assert written == ASSETS | {"model.safetensors"}
    for name in ASSETS - {"config.json"}:
        assert (out / name).read_bytes() == (assets / name).read_bytes(), name
    before, after = (json.loads((folder / "config.json").read_text()) for folder in (assets, out))
    assert before["dtype"] == "float32"
    assert after == before | {"dtype": "bfloat16"}
    shard = (out / "model.safetensors").read_bytes()
    assert shard == oracle.shard_bytes(wanted("llama_fsdp_2", "bfloat16"))


def test_the_tokenizer_works_from_the_result(tmp_path: Path) -> None:
    """`AutoTokenizer` loads from the converted folder, chat template included."""
    from transformers import AutoTokenizer

    assets = assets_path("llama_fsdp_2")
    hubmerge.convert(checkpoint_path("llama_fsdp_2"), tmp_path / "out", model_assets_dir=assets)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer.decode(tokenizer("the cat sat").input_ids) == "the cat sat"
    assert tokenizer.chat_template == CHAT_TEMPLATE
