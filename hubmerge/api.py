"""What a training script imports: the whole tool as functions that never print and never exit."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from hubmerge.checkpoint.locate import locate
from hubmerge.checkpoint.metadata import read_checkpoint
from hubmerge.conversion.slabs import open_data_files
from hubmerge.conversion.to_folder import ConvertResult, convert_plan
from hubmerge.errors import HubmergeError, UsageError, only_our_errors
from hubmerge.hf_format.assets import Assets
from hubmerge.names.naming import holds_model
from hubmerge.names.options import DEFAULT_NAMING
from hubmerge.planning.card import CARD, CardOptions, repository_named_in
from hubmerge.planning.inspection import Inspection, inspect_checkpoint
from hubmerge.planning.options import PlanOptions, check_options
from hubmerge.planning.plan import DEFAULT_DTYPE, DEFAULT_SHARD_SIZE, Plan
from hubmerge.planning.prepare import prepare
from hubmerge.planning.preview import Preview
from hubmerge.planning.publication import Publication
from hubmerge.progress import SILENT, Progress
from hubmerge.publish.hub import Hub, quiet_hub
from hubmerge.publish.options import DEFAULT_BRANCH, PushOptions
from hubmerge.publish.push import PushResult, push_plan
from hubmerge.publish.staging_folder import staging_cap
from hubmerge.system.ranks import SINGLE_PROCESS, Ranks
from hubmerge.verification import VerifyResult, verify_folder, verify_repository

if TYPE_CHECKING:
    from typing_extensions import Unpack


@only_our_errors()
def inspect(load_dir: str | Path) -> Inspection:
    """What the checkpoint in `load_dir` holds, without torch and without reading its data.

    Raises:
        NotACheckpointError, CheckpointError, UnsafeInputError: it cannot be described.
    """
    located = locate(Path(load_dir), holds_model)
    return inspect_checkpoint(read_checkpoint(located.folder), located)


@only_our_errors()
def plan(load_dir: str | Path, **options: Unpack[PlanOptions]) -> tuple[Plan, Assets]:
    """What `convert` and `push` would write; see `PlanOptions`.

    No tensor is read but those that the config ties, and they only to be compared.
    """
    check_options(options)
    return prepare(
        Path(load_dir),
        _assets_dir(options),
        options.get("naming", DEFAULT_NAMING),
        dtype=options.get("dtype", DEFAULT_DTYPE),
        shard_size=options.get("shard_size", DEFAULT_SHARD_SIZE),
    )


@only_our_errors()
def preview(
    load_dir: str | Path,
    repo_id: str | None = None,
    *,
    no_push: bool = True,
    max_disk: int | None = None,
    ranks: Ranks = SINGLE_PROCESS,
    **options: Unpack[PlanOptions],
) -> Preview:
    """`plan`, and what a run with it would write and need; a warning where it would fail."""
    publication = _publication(load_dir, repo_id, options)
    planned, warnings = publication.plan, list(publication.warnings)
    try:
        open_data_files(planned)
    except HubmergeError as error:
        warnings.append(f"the run would fail: {error}")
    small = publication.small_files()
    sizes = {shard.filename: shard.size_bytes for shard in planned.shards}
    sizes |= {name: len(content) for name, content in small.items()}
    peak_disk_bytes = sum(sizes.values())
    if not no_push:
        staged = ranks.local_count * staging_cap(planned, max_disk, ranks)
        peak_disk_bytes = min(staged, peak_disk_bytes)
    return Preview(planned, sizes, tuple(warnings), peak_disk_bytes)


@only_our_errors()
def convert(
    load_dir: str | Path,
    save_dir: str | Path | None = None,
    *,
    repo_id: str | None = None,
    overwrite: bool = False,
    progress: Progress = SILENT,
    ranks: Ranks = SINGLE_PROCESS,
    **options: Unpack[PlanOptions],
) -> ConvertResult:
    """Convert a distributed checkpoint into a folder that `from_pretrained` loads.

    The folder is exactly what `push` would publish.

    Args:
        load_dir: the folder with `.metadata` and the data files; never modified, but for
            `save_dir` if that is inside it.
        save_dir: `hf_ckpt` inside `load_dir` if None.
        repo_id: where it will be published, for the model card.
        overwrite: replace a model that `save_dir` already holds.
        progress: told what happens; silent by default.
        ranks: the processes that share the work; each of them calls this.
        options: see `PlanOptions`.

    Raises:
        HubmergeError: one of the tree in `hubmerge.errors`. An incomplete file never has its final
            name, and a folder never has an index before it is complete.
    """
    return convert_plan(
        _publication(load_dir, repo_id, options),
        Path(save_dir) if save_dir is not None else _default_save_dir(Path(load_dir)),
        overwrite=overwrite,
        progress=progress,
        ranks=ranks,
    )


@only_our_errors()
def push(
    load_dir: str | Path,
    repo_id: str,
    *,
    private: bool = False,
    revision: str = DEFAULT_BRANCH,
    create_pr: bool = False,
    tag: str | None = None,
    commit_message: str | None = None,
    commit_description: str | None = None,
    token: str | None = None,
    staging_dir: str | Path | None = None,
    max_disk: int | None = None,
    clean: bool = False,
    progress: Progress = SILENT,
    ranks: Ranks = SINGLE_PROCESS,
    **options: Unpack[PlanOptions],
) -> PushResult:
    """Convert a distributed checkpoint and publish it on the Hub in one atomic commit.

    Args:
        load_dir: as in `convert`.
        repo_id: ``ORG/NAME``; created if missing.
        private: create it private.
        revision: the branch that is moved, once; created if missing.
        create_pr: open a pull request with that one commit instead.
        tag: a tag for the commit.
        token: None means the stored login.
        staging_dir: where finished shards stand until they are uploaded.
        max_disk: bytes that `staging_dir` ever holds; two shards if None.
        clean: remove staging branches that other, unfinished runs left.
        progress, ranks, options: as in `convert`.

    Raises:
        HubmergeError: one of the tree in `hubmerge.errors`; the branch is then as it was, and the
            same call resumes.
    """
    push_options = PushOptions(
        repo_id=repo_id,
        private=private,
        revision=revision,
        create_pr=create_pr,
        tag=tag,
        commit_message=commit_message,
        commit_description=commit_description,
        token=token,
        staging_dir=Path(staging_dir) if staging_dir is not None else None,
        max_disk=max_disk,
        clean=clean,
    )
    return push_plan(_publication(load_dir, repo_id, options), push_options, progress, ranks)


@only_our_errors()
def verify(
    load_dir: str | Path,
    *,
    save_dir: str | Path | None = None,
    repo_id: str | None = None,
    revision: str = DEFAULT_BRANCH,
    token: str | None = None,
    progress: Progress = SILENT,
    **options: Unpack[PlanOptions],
) -> VerifyResult:
    """Hold a folder or a repository against the checkpoint that it was made from.

    Every shard's sha256 is computed from the checkpoint; nothing is written, and of a repository
    only its listing and its config are read.

    Args:
        load_dir: as in `convert`.
        save_dir: the folder, made with these `options`.
        repo_id, revision: the repository. Its newest commit by hubmerge says with which options it
            was made, and what index, config, card and the like were; options given here come
            first, and so do the files of an assets folder that is given here.

    Raises:
        UsageError: neither or both of `save_dir` and `repo_id`, or no record of a push.
        HubmergeError: the checkpoint or the Hub cannot be read.
    """
    if (save_dir is None) == (repo_id is None):
        raise UsageError("verify needs either a repository or a folder", "--repo-id or --save-dir")
    if save_dir is not None:
        if not Path(save_dir).is_dir():
            raise UsageError(f"{save_dir}: no such folder", "Check --save-dir.")
        # The card names the repository that the folder was made for.
        named = repository_named_in(Path(save_dir) / CARD)
        return verify_folder(_publication(load_dir, named, options), Path(save_dir), progress)

    def plan_with(recorded: PlanOptions) -> tuple[Plan, Assets]:
        return plan(load_dir, **recorded)

    with quiet_hub():
        return verify_repository(
            Hub(str(repo_id), token), revision, options, plan_with, progress=progress
        )


def _publication(load_dir: str | Path, repo_id: str | None, options: PlanOptions) -> Publication:
    planned, assets = plan(load_dir, **options)
    return Publication(planned, assets, _card_options(options), repo_id, options)


def _default_save_dir(load_dir: Path) -> Path:
    """`hf_ckpt` in the checkpoint, which may come from anybody: a link there is not followed."""
    folder = load_dir / "hf_ckpt"
    if folder.is_symlink():
        raise UsageError(f"{folder}: is a link", "Say where to write with --save-dir.")
    return folder


def _assets_dir(options: PlanOptions) -> Path | None:
    folder = options.get("model_assets_dir")
    return Path(folder) if folder is not None else None


def _card_options(options: PlanOptions) -> CardOptions:
    """The card's inputs: the user's own card is `card`, or README.md among the assets."""
    folder, card = _assets_dir(options), options.get("card")
    path = Path(card) if card is not None else folder / CARD if folder is not None else None
    text = None
    if path is not None and (path.is_file() or card is not None):
        try:
            text = path.read_bytes().decode()
        except (OSError, ValueError) as error:
            raise UsageError(f"{path.name}: the model card cannot be read: {error}") from None
    naming = options.get("naming", DEFAULT_NAMING)
    return CardOptions(naming.base_model, options.get("license"), text)
