"""Which keys are the model's, and what they are called without wrappers and prefixes."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import save_file
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter

import hubmerge
from hubmerge.checkpoint.schema import Checkpoint, StoredTensor
from hubmerge.errors import CheckpointError, HubmergeError, NoModelWeightsError, UsageError
from hubmerge.names.naming import ModelSpec, name_weights
from hubmerge.names.options import NamingOptions
from hubmerge.names.prefixes import best_rule
from hubmerge.names.reference import Reference
from hubmerge.names.weights import Naming
from tests.support.trainers.models import build
from tests.support.trainers.saves import prefixed, save, save_config, save_model

Path_ = tuple[str, ...]

LLAMA = (
    "model.embed_tokens.weight",
    "model.layers.0.self_attn.q_proj.weight",
    "model.layers.0.mlp.up_proj.weight",
    "model.norm.weight",
    "lm_head.weight",
)


def checkpoint_of(*paths: Path_, planner_data: bool = True) -> Checkpoint:
    """A checkpoint's description with these nested keys; no file is behind it."""
    tensors = {}
    for path in paths:
        key = ".".join(path)
        tensors[key] = StoredTensor(key, "float32", (4, 4), (), path if planner_data else None)
    return Checkpoint(Path(), tensors, (), "")


def under(*root: str, names: tuple[str, ...] = LLAMA) -> list[Path_]:
    """The nested keys of these names in a dict."""
    return [(*root, name) for name in names]


def names_of(naming: Naming) -> set[str]:
    """The decided names."""
    return {weight.name for weight in naming.weights}


def truth_of(*names: str) -> ModelSpec:
    """A base model with these names."""
    files = dict.fromkeys(names, "model.safetensors")
    return ModelSpec(reference=Reference("base", files, {}))


OPTIMIZER = ("optimizer", "state.model.norm.weight.exp_avg")

ROOTS = {
    "VeOmni": [*under("model"), OPTIMIZER, ("extra_state", "rng")],
    "accelerate": under("model"),
    "flame": [*under("model"), ("lr_scheduler", "x.y"), ("dataloader", "state.z")],
    "Lightning FSDP": [
        *under("model", names=tuple(f"model.{n}" for n in LLAMA)),
        ("optimizer_0", "state.w.exp_avg"),
        ("loops", "a.b"),
    ],
    "Lightning ModelParallel": [*under("state_dict"), ("optimizer_0", "state.w.exp_avg")],
    "prime-rl": [
        *under("app", "model"),
        ("app", "optimizers", "state.w.exp_avg"),
        ("app", "scheduler", "last.epoch"),
        ("app", "progress", "total.tokens"),
    ],
    "AReaL": [*under("dcp", "model"), ("dcp", "optim", "state.w.exp_avg")],
    "xtuner": [*under("model"), OPTIMIZER],
    "NeMo-RL v1": [*under("model"), ("optim", "state.w.exp_avg")],
    "NeMo-RL v2, Automodel": under(),
    "another dict": under("policy"),
    "torch.compile": under("model", names=tuple(f"_orig_mod.{n}" for n in LLAMA)),
    "compiled layers": under(
        "model", names=tuple(n.replace("s.0.", "s.0._orig_mod.") for n in LLAMA)
    ),
    "FSDP1": under(
        "model",
        names=tuple(
            "_fsdp_wrapped_module." + n.replace("s.0.", "s.0._fsdp_wrapped_module.") for n in LLAMA
        ),
    ),
    "activation checkpointing": under(
        "model", names=tuple(n.replace("s.0.", "s.0._checkpoint_wrapped_module.") for n in LLAMA)
    ),
    "DDP": under("model", names=tuple(f"module.{n}" for n in LLAMA)),
    "all wrappers": under(
        "model",
        names=tuple(
            "module._orig_mod.module."
            + n.replace("s.0.", "s.0._fsdp_wrapped_module._checkpoint_wrapped_module._orig_mod.")
            for n in LLAMA
        ),
    ),
}  # fmt: skip


@pytest.mark.parametrize("trainer", ROOTS)
def test_each_trainers_keys(trainer: str) -> None:
    """The model's own names come out, and nothing of the optimizer's."""
    naming = name_weights(checkpoint_of(*ROOTS[trainer]))
    assert names_of(naming) == set(LLAMA)
    assert len(naming.dropped) == len(ROOTS[trainer]) - len(LLAMA)


