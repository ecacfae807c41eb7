"""One model of several is published, for a reason that is said, or the user is asked."""

from __future__ import annotations

from typing import Any

import pytest

from hubmerge.errors import CheckpointError, UsageError
from hubmerge.names.naming import ModelSpec, name_weights
from hubmerge.names.options import NamingOptions
from hubmerge.names.reference import Reference
from hubmerge.names.weights import Naming
from tests.support.checkpoints.described import BASE, HIDDEN, LLAMA, described, moments, under

CRITIC = {**{n: s for n, s in LLAMA.items() if n != "lm_head.weight"}, "v_head.weight": (1, HIDDEN)}
NUMBERED = list(LLAMA.values())
FLAT = {name.replace(".", ""): shape for name, shape in LLAMA.items()}


def names_of(naming: Naming) -> set[str]:
    """Return the decided names."""
    return {weight.name for weight in naming.weights}


AVERAGES: dict[str, dict[str, Any]] = {
    "ema": {"model": LLAMA, "ema": LLAMA},
    "ema_model": {"model": LLAMA, "ema_model": under("module.", LLAMA) | {"n_averaged": ()}},
    "swa": {"state": {"model": LLAMA, "swa": {"model": LLAMA}, "optim": moments(LLAMA)}},
    "net": under("net.", LLAMA) | under("net_ema.", LLAMA),
    "one object": {"ema": under("online_model.", LLAMA) | under("ema_model.", LLAMA)},
    "beside the bare model": LLAMA | under("ema.", LLAMA),
    "in the bare model": {"model": LLAMA | under("ema_model.module.", LLAMA)},
    "inside": {"model": under("model.", LLAMA) | under("ema.", LLAMA)},
}


def _is_averaged(key: str) -> bool:
    return "online" not in key and ("ema" in key or "swa" in key)


@pytest.mark.parametrize("paths", [True, False])
@pytest.mark.parametrize("kind", AVERAGES)
def test_an_average_beside_the_model(kind: str, paths: bool) -> None:
    """The model is published, and `--ema` is offered; it publishes the average."""
    counter = {"ema_model.n_averaged": "int64"}
    checkpoint = described(AVERAGES[kind], dtypes=counter, paths=paths)
    naming = name_weights(checkpoint)
    assert names_of(naming) == set(LLAMA)
    assert not any(_is_averaged(w.key) for w in naming.weights)
    assert any("EMA copy (--ema" in warning for warning in naming.warnings)
    averaged = name_weights(checkpoint, NamingOptions(ema=True))
    assert names_of(averaged) == set(LLAMA)
    assert all(_is_averaged(w.key) for w in averaged.weights)


@pytest.mark.parametrize("state", [
    {"model": LLAMA, "ema": {"shadow_params": NUMBERED}},
    LLAMA | {f"ema.shadow_params.{i}": shape for i, shape in enumerate(NUMBERED)},
    under("model.", LLAMA) | under("model_ema.", FLAT),
])  # fmt: skip
def test_an_average_without_names(state: dict[str, Any]) -> None:
    """It is left out with a word, and cannot be asked for."""
    naming = name_weights(described(state))
    assert names_of(naming) == set(LLAMA)
    assert any("EMA copy" in warning for warning in naming.warnings)
    with pytest.raises(UsageError, match="--ema"):
        name_weights(described(state), NamingOptions(ema=True))


def test_an_average_alone() -> None:
    """It is all there is: its prefix and its counters go, and that it is one is said."""
    lone = under("ema_model.", LLAMA) | {"initted": (), "step": ()}
    naming = name_weights(described(lone, dtypes={"initted": "bool", "step": "int64"}))
    assert names_of(naming) == set(LLAMA)
    assert any("only an EMA copy" in warning for warning in naming.warnings)


def test_there_is_no_average() -> None:
    """`--ema` does not publish something else."""
    with pytest.raises(UsageError, match="no EMA copy"):
        name_weights(described({"model": LLAMA}), NamingOptions(ema=True))


