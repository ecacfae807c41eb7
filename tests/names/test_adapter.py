"""PEFT adapters: what belongs to one, as PEFT itself decides it."""

from __future__ import annotations

import importlib
import inspect
import json
import pkgutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import hubmerge
from hubmerge.errors import CheckpointError
from hubmerge.names.options import NamingOptions
from hubmerge.names.peft_tuners import TUNERS, UNSUPPORTED
from tests.support.trainers.adapters import KINDS, adapted, base, config_of, pairs, trainable
from tests.support.trainers.models import logits
from tests.support.trainers.saves import State, save, save_config

ADAPTER = "adapter_model.safetensors"
ROOT = "base_model.model."
STEM = f"{ROOT}model.layers.0.self_attn.q_proj"


def published(tmp_path: Path, state: Any, config: Any, **naming: Any) -> State:
    """The tensors of the adapter that hubmerge makes of a state dict and PEFT's config."""
    checkpoint = save(tmp_path / "checkpoint", {"model": dict(state)})
    if isinstance(config, dict):
        (checkpoint / "adapter_config.json").write_text(json.dumps(config))
    elif config is not None:
        config.save_pretrained(str(checkpoint))
    options = NamingOptions(**naming)
    result = hubmerge.convert(checkpoint, tmp_path / "out", dtype="auto", naming=options)
    assert ("base_model" in naming) == (not any("not checked" in w for w in result.warnings))
    assert not any("could not be asked" in w for w in result.warnings)
    return load_file(tmp_path / "out" / ADAPTER)


def same(ours: State, theirs: State) -> bool:
    """Whether two state dicts have the same names and values."""
    return ours.keys() == theirs.keys() and all(torch.equal(ours[n], theirs[n]) for n in ours)


def loaded_logits(model: Any, folder: Path) -> torch.Tensor:
    """What the base model says with the adapter of this folder."""
    from peft import PeftModel

    return logits(PeftModel.from_pretrained(model, folder).eval())


@pytest.fixture(scope="module")
def base_dir(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with the base model's config."""
    return str(save_config(tmp_path_factory.mktemp("base"), base()))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", KINDS)
def test_what_belongs_to_an_adapter(kind: str, base_dir: str, tmp_path: Path) -> None:
    """Of a whole model and of what was trained: PEFT's names and values, and the same logits."""
    from peft import get_peft_model_state_dict
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    if KINDS[kind][0] not in PEFT_TYPE_TO_CONFIG_MAPPING:
        pytest.skip("this PEFT does not have it yet")
    model = adapted(base(), config_of(kind))
    wanted = logits(model)
    for name, state in (("whole", model.state_dict()), ("trainable", trainable(model))):
        embeddings: Any = "auto" if name == "whole" else False
        config = model.peft_config["default"]
        ours = published(tmp_path / name, state, config, base_model=base_dir)
        assert same(ours, get_peft_model_state_dict(model, save_embedding_layers=embeddings))
        assert torch.equal(loaded_logits(base(), tmp_path / name / "out"), wanted)


def test_the_table_knows_pefts_tuners() -> None:
    """A PEFT with another tuner, or other parameters in one, needs the table to be extended."""
    from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING
    from peft.tuners.tuners_utils import BaseTunerLayer

    assert {kind.value for kind in PEFT_TYPE_TO_TUNER_MAPPING} <= TUNERS.keys() | UNSUPPORTED.keys()
    for kind, tuner in PEFT_TYPE_TO_TUNER_MAPPING.items():
        package = importlib.import_module(tuner.__module__.rpartition(".")[0])
        for module in pkgutil.iter_modules(package.__path__):
            try:
                found = importlib.import_module(f"{package.__name__}.{module.name}")
            except ImportError:  # kernels of packages that are not installed
                continue
            layers = [v for v in vars(found).values() if inspect.isclass(v)]
            for layer in layers if kind.value in TUNERS else ():
                if issubclass(layer, BaseTunerLayer) and layer.__module__ == found.__name__:
                    assert set(layer.adapter_layer_names) <= set(TUNERS[kind.value].attributes)


def test_half_a_pair_is_refused(tmp_path: Path) -> None:
    """An A without its B would load as no update at all, with exit code 0."""
    checkpoint = save(tmp_path / "c", {"model": pairs(B=None)})
    with pytest.raises(CheckpointError, match="no lora_B"):
        hubmerge.plan(checkpoint)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["vera", "pvera"])
