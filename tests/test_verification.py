"""verify: a folder or a repository against the checkpoint that it was made from."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from huggingface_hub import HfApi
from safetensors.torch import save_file

import hubmerge
from hubmerge import NamingOptions
from hubmerge.cli.text import as_json, as_text
from hubmerge.errors import CheckpointError, UsageError
from hubmerge.planning.option_record import recalled_content_ids, recalled_options
from hubmerge.planning.options import DEFAULT_PLAN, PlanOptions
from tests.support.fake_hub.server import Hub
from tests.support.push.models import Model, llama

pytest_plugins = ["tests.support.push.plugin"]

REPO = "alice/model"

SHARD_SIZE = 3000


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small checkpoint of several shards' worth of weights."""
    folder = tmp_path_factory.mktemp("verify") / "checkpoint"
    torch.manual_seed(0)
    weights = {f"model.layers.{i}.weight": torch.randn(16, 40) for i in range(6)}
    dcp.save({"model": weights}, checkpoint_id=folder, no_dist=True)
    return folder


@pytest.fixture
def converted(checkpoint: Path, tmp_path: Path) -> Path:
    """The folder that `convert` makes of it."""
    hubmerge.convert(checkpoint, tmp_path / "out", shard_size=SHARD_SIZE)
    return tmp_path / "out"


def verify_folder(checkpoint: Path, folder: Path) -> hubmerge.VerifyResult:
    """Verify with the options that `converted` was made with."""
    return hubmerge.verify(checkpoint, save_dir=folder, shard_size=SHARD_SIZE)