@pytest.mark.parametrize("trainer", ["VeOmni", "prime-rl", "AReaL", "Lightning ModelParallel"])
def test_the_same_without_planner_data(trainer: str) -> None:
    """Where a checkpoint does not keep the nested keys, the flat ones are enough."""
    naming = name_weights(checkpoint_of(*ROOTS[trainer], planner_data=False))
    assert names_of(naming) == set(LLAMA)


def test_a_base_model_under_accelerate_follows_the_reference() -> None:
    """`{"model": backbone.state_dict()}` lacks a prefix: the base model's names say which."""
    backbone = tuple(n.removeprefix("model.") for n in LLAMA if n != "lm_head.weight")
    checkpoint = checkpoint_of(*under("model", names=backbone))
    assert names_of(name_weights(checkpoint)) == set(backbone)
    assert names_of(name_weights(checkpoint, truth=truth_of(*LLAMA))) == {
        f"model.{name}" for name in backbone
    }


def test_a_module_attribute_is_stripped_where_the_reference_knows() -> None:
    """`self.policy_net = model` in a Lightning module; what stands beside it is named."""
    keys = under("model", names=tuple(f"policy_net.{n}" for n in LLAMA))
    value_head = ("model", "value_head.weight")
    naming = name_weights(checkpoint_of(*keys, value_head), truth=truth_of(*LLAMA))
    assert names_of(naming) == set(LLAMA)
    assert any("value_head.weight" in warning for warning in naming.warnings)


def test_the_best_rule_changes_nothing_that_is_right() -> None:
    """Names that are known as they are stay, though stripping would leave some known too."""
    known = {"model.a.weight", "model.b.weight", "a.weight"}
    rule, score = best_rule(["model.a.weight", "model.b.weight"], known)
    assert (rule("model.a.weight"), score) == ("model.a.weight", 2)


def test_flattened_parameters_are_refused() -> None:
    """FSDP1's `_flat_param` has no names inside: a hint says how to save."""
    with pytest.raises(CheckpointError, match="flattened") as refusal:
        name_weights(checkpoint_of(("model", "layers.0._fsdp_wrapped_module._flat_param")))
    assert "use_orig_params" in refusal.value.hint


def test_an_optimizer_alone_is_refused() -> None:
    """accelerate's `optimizer_0` is a checkpoint, but not of a model."""
    with pytest.raises(NoModelWeightsError, match=r"optimizer \(1\)"):
        name_weights(checkpoint_of(OPTIMIZER))


def test_an_optimizers_own_dict_is_refused() -> None:
    """`--load-dir optimizer_0` holds moments and their groups, and no learning rate is a model."""
    groups = ("param_groups", "lr"), ("state", "a.weight", "exp_avg")
    with pytest.raises(NoModelWeightsError):
        name_weights(checkpoint_of(*groups))


def test_what_has_no_dict_and_no_dot_is_a_weight_if_it_is_a_number() -> None:
    """`logit_scale` of a bare CLIP, `cls_token` of a bare ViT; a counter is none."""
    paths = [("logit_scale",), ("cls_token",), ("blocks.0.weight",)]
    assert names_of(name_weights(checkpoint_of(*paths))) == {p[0] for p in paths}
    counter = StoredTensor("seen", "int64", (), (), ("seen",))
    checkpoint = checkpoint_of(*paths)
    checkpoint.tensors["seen"] = counter
    naming = name_weights(checkpoint)
    assert [dropped.key for dropped in naming.dropped] == ["seen"]


def test_several_dicts_are_said_to_be_several() -> None:
    """Dicts that are no model each are taken for parts of one, and that is said."""
    naming = name_weights(checkpoint_of(*under("lm"), ("probe", "linear.weight")))
    assert any("lm, probe" in w and "--model-key" in w for w in naming.warnings)
    chosen = name_weights(
        checkpoint_of(*under("lm"), ("probe", "linear.weight")), NamingOptions(model_key="lm")
    )
    assert names_of(chosen) == set(LLAMA)
    assert not any("probe" in warning for warning in chosen.warnings)