@pytest.mark.parametrize("paths", [True, False])
@pytest.mark.parametrize(
    ("state", "keys"),
    [
        ({"actor": LLAMA, "critic": CRITIC}, {"actor", "critic"}),
        (under("actor.", LLAMA) | under("critic.", CRITIC), {"actor", "critic"}),
        ({"state_dict": under("student.", LLAMA) | under("teacher.", LLAMA)},
         {"state_dict.student", "state_dict.teacher"}),
        ({"model": under("_forward_module.q.", LLAMA) | under("_forward_module.target.", LLAMA)},
         {"model._forward_module.q", "model._forward_module.target"}),
    ],
)  # fmt: skip
def test_the_user_is_asked(state: dict[str, Any], keys: set[str], paths: bool) -> None:
    """Each --model-key of the hint works."""
    checkpoint = described(state, paths=paths)
    with pytest.raises(UsageError, match="holds 2 models") as refusal:
        name_weights(checkpoint)
    for key in keys:
        assert f"--model-key {key}" in refusal.value.hint
        naming = name_weights(checkpoint, NamingOptions(model_key=key))
        assert all(weight.key.startswith(f"{key}.") for weight in naming.weights)
        assert names_of(naming) >= set(LLAMA) - {"lm_head.weight"}


@pytest.mark.parametrize("root", ["", "model."])
@pytest.mark.parametrize("name", ["reference", "optimizer_model"])
def test_a_copy_beside_the_bare_model_is_asked_about(root: str, name: str) -> None:
    """Each choice of the hint works: the copy, the model beside it, and all."""
    state = LLAMA | under(f"{name}.", LLAMA)
    checkpoint = described({"model": state} if root else state)
    with pytest.raises(UsageError, match="holds 2 models") as refusal:
        name_weights(checkpoint)
    assert f"--model-key {root}{name}," in refusal.value.hint
    pattern = refusal.value.hint.split("--exclude '")[1].split("'")[0]
    copied = name_weights(checkpoint, NamingOptions(model_key=f"{root}{name}"))
    bare = name_weights(checkpoint, NamingOptions(exclude=(pattern,)))
    assert names_of(copied) == names_of(bare) == set(LLAMA)
    assert all(weight.key.startswith(f"{root}{name}.") for weight in copied.weights)
    assert all(weight.key.startswith((f"{root}model.", f"{root}lm_")) for weight in bare.weights)
    everything = refusal.value.hint.split("--include '")[1].split("'")[0]
    both = name_weights(checkpoint, NamingOptions(include=(everything,)))
    assert len(names_of(both)) == 2 * len(LLAMA)


def test_an_average_beside_the_bare_model_that_a_config_names() -> None:
    """The model's names are known, and those of the copy are not among them."""
    spec = ModelSpec(reference=Reference("base", dict.fromkeys(LLAMA, "f"), {}))
    checkpoint = described(LLAMA | under("ema.", LLAMA))
    for ema in (False, True):
        naming = name_weights(checkpoint, NamingOptions(ema=ema), truth=spec)
        assert names_of(naming) == set(LLAMA)
        assert all(weight.key.startswith("ema.") == ema for weight in naming.weights)


def test_a_copy_that_the_config_has_is_part_of_the_model() -> None:
    """No question is asked about a model that has both."""
    both = LLAMA | under("teacher.", LLAMA)
    spec = ModelSpec(reference=Reference("base", dict.fromkeys(both, "f"), {}))
    assert names_of(name_weights(described(both), truth=spec)) == set(both)


def test_the_config_may_tell_which() -> None:
    """The one that has what the model has is taken, and that is said."""
    spec = ModelSpec(reference=Reference("base", dict.fromkeys(LLAMA, "f"), {}))
    naming = name_weights(described({"actor": LLAMA, "critic": CRITIC}), truth=spec)
    assert names_of(naming) == set(LLAMA)
    assert any("'actor', because" in w and "--model-key critic" in w for w in naming.warnings)


def test_two_towers_of_one_model_are_one_model() -> None:
    """A model that has the names of both is not asked about."""
    both = under("query.", LLAMA) | under("passage.", LLAMA)
    spec = ModelSpec(reference=Reference("base", dict.fromkeys(both, "f"), {}))
    assert names_of(name_weights(described(both), truth=spec)) == set(both)
    with pytest.raises(UsageError) as refusal:
        name_weights(described(both))
    pattern = refusal.value.hint.split("--include '")[1].split("'")[0]
    assert names_of(name_weights(described(both), NamingOptions(include=(pattern,)))) == set(both)