def test_shared_projections_that_were_not_saved(kind: str, base_dir: str, tmp_path: Path) -> None:
    """PEFT refuses the adapter without them, unless its config says that they are not saved."""
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    if KINDS[kind][0] not in PEFT_TYPE_TO_CONFIG_MAPPING:
        pytest.skip("this PEFT does not have it yet")
    model = adapted(base(), config_of(kind))
    state = {n: t for n, t in trainable(model).items() if "_lambda_" in n}
    config = model.peft_config["default"]
    with pytest.raises(CheckpointError, match="save_projection=false") as refusal:
        published(tmp_path / "refused", state, config, base_model=base_dir)
    assert f"base_model.{kind}_A" in str(refusal.value)
    config.save_projection = False
    published(tmp_path / "loads", state, config, base_model=base_dir)
    assert torch.equal(loaded_logits(base(), tmp_path / "loads" / "out"), logits(model))


def test_several_adapters_are_refused(tmp_path: Path) -> None:
    """One repository holds one adapter; the user chooses."""
    state = pairs() | {n.replace("default", "other"): t for n, t in pairs().items()}
    checkpoint = save(tmp_path / "c", {"model": state})
    with pytest.raises(CheckpointError, match="default, other"):
        hubmerge.plan(checkpoint)
    planned, _ = hubmerge.plan(checkpoint, naming=NamingOptions(include=(r"\.other(\.|$)",)))
    assert len(planned.shards[0].tensors) == 2


def test_lora_where_there_is_none(tmp_path: Path) -> None:
    """--mode lora of a whole model is an error."""
    checkpoint = save(tmp_path / "c", {"model": {"model.a.weight": torch.ones(2)}})
    with pytest.raises(CheckpointError, match="no adapter"):
        hubmerge.plan(checkpoint, naming=NamingOptions(mode="lora"))