def test_no_weights_names_the_keys_and_the_flag() -> None:
    """What there is, objects too; no optimizer is suggested as the model."""
    checkpoint = replace(checkpoint_of(OPTIMIZER, ("x", "n.step")), objects=("lr_scheduler.x",))
    checkpoint.tensors["x.n.step"] = StoredTensor("x.n.step", "int64", (0,), (), ("x", "n.step"))
    with pytest.raises(NoModelWeightsError, match=r"optimizer \(1\).* lr.* \(1\)") as refusal:
        name_weights(checkpoint)
    assert "--model-key x" in refusal.value.hint
    with pytest.raises(NoModelWeightsError) as refusal:
        name_weights(checkpoint_of(OPTIMIZER), NamingOptions(model_key="modle"))
    assert "Check --model-key modle" in refusal.value.hint


def test_the_hubs_own_names_stay(tmp_path: Path) -> None:
    """HuggingFaceStorageWriter is given the Hub's names: a tied model's have no head to show it."""
    state = {name: torch.ones(2, 2) for name in LLAMA if not name.startswith("lm_head")}
    writer = HuggingFaceStorageWriter(str(tmp_path / "c"), save_distributed=True)
    dcp.save(dict(state), storage_writer=writer, no_dist=True)
    planned, _ = hubmerge.plan(tmp_path / "c")
    assert {t.name for s in planned.shards for t in s.tensors} == state.keys()


def test_a_config_makes_nothing_but_a_model(tmp_path: Path) -> None:
    """`architectures` may come from a repository: no other thing of transformers is called."""
    checkpoint = save(tmp_path / "c", {"model": {"a.weight": torch.ones(2)}})
    (tmp_path / "assets").mkdir()
    config = {"model_type": "llama", "architectures": ["pipeline"]}
    (tmp_path / "assets" / "config.json").write_text(json.dumps(config))
    plan, _ = hubmerge.plan(checkpoint, model_assets_dir=tmp_path / "assets")
    assert any("pipeline" in warning for warning in plan.warnings)


@pytest.mark.parametrize("is_known", [False, True])
def test_a_stripped_prefix_is_said_where_nothing_else_tells(is_known: bool) -> None:
    """Also of single keys beside others of the usual kind; with a config there is no doubt."""
    checkpoint = checkpoint_of(*(("model", name) for name in (*LLAMA, "visual.blocks.0.weight")))
    truth = truth_of(*LLAMA, "visual.blocks.0.weight") if is_known else None
    warnings = name_weights(checkpoint, truth=truth).warnings
    assert any("from 1 key " in w and "model.visual.blocks" in w for w in warnings) != is_known


def test_two_models_with_the_same_names_are_refused() -> None:
    """Wrappers stripped, two keys become one name: both are told."""
    keys = (("model", "_orig_mod.a.weight"), ("model", "a.weight"))
    with pytest.raises(CheckpointError, match=r"would both be called 'a\.weight'"):
        name_weights(checkpoint_of(*keys))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (NamingOptions(model_key="ema.model"), {"b.weight"}),
        (NamingOptions(include=(r"^ema\.",)), {"b.weight"}),
        (NamingOptions(include=(r"\.b\.", r"\.a\."), rename=(r"^ema\.model\.=>",)),
         {"a.weight", "b.weight"}),
        (NamingOptions(exclude=("visual",)), {"a.weight"}),
        (NamingOptions(rename=(r"^(\w+)\.=>text.\1.",)), {"text.a.weight", "text.visual.weight"}),
        (NamingOptions(rename=("^a=>b", "^b=>c")), {"c.weight", "visual.weight"}),
    ],
)  # fmt: skip
def test_the_user_decides(options: NamingOptions, expected: set[str]) -> None:
    """--model-key, --include, --exclude and --rename stand above the rules."""
    keys = (("model", "a.weight"), ("model", "visual.weight"), ("ema", "model", "b.weight"))
    assert names_of(name_weights(checkpoint_of(*keys), options)) == expected


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("include", ("(",), "--include '('"),
        ("exclude", ("[",), "--exclude '['"),
        ("keep_dtype", ("*",), "--keep-dtype '*'"),
        ("rename", ("a->b",), "--rename 'a->b': is not REGEX=>NEW"),
        ("rename", ("(=>b",), "--rename '('"),
        ("rename", (r"a=>\2",), "cannot be used"),
        ("experts", "both", "--experts 'both'"),
        ("mode", "peft", "--mode 'peft'"),
    ],
)
def test_options_that_cannot_be_used(field: str, value: object, words: str) -> None:
    """A wrong regex or word is a usage error that names the option."""
    with pytest.raises(UsageError) as refusal:
        NamingOptions(**{field: value})  # type: ignore[arg-type]
    assert words in str(refusal.value)