def command(*arguments: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run the command."""
    return subprocess.run(
        [sys.executable, "-m", "hubmerge", *arguments],
        capture_output=True,
        text=True,
        check=False,
        env=env or dict(os.environ),
    )


def test_what_convert_wrote_is_right(checkpoint: Path, converted: Path) -> None:
    """A fresh folder has no difference, and every file of it was looked at."""
    result = verify_folder(checkpoint, converted)
    assert result.differences == ()
    assert result.files == len(list(converted.iterdir())) - 1  # the record


def test_a_flipped_bit_is_named_with_its_tensor(checkpoint: Path, converted: Path) -> None:
    """One changed byte is found, and the first tensor that it changes is named."""
    path = converted / "model-00002-of-00003.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    (difference,) = verify_folder(checkpoint, converted).differences
    assert (difference.file, difference.tensor) == (path.name, "model.layers.3.weight")
    assert difference.expected != difference.found


@pytest.mark.parametrize(
    "name", ["model-00001-of-00003.safetensors", "model.safetensors.index.json", "README.md"]
)
def test_a_missing_or_changed_file_is_named(checkpoint: Path, converted: Path, name: str) -> None:
    """A file that is gone, and one with a byte too many, are each the one difference."""
    content = (converted / name).read_bytes()
    (converted / name).unlink()
    (gone,) = verify_folder(checkpoint, converted).differences
    assert (gone.file, gone.found) == (name, "no such file")
    (converted / name).write_bytes(content + b" ")
    (changed,) = verify_folder(checkpoint, converted).differences
    assert changed.file == name


def test_weights_that_do_not_belong_are_named(checkpoint: Path, converted: Path) -> None:
    """A shard of some other model beside the right ones is a difference."""
    (converted / "model-00001-of-00009.safetensors").write_bytes(b"")
    (difference,) = verify_folder(checkpoint, converted).differences
    assert difference.file == "model-00001-of-00009.safetensors"


def test_the_command_exits_with_8(checkpoint: Path, converted: Path) -> None:
    """Exit 0 and one JSON object where all is well, 8 with each difference where not."""
    arguments = ["verify", "--load-dir", str(checkpoint), "--save-dir", str(converted)]
    arguments += ["--shard-size", str(SHARD_SIZE), "--json", "--quiet"]
    good = command(*arguments)
    assert good.returncode == 0, good.stderr
    assert json.loads(good.stdout)["differences"] == []
    (converted / "README.md").unlink()
    bad = command(*arguments)
    assert bad.returncode == 8
    assert [d["file"] for d in json.loads(bad.stdout)["differences"]] == ["README.md"]
    assert "Traceback" not in bad.stderr


def test_neither_or_both_places_is_a_usage_error(checkpoint: Path) -> None:
    """verify needs exactly one place."""
    with pytest.raises(hubmerge.HubmergeError) as neither:
        hubmerge.verify(checkpoint)
    assert neither.value.exit_code == 2


def test_a_repository_needs_only_the_checkpoint(hub: Hub, checkpoint: Path, tmp_path: Path) -> None:
    """The commit says how it was pushed, so verify needs no option, and downloads no shard."""
    push = ["push", "--load-dir", str(checkpoint), "--repo-id", "alice/model", "--quiet"]
    push += ["--no-config", "--shard-size", str(SHARD_SIZE), "--dtype", "float16"]
    pushed = command(*push, env=hub.env())
    assert pushed.returncode == 0, pushed.stderr
    hub.log.clear()
    verify = ["verify", "--load-dir", str(checkpoint), "--repo-id", "alice/model", "--quiet"]
    good = command(*verify, "--json", env=hub.env())
    assert good.returncode == 0, good.stdout + good.stderr
    assert json.loads(good.stdout)["files"] == 5
    assert not [e for e in hub.log.select() if "safetensors" in e.path and "index" not in e.path]


def test_a_repository_that_was_changed_is_found_out(hub: Hub, checkpoint: Path) -> None:
    """A card that somebody edited and a shard that somebody deleted are both named; exit 8."""
    push = ["push", "--load-dir", str(checkpoint), "--repo-id", "alice/model", "--quiet"]
    assert (
        command(*push, "--no-config", "--shard-size", str(SHARD_SIZE), env=hub.env()).returncode
        == 0
    )
    shard = "model-00001-of-00003.safetensors"
    hub.commit("alice/model", {"README.md": b"# mine", shard: None}, "main")
    verify = ["verify", "--load-dir", str(checkpoint), "--repo-id", "alice/model", "--quiet"]
    bad = command(*verify, "--json", env=hub.env())
    assert bad.returncode == 8, bad.stderr
    found = {d["file"]: d["found"] for d in json.loads(bad.stdout)["differences"]}
    assert found.keys() == {"README.md", shard}
    assert found[shard] == "no such file"


def test_a_repository_without_a_record_is_refused(hub: Hub, checkpoint: Path) -> None:
    """A repository that hubmerge never pushed to cannot be verified, and the error says so."""
    hub.create_repo("alice/other")
    result = command(
        "verify", "--load-dir", str(checkpoint), "--repo-id", "alice/other", env=hub.env()
    )
    assert result.returncode == 2
    assert "no commit by hubmerge" in result.stderr


def push(checkpoint: Path, **options: Any) -> None:
    """Push to `REPO` from Python."""
    hubmerge.push(checkpoint, REPO, shard_size=SHARD_SIZE, no_config=True, **options)


@pytest.fixture
def pushed_from_a_base(api: HfApi, naps: list[float], tmp_path: Path) -> tuple[Path, Path]:
    """A checkpoint pushed with assets whose weights say which tensors are fp32."""
    base = {"model.a.weight": torch.ones(30, 40).bfloat16(), "model.norm.weight": torch.ones(7)}
    assets = tmp_path / "assets"
    assets.mkdir()
    save_file(base, assets / "model.safetensors")
    (assets / "generation_config.json").write_text('{"top_k": 1}')
    state = {name: torch.randn(tensor.shape) for name, tensor in base.items()}
    dcp.save({"model": state}, checkpoint_id=tmp_path / "run", no_dist=True)
    push(tmp_path / "run", model_assets_dir=assets)
    return tmp_path / "run", assets


def test_what_the_base_model_decided_is_recorded(pushed_from_a_base: tuple[Path, Path]) -> None:
    """Which tensors stayed fp32 is told by the commit: the assets are not needed."""
    run, assets = pushed_from_a_base
    assert hubmerge.verify(run, repo_id=REPO).differences == ()
    assert hubmerge.verify(run, repo_id=REPO, model_assets_dir=assets).differences == ()
    others = hubmerge.verify(run, repo_id=REPO, dtype="float32").differences
    assert "model.safetensors" in {difference.file for difference in others}


def test_what_a_base_model_in_a_folder_decided_is_said(
    api: HfApi, naps: list[float], checkpoint: Path, tmp_path: Path
) -> None:
    """No path is recorded. Where no index tells its names, they differ, and the reason is told."""
    save_file(
        {f"layers.{i}.weight": torch.zeros(16, 40) for i in range(6)},
        tmp_path / "model.safetensors",
    )
    naming = NamingOptions(base_model=str(tmp_path))
    hubmerge.push(checkpoint, REPO, naming=naming, no_config=True)
    assert hubmerge.verify(checkpoint, repo_id=REPO, naming=naming).differences == ()
    without = hubmerge.verify(checkpoint, repo_id=REPO)
    assert without.differences
    assert any("--base-model" in warning for warning in without.warnings)
    assert str(tmp_path) not in as_json(without)


def test_given_assets_are_compared(pushed_from_a_base: tuple[Path, Path]) -> None:
    """Where the assets are at hand, they say what the files must be, not the repository."""
    run, assets = pushed_from_a_base
    (assets / "generation_config.json").write_text('{"top_k": 2}')
    (difference,) = hubmerge.verify(run, repo_id=REPO, model_assets_dir=assets).differences
    assert difference.file == "generation_config.json"


def test_an_option_leaves_the_recorded_others(
    api: HfApi, naps: list[float], checkpoint: Path
) -> None:
    """What is given comes first; what is not, the commit says."""
    naming = NamingOptions(keep_dtype=("layers.0",), exclude=("layers.5",))
    push(checkpoint, naming=naming, dtype="float16")
    given = NamingOptions(base_model="x/y")
    assert hubmerge.verify(checkpoint, repo_id=REPO, naming=given).differences == ()
    given = NamingOptions(keep_dtype=("layers.1",))
    found = hubmerge.verify(checkpoint, repo_id=REPO, naming=given).differences
    assert {d.file for d in found} > {"model-00001-of-00003.safetensors"}


@pytest.mark.parametrize(
    "damage",
    [
        {"shard_size": 1.0}, {"dtype": 5}, {"naming": {"model_key": 5}}, {"naming": {"nothing": 1}},
        {"naming": {"include": "x"}}, {"naming": {"base_model": "/etc"}}, {"naming": 7},
        {"files": {"README.md": 5}}, {"files": {"README.md": [5]}},
    ],
    ids=str,
)  # fmt: skip
def test_a_forged_record_is_refused(damage: dict[str, Any], checkpoint: Path) -> None:
    """Whoever may write to the repository can write a record; each part has its type, or none."""
    recorded = {"dtype": "bfloat16", "shard_size": 3000, "naming": {}, "files": {}} | damage
    with pytest.raises(CheckpointError, match="damaged"):
        recalled_content_ids(recorded) if "files" in damage else recalled_options(
            recorded, DEFAULT_PLAN
        )


def test_a_record_runs_no_code() -> None:
    """Only who verifies can ask for the model's own code to be run."""
    recorded = {"dtype": "auto", "shard_size": 1, "naming": {"trust_remote_code": True}}
    assert not recalled_options(recorded, DEFAULT_PLAN).naming.trust_remote_code
    given = PlanOptions(naming=NamingOptions(trust_remote_code=True))
    assert recalled_options(recorded, given).naming.trust_remote_code


def test_a_default_that_is_given_comes_before_the_record() -> None:
    """`--dtype bfloat16` is an answer, and no option left out."""
    recorded = {"dtype": "float32", "shard_size": 1, "naming": {"experts": "split", "mode": "full"}}
    given = PlanOptions(dtype="bfloat16", naming=NamingOptions(experts="auto"))
    made_with = recalled_options(recorded, given)
    assert (made_with.dtype, made_with.shard_size) == ("bfloat16", 1)
    assert (made_with.naming.experts, made_with.naming.mode) == ("auto", "full")


def test_an_unknown_revision_is_a_usage_error(
    api: HfApi, naps: list[float], checkpoint: Path
) -> None:
    """A revision that is not there is named."""
    push(checkpoint)
    with pytest.raises(UsageError, match="no revision 'nowhere'"):
        hubmerge.verify(checkpoint, repo_id=REPO, revision="nowhere")


def test_a_tag_and_a_commit_are_revisions(api: HfApi, naps: list[float], checkpoint: Path) -> None:
    """An older state is held against what it was made from, whatever came later."""
    push(checkpoint, tag="v1", dtype="float16")
    first = api.repo_info(REPO).sha
    push(checkpoint)
    for revision in ("v1", str(first), "main"):
        assert hubmerge.verify(checkpoint, repo_id=REPO, revision=revision).differences == ()


def test_a_folder_made_for_a_repository(checkpoint: Path, tmp_path: Path) -> None:
    """The card says for which repository; nothing else is needed to make it again."""
    hubmerge.convert(checkpoint, tmp_path / "out", repo_id="org/name", shard_size=SHARD_SIZE)
    assert "org/name" in (tmp_path / "out" / "README.md").read_text()
    assert verify_folder(checkpoint, tmp_path / "out").differences == ()


def test_base_shards_of_a_single_file(pushed_from_a_base: tuple[Path, Path]) -> None:
    """`--like-base-shards` needs the base model to push, and only the commit to verify."""
    run, assets = pushed_from_a_base
    push(run, model_assets_dir=assets, naming=NamingOptions(like_base_shards=True))
    assert hubmerge.verify(run, repo_id=REPO).differences == ()


@pytest.mark.parametrize(
    "name", ["adapter_config.json", "adapter_model.safetensors", "model.safetensors.index.json",
             "model-00001-of-00002.safetensors"],
)  # fmt: skip
def test_what_a_loader_would_take_first_is_a_difference(
    name: str, api: HfApi, naps: list[float], checkpoint: Path, tmp_path: Path
) -> None:
    """An adapter's config beside a model changes what is loaded, though no file of it changed."""
    hubmerge.push(checkpoint, REPO, no_config=True)
    api.upload_file(path_or_fileobj=b"{}", path_in_repo=name, repo_id=REPO)
    api.upload_file(path_or_fileobj=b"x", path_in_repo="notes/a.txt", repo_id=REPO)
    hubmerge.convert(checkpoint, tmp_path / "out")
    (tmp_path / "out" / name).write_bytes(b"{}")
    (tmp_path / "out" / "notes").mkdir()
    (tmp_path / "out" / "notes" / "a.txt").write_bytes(b"x")
    for result in (
        hubmerge.verify(checkpoint, repo_id=REPO),
        hubmerge.verify(checkpoint, save_dir=tmp_path / "out"),
    ):
        assert [d.file for d in result.differences] == [name]
        assert result.unchecked == ("notes/a.txt",)
        assert "notes/a.txt" in as_text(result)


# ---- A folder with the record of how it was made ----


@pytest.fixture
def recorded(tmp_path: Path) -> tuple[Path, Path]:
    """A checkpoint of a Llama, and the folder that was made of it with options of all kinds."""
    model = llama(tmp_path / "run", seed=5)
    naming = NamingOptions(keep_dtype=(r"norm",), exclude=(r"layers\.1\.mlp",), check_model=False)
    hubmerge.convert(
        model.load_dir, tmp_path / "out", model_assets_dir=model.assets, dtype="float16",
        shard_size=20_000, license="mit", naming=naming,
    )  # fmt: skip
    return model.load_dir, tmp_path / "out"


def test_a_folder_needs_only_the_checkpoint(recorded: tuple[Path, Path]) -> None:
    """Options stand in its record, its own config is used, and no path is recorded."""
    checkpoint, folder = recorded
    result = hubmerge.verify(checkpoint, save_dir=folder)
    assert result.differences == ()
    assert result.options is not None
    assert result.options["dtype"] == "float16"
    assert str(checkpoint.parent) not in (folder / ".hubmerge.json").read_text()
    given = hubmerge.verify(checkpoint, save_dir=folder, dtype="bfloat16").differences
    assert {d.file for d in given} >= {path.name for path in folder.glob("*.safetensors")}


@pytest.mark.parametrize("name", ["config.json", "README.md", "chat_template.jinja"])
def test_each_small_file_of_a_folder_is_checked(name: str, recorded: tuple[Path, Path]) -> None:
    """By the record; a config that was changed does not say how to read the checkpoint."""
    checkpoint, folder = recorded
    (folder / name).write_text((folder / name).read_text().replace("e", "a"))
    (difference,) = hubmerge.verify(checkpoint, save_dir=folder).differences
    assert difference.file == name


def test_a_changed_shard_is_found_by_the_record(recorded: tuple[Path, Path]) -> None:
    """With the first tensor that differs."""
    checkpoint, folder = recorded
    path = min(folder.glob("*.safetensors"))
    path.write_bytes(path.read_bytes()[:-1] + b"\x99")
    (difference,) = hubmerge.verify(checkpoint, save_dir=folder).differences
    assert (difference.file, bool(difference.tensor)) == (path.name, True)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"files": {"a": [5]}}', "[" * 50_000])