def test_what_stands_outside_is_named() -> None:
    """Trained tensors beside the model do not disappear in silence; counters and metrics may."""
    beside = {"criterion.weight": (32,), "acc.tp": (2,), "seen": ()}
    state = {"state_dict": under("net.", LLAMA) | beside, "scale": (4,)}
    dtypes = {"state_dict.acc.tp": "int64", "state_dict.seen": "int64"}
    naming = name_weights(described(state, dtypes=dtypes))
    assert names_of(naming) == set(LLAMA)
    said = " ".join(naming.warnings)
    assert "state_dict.criterion.weight" in said
    assert ": scale" in said
    assert "seen" not in said


def test_a_head_is_not_left_out() -> None:
    """A base model's config beside a checkpoint with a head is the wrong one: it stays."""
    spec = ModelSpec(reference=Reference("base", dict.fromkeys(BASE, "f"), {}))
    naming = name_weights(described(LLAMA | {"v_head.weight": (1, HIDDEN)}), truth=spec)
    assert names_of(naming) == {*BASE, "lm_head.weight"}
    assert any("v_head.weight" in warning for warning in naming.warnings)


def test_integers_that_a_model_needs_are_kept() -> None:
    """A draft model's vocabulary maps and BatchNorm's counter, at the top level too."""
    needed = {"d2t": (8,), "t2d": (32,), "num_batches_tracked": (), "bn.num_batches_tracked": ()}
    kinds = {"d2t": "int64", "t2d": "bool", "num_batches_tracked": "int64"}
    naming = name_weights(described({"fc.weight": (4, 4)} | needed, dtypes=kinds))
    assert names_of(naming) == {"fc.weight", *needed}


def test_an_empty_tensor_counts_as_absent() -> None:
    """FSDP leaves tensors of shape (0,) where a rank has nothing."""
    naming = name_weights(described({"model": LLAMA | {"lm_head.weight": (0,)}}))
    assert names_of(naming) == set(LLAMA) - {"lm_head.weight"}
    assert any("lm_head.weight" in warning for warning in naming.warnings)


@pytest.mark.parametrize("trainer", ["torchtune", "Megatron", "LitGPT"])
def test_names_of_other_trainers(trainer: str) -> None:
    """Without a config it is said that no model of transformers has such names."""
    name = {
        "torchtune": "layers.0.attn.q_proj.weight",
        "Megatron": "decoder.layers.0.self_attention.linear_qkv.weight",
        "LitGPT": "transformer.h.0.attn.qkv.weight",
    }[trainer]
    warnings = name_weights(described({name: (4, 4)})).warnings
    assert any(trainer in warning and name in warning for warning in warnings)


PACKED = {name: (128, 1) if "_proj" in name else shape for name, shape in LLAMA.items()}
SCALES = {f"{n}.absmax": (4,) for n in PACKED} | {f"{n}.quant_state.x": (9,) for n in PACKED}


@pytest.mark.parametrize(
    ("state", "dtype"), [(PACKED | SCALES, "float32"), (PACKED, "uint8"), (PACKED, "bfloat16")]
)
def test_packed_weights_are_refused(state: dict[str, tuple[int, ...]], dtype: str) -> None:
    """4-bit codes are no weights, whatever their type says; the hint has another way."""
    dtypes = {f"model.{name}": dtype for name in PACKED if "_proj" in name}
    with pytest.raises(CheckpointError, match="bitsandbytes") as refusal:
        name_weights(described({"model": state}, dtypes=dtypes))
    assert "Dequantize" in refusal.value.hint


def test_a_column_is_not_packed() -> None:
    """A linear layer with one input has such a weight too."""
    state = {"model": LLAMA | {"model.layers.0.time.weight": (128, 1)}}
    assert len(name_weights(described(state)).weights) == len(LLAMA) + 1


def test_leaving_out_the_adapter_is_said() -> None:
    """What remains is the base model, and would pass for the fine-tune."""
    trained = {"layers.0.wq.lora_a.weight": (2, 16), "layers.0.wq.lora_b.weight": (16, 2)}
    checkpoint = described({"model": LLAMA | trained})
    naming = name_weights(checkpoint, NamingOptions(exclude=("lora_a", "lora_b")))
    assert any("--exclude leaves out the adapter" in warning for warning in naming.warnings)
    naming = name_weights(described(LLAMA), NamingOptions(exclude=("lora_a",)))
    assert not any("--exclude" in warning for warning in naming.warnings)