# Ways to get every name wrong, by what is before it.
WRONG = ("wrapped.", "model.inner.x.")


@pytest.mark.parametrize("reference", ["config", "index", "both"])
def test_wrong_names_stop_the_run(reference: str, tmp_path: Path) -> None:
    """A layer renamed by hand is neither the architecture's nor the base model's: exit 3, with the
    missing name and the nearest."""
    model = build("llama")
    weights = model.state_dict()
    weights["model.layers.0.self_attn.query.weight"] = weights.pop(
        "model.layers.0.self_attn.q_proj.weight"
    )
    checkpoint = save(tmp_path / "checkpoint", {"model": weights})
    assets = tmp_path / "assets"
    assets.mkdir()
    if reference != "index":
        save_config(assets, model)
    if reference != "config":
        save_file(build("llama").state_dict(), assets / "model.safetensors")
    with pytest.raises(CheckpointError) as refusal:
        hubmerge.convert(checkpoint, tmp_path / "out", model_assets_dir=assets)
    assert refusal.value.exit_code == 3
    assert "1 missing: model.layers.0.self_attn.q_proj.weight (nearest: " in str(refusal.value)
    assert "1 unexpected: model.layers.0.self_attn.query.weight" in str(refusal.value)
    assert not (tmp_path / "out").exists()
    options = NamingOptions(check_model=False)
    result = hubmerge.convert(checkpoint, tmp_path / "out", model_assets_dir=assets, naming=options)
    assert any("query" in warning for warning in result.warnings) == (reference != "config")


def test_a_renaming_mends_it(tmp_path: Path) -> None:
    """The same checkpoint converts with --rename."""
    model = build("llama")
    weights = {n.replace("self_attn", "attention"): t for n, t in model.state_dict().items()}
    checkpoint = save(tmp_path / "checkpoint", {"model": weights})
    assets = save_config(tmp_path / "assets", model)
    with pytest.raises(CheckpointError):
        hubmerge.plan(checkpoint, model_assets_dir=assets)
    options = NamingOptions(rename=(r"\.attention\.=>.self_attn.",))
    planned, _ = hubmerge.plan(checkpoint, model_assets_dir=assets, naming=options)
    assert {t.name for s in planned.shards for t in s.tensors} == set(model.state_dict())


@pytest.mark.parametrize("change", ["missing", "shape", "config", "expert", "extra"])
def test_the_loaders_verdict(change: str, tmp_path: Path) -> None:
    """What the loader would miss, have left, or find in another shape stops the run."""
    model = build("qwen3_moe")
    weights = dict(model.state_dict())
    words = {
        "missing": "1 missing: model.norm.weight",
        "shape": "1 of another shape: model.norm.weight is (5,), the model has (32,)",
        "config": "missing: model.layers.2.",
        "expert": "model.layers.0.mlp.experts",
        "extra": "1 unexpected: model.layers.7.mlp.gate.weight",
    }[change]
    assets = save_config(tmp_path / "assets", model)
    if change == "missing":
        del weights["model.norm.weight"]
    elif change == "shape":
        weights["model.norm.weight"] = torch.ones(5)
    elif change == "config":
        save_config(assets, build("qwen3_moe", num_hidden_layers=3))
    elif change == "expert":
        name = "model.layers.0.mlp.experts.down_proj"
        weights[name] = weights[name][:3].clone()
    else:
        weights["model.layers.7.mlp.gate.weight"] = torch.ones(4, 32)
    checkpoint = save(tmp_path / "checkpoint", {"model": weights})
    with pytest.raises(CheckpointError) as refusal:
        hubmerge.convert(checkpoint, tmp_path / "out", model_assets_dir=assets)
    assert words in str(refusal.value)


def test_an_unknown_architecture_is_a_warning(tmp_path: Path) -> None:
    """transformers cannot judge it: the run goes on and says so."""
    checkpoint = save(tmp_path / "checkpoint", {"model": {"model.a.weight": torch.ones(2)}})
    assets = tmp_path / "assets"
    assets.mkdir()
    (assets / "config.json").write_text('{"model_type": "of-tomorrow", "architectures": ["New"]}')
    result = hubmerge.convert(checkpoint, tmp_path / "out", model_assets_dir=assets)
    assert any("cannot be checked" in warning for warning in result.warnings)