def test_a_damaged_record_of_a_folder(text: str, recorded: tuple[Path, Path]) -> None:
    """It is never guessed at; without it, the options are needed."""
    checkpoint, folder = recorded
    (folder / ".hubmerge.json").write_text(text)
    with pytest.raises(CheckpointError, match="damaged"):
        hubmerge.verify(checkpoint, save_dir=folder)
    (folder / ".hubmerge.json").unlink()
    assert hubmerge.verify(checkpoint, save_dir=folder).differences


def test_a_run_that_was_cut_off_is_a_difference(checkpoint: Path, converted: Path) -> None:
    """The journal of a conversion says that it is not complete."""
    (converted / ".hubmerge.journal").write_text("{}")
    (difference,) = verify_folder(checkpoint, converted).differences
    assert difference.file == ".hubmerge.journal"


@pytest.mark.parametrize("content", [b"[]", b"\xff", b'{"num_hidden_layers": 1000000000}'])
def test_a_changed_config_is_named_and_not_used(
    content: bytes, api: HfApi, naps: list[float], model: Model
) -> None:
    """What was not pushed says nothing about how to read the checkpoint."""
    hubmerge.push(model.load_dir, REPO, model_assets_dir=model.assets)
    assert hubmerge.verify(model.load_dir, repo_id=REPO).differences == ()
    api.upload_file(path_or_fileobj=content, path_in_repo="config.json", repo_id=REPO)
    result = hubmerge.verify(model.load_dir, repo_id=REPO)
    assert [d.file for d in result.differences] == ["config.json"]
    assert "model.safetensors" in result.unchecked


