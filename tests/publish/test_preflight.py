"""What a push refuses before it converts anything, and what it makes of cards."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.fake_hub import Hub
from tests.support.push.checks import staging_branches
from tests.support.push.command import REPO, Done
from tests.support.push.models import Model

pytest_plugins = ["tests.support.push.plugin"]

Push = Callable[..., Done]


@pytest.fixture
def refused(
    hub: Hub, push: Push, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Callable[..., Done]:
    """Push; it must fail with no conversion tried, and no trace left on the Hub."""
    monkeypatch.setattr("hubmerge.publish.pipeline.write_shard", None)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "no-token"))

    def run(*argv: str, **options: object) -> Done:
        moves = {name: list(repo.moves) for name, repo in hub.repos.items()}
        done = push(*argv, **options)
        assert done.code != 0
        assert done.out == ""
        assert "\nError: " in f"\n{done.err}"
        assert {name: list(repo.moves) for name, repo in hub.repos.items()} == moves
        return done

    return run


def with_assets(model: Model, folder: Path, **texts: str) -> Model:
    """The model with other files in its assets folder; `__` in a name stands for a dot."""
    folder.mkdir()
    for path in model.assets.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    for name, text in texts.items():
        (folder / name.replace("__", ".")).write_text(text)
    return Model(model.load_dir, folder, model.tensors)


@pytest.mark.parametrize("token", ["read", "revoked", "stranger", "fine_user"])
@pytest.mark.parametrize("exists", [True, False])
def test_a_token_that_may_not_write(
    token: str, exists: bool, hub: Hub, refused: Callable[..., Done]
) -> None:
    """A token that may not write is found out first: exit 6, and what to do about it."""
    if exists:
        hub.create_repo("acme/model")
    done = refused(f"--token={hub.tokens[token]}", repo_id="acme/model")
    assert done.code == 6
    assert ("Hint: Log in with `hf auth login`" in done.err) == (token == "revoked")
    assert hub.tokens[token] not in done.err


@pytest.mark.parametrize("exists", [True, False])
def test_no_token(
    exists: bool, hub: Hub, refused: Callable[..., Done], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a login the push ends before it begins."""
    if exists:
        hub.create_repo(REPO)
    monkeypatch.delenv("HF_TOKEN")
    assert refused().code == 6


def test_a_fine_grained_token_of_the_organisation(hub: Hub, push: Push) -> None:
    """A fine-grained token with write access is enough."""
    assert push(f"--token={hub.tokens['fine_org']}", repo_id="acme/model").code == 0


def test_a_gated_repo_of_others(hub: Hub, refused: Callable[..., Done]) -> None:
    """A gated repository that one has not been let into is a matter of access."""
    hub.create_repo("acme/model").gated = True
    assert refused(f"--token={hub.tokens['stranger']}", repo_id="acme/model").code == 6


@pytest.mark.parametrize(
    "card",
    ["---\nlicense: [mit\n---\n# Text\n", "---\nlicense: no-such-license\n---\n# Text\n"],
    ids=["no YAML", "refused by the Hub"],
)
def test_a_card_that_the_hub_refuses(
    card: str, hub: Hub, refused: Callable[..., Done], tmp_path: Path
) -> None:
    """A card's bad metadata is a usage error, long before the card would be sent."""
    path = tmp_path / "card.md"
    path.write_text(card)
    assert refused("--card", str(path)).code == 2
    assert REPO not in hub.repos


def test_a_missing_card(refused: Callable[..., Done], tmp_path: Path) -> None:
    """`--card` names a file that is there."""
    assert refused("--card", str(tmp_path / "none.md")).code == 2


SECRETS = {
    "hugging face": "hf_" + "AbCdEfGhIjKlMnOpQrStUvWxYz012345",
    "aws": "AKIA" + "IOSFODNN7EXAMPLE",
    "github": "ghp_" + "0123456789abcdefghijABCDEFGHIJ456789",
    "a key": "-----BEGIN RSA " + "PRIVATE KEY-----",
}


@pytest.mark.parametrize("kind", SECRETS)
def test_secrets_in_assets(
    kind: str, hub: Hub, refused: Callable[..., Done], model: Model, tmp_path: Path
) -> None:
    """A token or key in an asset stops the push; file and line are named, the secret is not."""
    text = '{\n "do_sample": false,\n "note": "' + SECRETS[kind] + '"\n}\n'
    leaky = with_assets(model, tmp_path / "leaky", generation_config__json=text)
    done = refused(of=leaky)
    assert done.code == 4
    assert "generation_config.json, line 3: looks like " in done.err
    assert SECRETS[kind] not in done.err
    assert len(hub.log) == 0


