"""Precision, files like the base model's, and transposed or reordered tensors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import hubmerge
from hubmerge.checkpoint.boxes import BLOCK_BYTES, same_elements
from hubmerge.checkpoint.data_files import DataFiles
from hubmerge.checkpoint.metadata import read_checkpoint
from hubmerge.conversion.shard_writer import write_shard
from hubmerge.errors import CheckpointError, UsageError
from hubmerge.names.options import NamingOptions
from hubmerge.names.views import TensorView
from hubmerge.names.weights import Naming, Weight
from hubmerge.planning.plan import make_plan
from tests.support.checkpoints.fixtures import checkpoint_path
from tests.support.oracle import same_tensor
from tests.support.trainers.models import build
from tests.support.trainers.saves import State, save, save_config

HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"


def written(folder: Path) -> State:
    """All tensors of a model folder."""
    return {n: t for path in folder.glob("*.safetensors") for n, t in load_file(path).items()}


def test_large_tensors_are_compared_whole(tmp_path: Path) -> None:
    """A difference in the last block of many is found, with two blocks of memory for each."""
    rows = 3 * BLOCK_BYTES // 4 // 64
    one = torch.randn(rows, 64)
    other = one.clone()
    other[-1, -1] = 0.0
    checkpoint = read_checkpoint(
        save(tmp_path / "c", {"model": {"a.w": one, "b.w": one.clone(), "c.w": other}})
    )
    tensors = checkpoint.tensors
    files = DataFiles(checkpoint.folder)
    assert same_elements(tensors["model.a.w"], tensors["model.b.w"], files)
    assert not same_elements(tensors["model.a.w"], tensors["model.c.w"], files)


def dtypes_of(folder: Path) -> dict[str, torch.dtype]:
    """The dtype of each tensor."""
    return {name: tensor.dtype for name, tensor in written(folder).items()}


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "auto"])
@pytest.mark.parametrize(
    ("name", "kept", "beside"),
    [
        ("deepseek_v3", "mlp.gate.e_score_correction_bias", {"bfloat16", "float16"}),
        ("gpt_oss", "input_layernorm.weight", {"float16"}),
    ],
)
def test_the_architecture_keeps_fp32(
    name: str, kept: str, beside: set[str], dtype: str, tmp_path: Path
) -> None:
    """What transformers' own cast leaves in fp32 stays so, beside that dtype, and nothing else."""
    from transformers import AutoModelForCausalLM

    model = build(name)
    checkpoint = save(tmp_path / "checkpoint", {"model": model.state_dict()})
    assets = save_config(tmp_path / "assets", model)
    hubmerge.convert(checkpoint, tmp_path / "out", model_assets_dir=assets, dtype=dtype)
    # Which tensors those are differs between releases of transformers: ask the installed one.
    model.save_pretrained(tmp_path / "trained")
    cast = AutoModelForCausalLM.from_pretrained(tmp_path / "trained", dtype=dtype)
    cast.save_pretrained(tmp_path / "cast")
    found = dtypes_of(tmp_path / "out")
    assert found == dtypes_of(tmp_path / "cast")
    is_kept = dtype == "auto" or dtype in beside
    assert found[f"model.layers.1.{kept}"] == getattr(torch, "float32" if is_kept else dtype)
    assert found[EMBEDDING] == getattr(torch, "float32" if dtype == "auto" else dtype)


@pytest.mark.parametrize("dtype", ["bfloat16", "auto"])
def test_the_base_model_keeps_fp32(dtype: str, tmp_path: Path) -> None:
    """What the base model holds in fp32 beside bf16 weights is fp32 here too, with no config."""
    state = {f"model.layers.{i}.weight": torch.randn(4, 4) for i in range(3)}
    state["model.gate.bias"] = torch.randn(4, dtype=torch.float32)
    base = tmp_path / "base"
    base.mkdir()
    save_file(
        {n: t if n.endswith("bias") else t.bfloat16() for n, t in state.items()},
        base / "model.safetensors",
    )
    stored = {n: t.bfloat16() for n, t in state.items()} if dtype == "auto" else state
    checkpoint = save(tmp_path / "checkpoint", {"model": stored})
    naming = NamingOptions(base_model=str(base))
    hubmerge.convert(checkpoint, tmp_path / "out", dtype=dtype, naming=naming)
    found = dtypes_of(tmp_path / "out")
    assert found.pop("model.gate.bias") == torch.float32
    assert set(found.values()) == {torch.bfloat16}