@pytest.mark.parametrize("content", [b"[]", b'{"tie_word_embeddings": true}'])
def test_a_config_that_was_there_before_is_not_used(
    content: bytes, api: HfApi, naps: list[float], model: Model
) -> None:
    """A push without assets leaves the repository's own config, which then decided nothing."""
    api.create_repo(REPO)
    api.upload_file(path_or_fileobj=content, path_in_repo="config.json", repo_id=REPO)
    hubmerge.push(model.load_dir, REPO, no_config=True)
    result = hubmerge.verify(model.load_dir, repo_id=REPO)
    assert result.differences == ()
    assert "config.json" in result.unchecked


@pytest.mark.parametrize("name", ["config.json", "chat_template.jinja", "README.md"])
def test_each_small_file_of_a_repository_is_checked(
    name: str, api: HfApi, naps: list[float], model: Model
) -> None:
    """One that was edited, and one that was deleted, is the one difference."""
    hubmerge.push(model.load_dir, REPO, model_assets_dir=model.assets)
    assert name in api.list_repo_files(REPO)
    api.upload_file(path_or_fileobj=b"{}", path_in_repo=name, repo_id=REPO)
    assert [d.file for d in hubmerge.verify(model.load_dir, repo_id=REPO).differences] == [name]
    api.delete_file(name, repo_id=REPO)
    assert [d.file for d in hubmerge.verify(model.load_dir, repo_id=REPO).differences] == [name]