def test_a_vocabulary_holds_any_text(hub: Hub, push: Push, model: Model, tmp_path: Path) -> None:
    """What looks like a key in a tokenizer's vocabulary stops nothing."""
    text = json.dumps({"model": {"vocab": {SECRETS["aws"]: 0}}})
    assert push(of=with_assets(model, tmp_path / "with", tokenizer__json=text)).code == 0
    assert hub.read(REPO, "tokenizer.json").decode() == text


@pytest.mark.parametrize("where", ["card", "message"])
def test_secrets_in_card_and_message(
    where: str, refused: Callable[..., Done], tmp_path: Path
) -> None:
    """Cards and commit messages are as public as assets."""
    card = tmp_path / "card.md"
    card.write_text("# Text\n\n" + SECRETS["aws"] + "\n")
    argv = {"card": ["--card", str(card)], "message": ["--commit-message", SECRETS["aws"]]}[where]
    done = refused(*argv)
    assert done.code == 4
    assert {"card": "the card, line 3", "message": "--commit-message, line 1"}[where] in done.err


def test_other_files_of_the_assets_folder_stay_at_home(
    hub: Hub, push: Push, model: Model, tmp_path: Path
) -> None:
    """Only files known by name are taken from the assets folder."""
    full = with_assets(model, tmp_path / "full", __env="KEY=1\n", notes__txt="private\n",
                       trainer_state__json="{}", tokenizer_config__json="{}\n")  # fmt: skip
    assert push(of=full).code == 0
    assert {name for name in hub.files(REPO) if not name.startswith("model")} == {
        ".gitattributes", "README.md", "chat_template.jinja", "config.json",
        "tokenizer_config.json",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--create-pr", "--revision", "next"], "--create-pr: opens a pull request for main"),
        (["--tag", "bad tag"], "no name for a tag"),
        *((["--revision", name], "no name for a branch") for name in (
            "a b", "a..b", "HEAD", "refs/heads/x", "0123456789" * 4, "hubmerge/abc")),
        (["--max-disk", "1KB"], "--max-disk 1,000 is less than one shard of "),
    ],
)  # fmt: skip
def test_options_that_cannot_be(
    argv: list[str], said: str, hub: Hub, refused: Callable[..., Done]
) -> None:
    """Options that could only fail at the end fail at once."""
    done = refused(*argv)
    assert (done.code, len(hub.log)) == (2, 0)
    assert said in done.err


def test_a_tag_is_no_branch(hub: Hub, refused: Callable[..., Done]) -> None:
    """`--revision` with a tag's name could never be committed to."""
    hub.create_repo(REPO).create_tag("v1", "main")
    assert "--revision v1 is a tag" in refused("--revision", "v1").err


def test_a_pull_request_that_is_not_there(hub: Hub, refused: Callable[..., Done]) -> None:
    """Found before anything is converted."""
    hub.create_repo(REPO)
    assert "no pull request refs/pr/99" in refused("--revision", "refs/pr/99").err


def test_a_staging_folder_that_cannot_be(
    hub: Hub, refused: Callable[..., Done], model: Model, tmp_path: Path
) -> None:
    """A file, the checkpoint, a place inside it: exit 2, and no repository is made for nothing."""
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", model.load_dir, model.load_dir / "inside"):
        assert refused("--staging-dir", str(folder)).code == 2
    assert REPO not in hub.repos
    assert not (model.load_dir / "inside").exists()


def test_a_branch_that_only_looks_like_staging_stays(hub: Hub, push: Push) -> None:
    """`--clean` removes what runs of ours have left, and nothing else of that prefix."""
    hub.create_repo(REPO)
    for name in ("hubmerge/mine", "hubmerge/0123456789abcdef"):
        hub.repo(REPO).create_branch(name, "main")
    assert push("--clean").code == 0
    assert staging_branches(hub, REPO) == ["refs/heads/hubmerge/mine"]


def test_what_becomes_of_older_weights_is_said(hub: Hub, push: Push) -> None:
    """Which go in the commit, and which nobody removes."""
    hub.create_repo(REPO)
    older, preferred = "model-00001-of-00009.safetensors", "consolidated.safetensors"
    others = {"pytorch_model.bin", "original/params.pth", ".eval_results/a.yaml", preferred}
    hub.commit(REPO, {older: b"older", **dict.fromkeys(others, b"others")}, "main")
    kept = push("--keep-others")
    assert f"will remove the older model's {older}" in kept.err
    assert f"keeps other weights, which are not of this checkpoint: {preferred}" in kept.err
    assert "pytorch_model.bin (for loaders without safetensors)" in kept.err
    assert hub.files(REPO).keys() > others
    assert older not in hub.files(REPO)
    result = push("--json")
    assert f"Warning: the commit will remove {preferred}" in result.err
    assert result.json["removed"] == [preferred]
    assert hub.files(REPO).keys() > others - {preferred}
    assert preferred not in hub.files(REPO)


