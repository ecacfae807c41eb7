"""What a trainer saves beside the weights is told at any depth, and no weight is taken for it."""

from __future__ import annotations

from typing import Any

import pytest

from hubmerge.names.training_state import OPTIMIZER, training_state
from tests.support.checkpoints.described import LLAMA, described, moments, under

Nested = dict[str, Any]

OPTIMIZERS: dict[str, Nested] = {
    "Composer": {"state": {"optimizers": {"DecoupledAdamW": {"state": moments(LLAMA)}}}},
    "fms-fsdp": {"optimizer_state": {"state": moments(LLAMA), "param_groups": [{"lr": ()}]}},
    "Modalities": {"app": {"optimizer": {"state": moments(LLAMA)}}},
    "numbered": {"optim": {"state": {0: {"exp_avg": (2, 2)}, 1: {"exp_avg_sq": (2, 2)}}}},
    "under the model's keys": {"model": {f"{n}.exp_avg": s for n, s in LLAMA.items()}},
    "SGD": {"o": {name: {"momentum_buffer": shape} for name, shape in LLAMA.items()}},
    "Adagrad": {"o": {name: {"sum": shape, "step": ()} for name, shape in LLAMA.items()}},
    "8 bits": {"o": {n: {"state1": s, "absmax1": (1,), "new": (3,)} for n, s in LLAMA.items()}},
    "torchao": {"o": {n: {"exp_avg": {"codes": s, "scale": (1,)}} for n, s in LLAMA.items()}},
    "Adafactor": {"o": {n: {"exp_avg_sq_row": s[:1]} for n, s in LLAMA.items()}},
    "Muon": {"m": {"state": {n: {"momentum_buffer": s} for n, s in LLAMA.items()}, "lr": ()}},
    "the dict itself": {"state": moments(LLAMA), "param_groups": {"lr": ()}},
    "its groups alone": {"param_groups": [{"lr": (), "betas": (2,)}]},
    "Shampoo": {"o": {n: {"preconditioners": {0: s}} for n, s in LLAMA.items()}},
    "optax": {"opt_state": {"mu": LLAMA, "nu": LLAMA}},
    "of an actor": {"actor_optimizer": {"x": (2, 2)}, "optimizer_0": {"x": (2, 2)}},
    "master weights": {"optimizer": {"fp32_master_weights": LLAMA}},
}


@pytest.mark.parametrize("paths", [True, False])
@pytest.mark.parametrize("trainer", OPTIMIZERS)
def test_moments_are_no_weights(trainer: str, paths: bool) -> None:
    """Whatever dict they are in and whatever lies beside them; the model beside them stays."""
    alone = described(OPTIMIZERS[trainer], paths=paths).tensors
    model = described({"net": LLAMA}, paths=paths).tensors
    state = training_state((alone | model).values())
    assert state == dict.fromkeys(alone, OPTIMIZER)


@pytest.mark.parametrize(
    "key", ["rng_state", "cuda_rng_state_0", "lr_schedulers.0.base_lrs", "dataloader.x.buffer"]
)
def test_a_trainers_own_state(key: str) -> None:
    """Schedulers, data loaders and random states, told by the dict or the top-level key."""
    checkpoint = described({key: (4,)} | LLAMA)
    assert list(training_state(checkpoint.tensors.values())) == [key]


def test_a_dict_called_trainer_may_hold_the_model() -> None:
    """The name counts only if there are no layers inside."""
    held = {"trainer": {"model": LLAMA, "optimizer": moments(LLAMA)}}
    state = training_state(described(held).tensors.values())
    assert set(state) == {key for key in described(held).tensors if ".optimizer." in key}


def test_a_module_under_a_dict_called_state_is_a_weight() -> None:
    """`state` is the optimizer's only if nearly everything in it belongs to moments."""
    both = {"state": LLAMA | under("o.", {f"{n}.exp_avg": s for n, s in LLAMA.items()})}
    state = training_state(described(both).tensors.values())
    assert set(state) == {key for key in described(both).tensors if key.endswith("exp_avg")}


def test_names_that_only_look_alike_are_weights() -> None:
    """No model's own buffer is dropped for its name."""
    names = {"layers.0.steps.weight": (2, 2), "layers.0.momentum.weight": (2, 2), "sum": (2,)}
    assert not training_state(described({"model": names}).tensors.values())