def test_remote_code_runs_only_when_trusted(tmp_path: Path) -> None:
    """The assets' own code leaves a mark when it runs: not without --trust-remote-code."""
    assets, mark = tmp_path / "assets", tmp_path / "mark"
    assets.mkdir()
    (assets / "config.json").write_text(
        '{"model_type": "own", "architectures": ["Own"], "vocab_size": 3,'
        ' "auto_map": {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.Own"}}'
    )
    (assets / "own.py").write_text(
        f"""
from pathlib import Path
import torch
from transformers import PretrainedConfig, PreTrainedModel
Path({str(mark)!r}).touch()
class OwnConfig(PretrainedConfig):
    model_type = "own"
class Own(PreTrainedModel):
    config_class = OwnConfig
    def __init__(self, config):
        super().__init__(config)
        self.a = torch.nn.Linear(2, 2)
        self.post_init()
    def _init_weights(self, module):
        pass
"""
    )
    good = {"a.weight": torch.ones(2, 2), "a.bias": torch.ones(2)}
    checkpoint = save(tmp_path / "checkpoint", {"model": good})
    result = hubmerge.convert(checkpoint, tmp_path / "out", model_assets_dir=assets)
    assert any("cannot be checked" in warning for warning in result.warnings)
    assert not mark.exists()
    trusted = NamingOptions(trust_remote_code=True)
    hubmerge.plan(checkpoint, model_assets_dir=assets, naming=trusted)
    assert mark.exists()
    bad = save(tmp_path / "bad", {"model": {"a.weight": torch.ones(2, 2)}})
    with pytest.raises(CheckpointError, match=r"missing: a\.bias"):
        hubmerge.plan(bad, model_assets_dir=assets, naming=trusted)


def test_the_run_folder_of_a_real_save(tmp_path: Path) -> None:
    """A whole run is given: the newest step is converted, the older is not."""
    old, new = build("llama"), build("llama", num_hidden_layers=1)
    save_model(tmp_path / "run/global_step_1", old)
    save_model(tmp_path / "run/global_step_2", new)
    notes: list[str] = []

    class Told(hubmerge.Progress):
        def note(self, text: str) -> None:
            notes.append(text)

    result = hubmerge.convert(tmp_path / "run", tmp_path / "out", progress=Told())
    assert result.total_parameters == sum(t.numel() for t in new.state_dict().values())
    assert notes[0] == "took global_step_2 in run, the newest of 2 complete steps"
    assert not any("global_step" in warning for warning in result.warnings)


def run_command(*arguments: object) -> subprocess.CompletedProcess[str]:
    """The command, as a user runs it."""
    command = [sys.executable, "-m", "hubmerge", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_command_stops_with_3_and_inspects_without_torch(tmp_path: Path) -> None:
    """Wrong names: exit 3 with a list and a hint on stderr alone; inspect imports no torch."""
    model = build("llama")
    checkpoint = save(tmp_path / "c", {"model": prefixed("x.", dict(model.state_dict()))})
    assets = save_config(tmp_path / "assets", model)
    push = ("push", "--no-push", "--load-dir", checkpoint, "--save-dir", tmp_path / "out")
    (checkpoint / "more.pt").touch()
    right = run_command(*push, "--model-assets-dir", assets, "--dry-run")
    assert right.returncode == 0, right.stderr
    wrong = run_command(*push, "--model-assets-dir", assets, "--rename", "self_attn=>attn", "-q")
    assert (wrong.returncode, wrong.stdout) == (3, "")
    assert "missing: model.layers.0.self_attn" in wrong.stderr
    assert "Hint: " in wrong.stderr
    code = (
        "import sys, hubmerge; names = hubmerge.inspect(sys.argv[1]).names;"
        "print(names[0]['name'], 'torch' in sys.modules)"
    )
    command = [sys.executable, "-c", code, str(checkpoint)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["model.embed_tokens.weight", "False"]


def test_errors_are_ours(tmp_path: Path) -> None:
    """Prefixes nobody can guess end in one of our errors, not in a traceback."""
    for prefix in WRONG:
        weights = prefixed(prefix, {"zzz.weight": torch.ones(2)})
        checkpoint = save(tmp_path / prefix, {"model": weights})
        assets = save_config(tmp_path / "assets", build("llama"))
        with pytest.raises(HubmergeError, match="missing"):
            hubmerge.plan(checkpoint, model_assets_dir=assets)