# -- cards -------------------------------------------------------------------------------------


def test_the_generated_card(hub: Hub, push: Push, model: Model) -> None:
    """It says what the model is, how to load it, and where it comes from; nothing private."""
    assert push("--license", "apache-2.0", "--base-model", "org/base").code == 0
    card = hub.read(REPO, "README.md").decode()
    assert card.startswith("---\nbase_model: org/base\nlibrary_name: transformers\nlicense: apache")
    assert 'AutoModelForCausalLM.from_pretrained("alice/model")' in card
    assert "Tokenizer" not in card
    assert "- Step: 7\n" in card
    assert "- Weights: bfloat16\n" in card
    parameters = sum(tensor.numel() for tensor in model.tensors.values())
    assert f"| bfloat16 | {parameters:,} | {2 * parameters / 1000:.1f} KB |" in card
    assert all(f"| model-{i:05d}-of-00004.safetensors | " in card for i in range(1, 5))
    assert str(model.load_dir.parent) not in card
    assert "hf_" not in card


def test_the_card_loads_a_tokenizer_that_is_there(
    hub: Hub, push: Push, model: Model, tmp_path: Path
) -> None:
    """The code in the card loads a tokenizer if one is published."""
    push(of=with_assets(model, tmp_path / "more", tokenizer_config__json="{}\n"))
    card = hub.read(REPO, "README.md").decode()
    assert "from transformers import AutoModelForCausalLM, AutoTokenizer\n" in card


OWN = "---\nlicense: mit\ntags:\n- mine\n---\n# Mine\r\n\n  Kept   as it is. é\n\n"


@pytest.mark.parametrize("place", ["--card", "assets", "repo"])
def test_a_card_of_ones_own_is_kept(
    place: str, hub: Hub, push: Push, model: Model, tmp_path: Path
) -> None:
    """Its body is kept byte for byte and its metadata too; only what is missing is filled in."""
    pushed, argv = model, []
    if place == "--card":
        (tmp_path / "card.md").write_bytes(OWN.encode())
        argv = ["--card", str(tmp_path / "card.md")]
    elif place == "assets":
        pushed = with_assets(model, tmp_path / "with")
        (pushed.assets / "README.md").write_bytes(OWN.encode())
    else:
        hub.create_repo(REPO)
        hub.commit(REPO, {"README.md": OWN.encode()})
    assert push(*argv, of=pushed).code == 0
    card = hub.read(REPO, "README.md")
    header, _, body = card.decode().partition("---\n# Mine")
    assert "# Mine" + body == OWN.partition("---\n# Mine")[1][4:] + OWN.partition("---\n# Mine")[2]
    assert "license: mit\n" in header
    assert "tags:\n- mine\n" in header
    assert "library_name: transformers\n" in header
    head = hub.head(REPO)
    assert push(*argv, of=pushed).out.startswith("✓ Nothing to do")
    assert (hub.head(REPO), hub.read(REPO, "README.md")) == (head, card)


def test_our_own_card_is_written_again(
    hub: Hub, push: Push, other_model: Model, model: Model
) -> None:
    """The card of an older push gives way to that of the new one."""
    push(of=other_model)
    push()
    card = hub.read(REPO, "README.md").decode()
    assert "- Step: 7\n" in card
    assert "- Step: 3\n" not in card


def test_a_private_path_in_the_config_is_no_base_model(
    hub: Hub, push: Push, model: Model, tmp_path: Path
) -> None:
    """`_name_or_path` is named in the card only where it is a Hub id."""
    config = (model.assets / "config.json").read_text().rstrip().removesuffix("}").rstrip()
    for name, expected in (("/home/somebody/base", False), ("org/base", True)):
        text = config + f',\n "_name_or_path": "{name}"\n}}\n'
        folder = tmp_path / name.replace("/", "_")
        assert push(of=with_assets(model, folder, config__json=text)).code == 0
        assert ("base_model: org/base\n" in hub.read(REPO, "README.md").decode()) is expected
        assert b"somebody" not in hub.read(REPO, "README.md")