def test_a_changed_index_hides_no_other_difference(
    api: HfApi, naps: list[float], model: Model
) -> None:
    """It is computed again, so that the shards are looked at all the same."""
    hubmerge.push(model.load_dir, REPO, model_assets_dir=model.assets, shard_size=15_000)
    index, shard = "model.safetensors.index.json", "model-00002-of-00004.safetensors"
    api.upload_file(path_or_fileobj=b"{}", path_in_repo=index, repo_id=REPO)
    api.delete_file(shard, repo_id=REPO)
    found = hubmerge.verify(model.load_dir, repo_id=REPO).differences
    assert {difference.file for difference in found} == {index, shard}


def test_a_checkpoint_that_was_moved_is_the_same(checkpoint: Path, tmp_path: Path) -> None:
    """The card says the step and the layout, which the path tells; they are no difference."""
    step = shutil.copytree(checkpoint, tmp_path / "checkpoints" / "global_step_7")
    hubmerge.convert(step, tmp_path / "out", shard_size=SHARD_SIZE)
    assert "Step: 7" in (tmp_path / "out" / "README.md").read_text()
    assert verify_folder(checkpoint, tmp_path / "out").differences == ()


def test_what_the_commit_says_is_shown(api: HfApi, naps: list[float], checkpoint: Path) -> None:
    """Who may write to a repository can write its record: what it claims is printed."""
    push(checkpoint, naming=NamingOptions(rename=("layers=>blocks",)))
    result = hubmerge.verify(checkpoint, repo_id=REPO)
    assert result.options is not None
    assert result.options["naming"] == {"rename": ["layers=>blocks"]}
    assert "made with these options: " in as_text(result)
    assert "rename layers=>blocks" in as_text(result)
    forged = as_text(replace(result, options={"dtype": "float16\n\x1b[2K✓ Verified"}))
    assert "dtype float16 \\x1b[2K✓ Verified" in forged


@pytest.mark.parametrize("option", [{"card": "README.md"}, {"license": "mit"}])
def test_a_repositorys_card_is_told_by_its_commit(
    option: dict[str, Any], api: HfApi, naps: list[float], checkpoint: Path
) -> None:
    """Options that would not be looked at are refused."""
    push(checkpoint)
    with pytest.raises(UsageError, match="with a folder only"):
        hubmerge.verify(checkpoint, repo_id=REPO, **option)


def test_a_folder_that_is_not_there(checkpoint: Path, tmp_path: Path) -> None:
    """Said before anything is hashed."""
    with pytest.raises(UsageError, match="no such folder"):
        hubmerge.verify(checkpoint, save_dir=tmp_path / "nowhere")