def test_buffers_and_moments_are_no_part_of_an_adapter(tmp_path: Path) -> None:
    """What the config does not name is left out, and named: PEFT would overwrite the base by it."""
    strange = {
        f"{ROOT}model.layers.1.mlp.gate.e_score_correction_bias": torch.ones(4),
        f"{ROOT}model.layers.0.mlp.experts.lora_scaling": torch.tensor(2.0),
        f"{STEM}.lora_A.default.weight.exp_avg": torch.ones(4, 32),
    }
    checkpoint = save(tmp_path / "c", {"model": pairs() | strange})
    (checkpoint / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"}))
    planned, _ = hubmerge.plan(checkpoint)
    names = [tensor.name for tensor in planned.shards[0].tensors]
    assert names == [f"{STEM}.lora_A.weight", f"{STEM}.lora_B.weight"]
    [told] = [w for w in planned.warnings if "adapter_config.json does not name" in w]
    assert "e_score_correction_bias" in told
    assert "2 tensors" in told


def test_without_a_config_what_names_cannot_tell_is_said(tmp_path: Path) -> None:
    """The names decide, as of old: everything of a save without base weights is the adapter's."""
    head = {f"{ROOT}lm_head.weight": torch.ones(64, 32)}
    checkpoint = save(tmp_path / "c", {"model": pairs() | head})
    planned, _ = hubmerge.plan(checkpoint)
    assert len(planned.shards[0].tensors) == 3
    [told] = [w for w in planned.warnings if "chosen by their names" in w]
    assert "lm_head.weight" in told


def test_what_peft_wrote_itself_stays_as_it_is(tmp_path: Path) -> None:
    """The Trainer saves `get_peft_model_state_dict`, whose names have lost the adapter's."""
    from peft import get_peft_model_state_dict

    config = config_of("modules", bias="all", trainable_token_indices=[2])
    model = adapted(base(), config)
    theirs = get_peft_model_state_dict(model)
    assert same(published(tmp_path, theirs, model.peft_config["default"]), theirs)


def test_names_of_an_adapter_injected_by_transformers(tmp_path: Path) -> None:
    """`model.add_adapter` has no PeftModel around the model; its files are the same."""
    from peft import inject_adapter_in_model

    model = inject_adapter_in_model(config_of("lora"), base())
    theirs = {n: t for n, t in model.state_dict().items() if "lora_" in n}
    ours = published(tmp_path, model.state_dict(), config_of("lora"))
    assert same(ours, {f"base_model.model.{n.replace('.default', '')}": theirs[n] for n in theirs})


@pytest.mark.parametrize("kept", [[True, False, True, True], [False] * 4])
def test_adalora_leaves_out_the_ranks_that_it_cut(kept: list[bool], tmp_path: Path) -> None:
    """PEFT saves the others, of which `rank_pattern` in its config says which they are."""
    from peft import PeftModel, get_peft_model_state_dict

    model = adapted(base(), config_of("adalora"))
    config = model.peft_config["default"]
    config.rank_pattern = {"model.layers.0.self_attn.q_proj.lora_E.default": kept}
    ours = published(tmp_path / "c", model.state_dict(), config)
    assert ours[f"{STEM}.lora_B"].shape == (32, sum(kept))
    assert same(ours, get_peft_model_state_dict(model))
    assert same(published(tmp_path / "again", ours, config), ours)
    loaded = PeftModel.from_pretrained(base(), tmp_path / "c/out")
    assert same(get_peft_model_state_dict(loaded), ours)


@pytest.mark.parametrize("resized", [True, False])
def test_a_resized_embedding_is_saved(resized: bool, tmp_path: Path) -> None:
    """The base model has no such rows: PEFT saves them all, unless the base is as large."""
    from peft import get_peft_model_state_dict

    base().save_pretrained(tmp_path / "base")
    trained = base()
    if resized:
        trained.resize_token_embeddings(70)
    model = adapted(trained, config_of("lora"))
    model.peft_config["default"].base_model_name_or_path = str(tmp_path / "base")
    theirs = get_peft_model_state_dict(model)
    assert (f"{ROOT}lm_head.weight" in theirs) == resized
    config = config_of("lora")
    ours = published(tmp_path, model.state_dict(), config, base_model=str(tmp_path / "base"))
    assert same(ours, theirs)


def test_kinds_that_cannot_be_published(tmp_path: Path) -> None:
    """PEFT computes what it saves of a prompt: such a run is refused, never taken for a model."""
    state = {"prompt_encoder.default.embedding.weight": torch.ones(2, 32)}
    model = {f"base_model.{n}": t for n, t in base().state_dict().items()}
    with pytest.raises(CheckpointError, match="PROMPT_TUNING: hubmerge cannot publish"):
        published(tmp_path, model | state, {"peft_type": "PROMPT_TUNING"})
    with pytest.raises(CheckpointError, match="has no tensor of that kind"):
        published(tmp_path / "other", pairs(), {"peft_type": "IA3"})


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("indices", [[1, 2], {"embed_tokens": [1, 2], "lm_head": [1, 2]}])
def test_tied_weights_are_not_saved_twice(indices: Any, tmp_path: Path) -> None:
    """A head shares the embedding's trained rows, under a name of its own; PEFT saves one."""
    from peft import get_peft_model_state_dict

    base_dir = str(save_config(tmp_path / "base", base(tie_word_embeddings=True)))
    model = adapted(
        base(tie_word_embeddings=True), config_of("lora", trainable_token_indices=indices)
    )
    theirs = get_peft_model_state_dict(model)
    config = model.peft_config["default"]
    for name, state in (("whole", model.state_dict()), ("trainable", trainable(model))):
        assert same(published(tmp_path / name, state, config, base_model=base_dir), theirs)


def test_a_frozen_head_that_is_tied_is_left_out(tmp_path: Path) -> None:
    """torch leaves it in a state dict without frozen parameters: it has two names there."""
    tied = base(tie_word_embeddings=True)
    base_dir = str(save_config(tmp_path / "base", tied))
    model = adapted(tied, config_of("lora"))
    state = trainable(model)
    assert f"{ROOT}lm_head.weight" in state
    ours = published(tmp_path, state, model.peft_config["default"], base_model=base_dir)
    assert all("lora_" in name for name in ours)
    naming = NamingOptions(base_model=base_dir)
    planned, _ = hubmerge.plan(tmp_path / "checkpoint", naming=naming)
    assert not planned.warnings