def test_the_user_keeps_a_dtype(tmp_path: Path) -> None:
    """--keep-dtype leaves names that match as they are stored; integers are never cast anyway."""
    state = {
        "a.A_log": torch.randn(3, dtype=torch.float64),
        "a.weight": torch.randn(3),
        "a.count": torch.arange(3),
        "a.codes": torch.randn(3).to(torch.float8_e4m3fn),
    }
    checkpoint = save(tmp_path / "checkpoint", {"model": state})
    with pytest.raises(CheckpointError, match=r"codes.*float8") as refusal:
        hubmerge.convert(checkpoint, tmp_path / "out")
    assert "--keep-dtype" in refusal.value.hint
    naming = NamingOptions(keep_dtype=(r"A_log$", "codes"))
    hubmerge.convert(checkpoint, tmp_path / "out", naming=naming)
    assert dtypes_of(tmp_path / "out") == {
        "a.A_log": torch.float64, "a.weight": torch.bfloat16, "a.count": torch.int64,
        "a.codes": torch.float8_e4m3fn,
    }  # fmt: skip


@pytest.mark.parametrize(("value", "overflows"), [(65504.0, False), (65520.0, True), (-1e6, True)])
def test_float16_overflow(value: float, overflows: bool, tmp_path: Path) -> None:
    """A finite value that float16 cannot hold stops the run by name, unless that is allowed."""
    weight = torch.zeros(BLOCK_BYTES // 4 + 7)  # the value stands in the second block
    weight[-1] = value
    weight[0] = torch.inf  # was infinite before: no overflow
    checkpoint = save(tmp_path / "checkpoint", {"model": {"a.big": weight, "a.b": torch.ones(2)}})
    if overflows:
        with pytest.raises(CheckpointError, match=r"'a\.big' holds"):
            hubmerge.convert(checkpoint, tmp_path / "out", dtype="float16")
        assert not list((tmp_path / "out").glob("*.safetensors"))
    naming = NamingOptions(allow_overflow=overflows)
    hubmerge.convert(checkpoint, tmp_path / "out", dtype="float16", naming=naming)
    assert torch.equal(written(tmp_path / "out")["a.big"], weight.half())


def base_model(folder: Path, state: State) -> dict[str, str]:
    """A base model in three files; returns the file of each tensor."""
    folder.mkdir()
    names = sorted(state)
    groups = {f"model-{i + 1:05d}-of-00003.safetensors": names[i::3] for i in range(3)}
    for file, members in groups.items():
        save_file({n: state[n] for n in members}, folder / file, metadata={"format": "pt"})
    weight_map = {n: file for file, members in groups.items() for n in members}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return weight_map


def test_shards_like_the_base_models(tmp_path: Path) -> None:
    """Each tensor stands in its base model's file, and each file is `save_file`'s to the byte."""
    state = {n: t.bfloat16() for n, t in build("llama").state_dict().items()}
    weight_map = base_model(tmp_path / "base", state)
    checkpoint = save(tmp_path / "checkpoint", {"model": state})
    naming = NamingOptions(base_model=str(tmp_path / "base"), like_base_shards=True)
    hubmerge.convert(checkpoint, tmp_path / "out", naming=naming, shard_size=1)
    index = json.loads((tmp_path / "out/model.safetensors.index.json").read_text())
    assert index["weight_map"] == weight_map
    for path in (tmp_path / "base").glob("*.safetensors"):
        assert (tmp_path / "out" / path.name).read_bytes() == path.read_bytes()


def test_shards_like_a_base_model_that_lacks_a_tensor(tmp_path: Path) -> None:
    """A tensor without a place, and a base model that is not there, are errors with a way out."""
    state = dict(build("llama").state_dict())
    base_model(tmp_path / "base", state)
    state["model.more.weight"] = torch.ones(3)
    checkpoint = save(tmp_path / "checkpoint", {"model": state})
    naming = NamingOptions(
        base_model=str(tmp_path / "base"), like_base_shards=True, check_model=False
    )
    with pytest.raises(CheckpointError, match=r"no file for model\.more\.weight"):
        hubmerge.plan(checkpoint, naming=naming)
    with pytest.raises(UsageError, match="--like-base-shards"):
        hubmerge.plan(checkpoint, naming=NamingOptions(like_base_shards=True))
    with pytest.raises(UsageError, match="neither a folder"):
        hubmerge.plan(checkpoint, naming=NamingOptions(base_model="../not/a/name"))


def test_a_base_model_in_the_local_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A repository's name finds its cached snapshot without a network; one that is not cached is
    told, and the run goes on."""
    snapshot = tmp_path / "hub/models--org--base/snapshots/" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (tmp_path / "hub/models--org--base/refs").mkdir()
    (tmp_path / "hub/models--org--base/refs/main").write_text("0" * 40)
    save_file({"model.a.weight": torch.ones(2)}, snapshot / "model.safetensors")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    checkpoint = save(tmp_path / "checkpoint", {"model": {"inner.model.a.weight": torch.ones(2)}})
    planned, _ = hubmerge.plan(checkpoint, naming=NamingOptions(base_model="org/base"))
    assert [t.name for s in planned.shards for t in s.tensors] == ["model.a.weight"]
    planned, _ = hubmerge.plan(checkpoint, naming=NamingOptions(base_model="org/other"))
    assert any("not in the local cache" in warning for warning in planned.warnings)


BIG = (3, 700, 1300)


def write_weights(folder: Path, source: Path, weights: list[Any], dtype: str = "auto") -> State:
    """Plan these weights by hand and stream them."""
    checkpoint = read_checkpoint(source)
    planned = make_plan(checkpoint, Naming(weights, [], ""), dtype=dtype, shard_size=10**9)
    folder.mkdir(exist_ok=True)
    write_shard(planned.shards[0], DataFiles(source), folder, lambda _: None)
    return written(folder)


@pytest.mark.parametrize("dtype", ["auto", "bfloat16"])
def test_transposed_and_stepped_parts_are_streamed(dtype: str, tmp_path: Path) -> None:
    """Larger than any block, cast and not: elements and order are torch's own."""
    tensor = torch.randn(BIG)
    matrix = torch.randn(1999, 701)
    source = save(tmp_path / "c", {"model": {"t.w": tensor, "m.w": matrix}})
    checkpoint = read_checkpoint(source)
    stack, rows = (TensorView.whole(checkpoint.tensors[f"model.{n}.w"]) for n in "tm")
    weights = [
        Weight("expert", stack[1].transpose(0, 1)),
        Weight("all", stack.permute(2, 1, 0)),
        Weight("odd, even", TensorView.cat([rows[1::2], rows[::2]])),
    ]
    found = write_weights(tmp_path / "out", source, weights, dtype)
    expected = {
        "expert": tensor[1].t(),
        "all": tensor.permute(2, 1, 0),
        "odd, even": torch.cat([matrix[1::2], matrix[::2]]),
    }
    target = torch.float32 if dtype == "auto" else torch.bfloat16
    for name, value in expected.items():
        assert torch.equal(found[name], value.to(target)), name


@pytest.mark.parametrize("case", ["rows_and_columns_2", "llama_fsdp_3", "llama_fsdp_tp_4"])
def test_stepped_rows_of_sharded_tensors(case: str, tmp_path: Path) -> None:
    """Every third row, and the transposed, of tensors that ranks cut anywhere."""
    source = checkpoint_path(case)
    hubmerge.convert(source, tmp_path / "plain", dtype="auto")
    with safe_open(tmp_path / "plain/model.safetensors", "pt") as file:
        plain = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    checkpoint = read_checkpoint(source)
    weights, expected = [], {}
    for key, stored in checkpoint.tensors.items():
        name = key.removeprefix("model.")
        if len(stored.shape) != 2 or min(stored.shape) < 3 or name not in plain:
            continue
        view = TensorView.whole(stored)
        weights += [Weight(f"3 {name}", view[1::3]), Weight(f"t {name}", view.transpose(0, 1))]
        expected |= {f"3 {name}": plain[name][1::3], f"t {name}": plain[name].t()}
    found = write_weights(tmp_path / "out", source, weights)
    assert len(expected) > 4
    differ = [name for name in expected if not same_tensor(found[name], expected[name])]
    assert differ == []
