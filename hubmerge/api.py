"""What a training script imports: the whole tool as functions that never print and never exit."""

from __future__ import annotations

import inspect as introspection
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from functools import partial, wraps
from pathlib import Path
from typing import Any, TypeVar, cast, get_type_hints

from hubmerge.checkpoint.locate import locate
from hubmerge.checkpoint.metadata import read_checkpoint
from hubmerge.conversion.folder_record import read_record
from hubmerge.conversion.shard_writer import BUFFER_BYTES
from hubmerge.conversion.slabs import open_data_files
from hubmerge.conversion.to_folder import ConvertResult, convert_plan
from hubmerge.errors import UsageError, only_our_errors
from hubmerge.hf_format.assets import Assets
from hubmerge.names.naming import holds_model
from hubmerge.names.options import DEFAULT_NAMING, NamingOptions
from hubmerge.options import has_type
from hubmerge.planning.card import CARD, CardOptions, repository_named_in
from hubmerge.planning.eval_results import read_eval_results
from hubmerge.planning.inspection import Inspection, inspect_checkpoint
from hubmerge.planning.options import PlanOptions, TorchDtype
from hubmerge.planning.plan import Plan
from hubmerge.planning.prepare import prepare
from hubmerge.planning.preview import Preview
from hubmerge.planning.publication import Publication
from hubmerge.progress import SILENT, Progress
from hubmerge.publish.hub import Hub, quiet_hub
from hubmerge.publish.options import DEFAULT_BRANCH, PushOptions
from hubmerge.publish.preview import PushPreview, preview_push, preview_target
from hubmerge.publish.push import PushResult, push_plan
from hubmerge.publish.staged import StagedPush, list_staged, remove_staged
from hubmerge.publish.staging_folder import staging_cap
from hubmerge.system.ranks import SINGLE_PROCESS, Ranks
from hubmerge.verification import (
    VerifyResult,
    verify_folder,
    verify_recorded_folder,
    verify_repository,
)

F = TypeVar("F", bound=Callable[..., Any])
R = TypeVar("R", ConvertResult, PushResult, VerifyResult)


def _public(function: F) -> F:
    """Make a wrong call a TypeError at once, and anything else that goes wrong a HubmergeError."""
    signature = introspection.signature(function)
    inner = only_our_errors()(function)

    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            arguments = signature.bind(*args, **kwargs).arguments
        except TypeError as error:
            named = [f.name for f in fields(NamingOptions) if f.name in kwargs]
            advice = f"; use naming=NamingOptions({named[0]}=...)" if named else ""
            raise TypeError(f"{function.__name__}() {error}{advice}") from None
        hints = get_type_hints(function)
        for name, value in arguments.items():
            if not has_type(value, hints[name]):
                wanted = signature.parameters[name].annotation
                raise TypeError(
                    f"{function.__name__}() argument {name!r} must be {wanted}, "
                    f"not {type(value).__name__}"
                )
        return inner(*args, **kwargs)

    return cast(F, call)


@_public
def inspect(load_dir: str | Path) -> Inspection:
    """Describe the checkpoint in `load_dir`, without torch and without reading its data.

    Example:
        >>> import hubmerge
        >>> [group.key for group in hubmerge.inspect("runs/my-run").groups]
        ['model', 'optimizer']

    Raises:
        NotACheckpointError, CheckpointError, UnsafeInputError: it cannot be described.
    """
    located = locate(Path(load_dir), holds_model)
    return inspect_checkpoint(read_checkpoint(located.folder), located)


@_public
def plan(
    load_dir: str | Path,
    *,
    model_assets_dir: str | Path | None = None,
    shard_size: int | str | None = None,
    dtype: str | TorchDtype | None = None,
    license: str | None = None,  # noqa: A002 - the Hub's word
    card: str | Path | None = None,
    eval_results: str | Path | None = None,
    no_config: bool = False,
    naming: NamingOptions = DEFAULT_NAMING,
) -> tuple[Plan, Assets]:
    """Return what `convert` and `push` would write; see `PlanOptions`.

    Example:
        >>> import hubmerge
        >>> plan, assets = hubmerge.plan("runs/my-run", dtype="float16")
        >>> [shard.filename for shard in plan.shards]
        ['model.safetensors']

    No tensor is read but those that the config ties, and they only to be compared.
    """
    return prepare(Path(load_dir), PlanOptions.among(locals()))


@only_our_errors()
def preview(
    load_dir: Path,
    options: PlanOptions,
    where: PushOptions | None,
    *,
    repo_id: str | None = None,
    progress: Progress = SILENT,
    ranks: Ranks = SINGLE_PROCESS,
) -> Preview:
    """Return what a conversion, or a push to `where`, would write and need; change nothing.

    Args:
        repo_id: for the model card of a conversion.

    Raises:
        HubmergeError: what the run itself would raise before it converts anything.
    """
    name = where.repo_id if where is not None else repo_id
    publication = _planned(load_dir, name, options, progress)
    plan, push = publication.plan, None
    open_data_files(plan)
    sizes = {shard.filename: shard.size_bytes for shard in plan.shards}
    sizes |= {name: len(content) for name, content in publication.small_files().items()}
    peak_disk_bytes = sum(sizes.values())
    if where is not None:
        staged = ranks.local_count * staging_cap(plan, where.max_disk, ranks)
        peak_disk_bytes = min(staged, peak_disk_bytes)
        progress.status(f"Checking {where.repo_id}…")
        push = preview_push(publication, where, ranks)
    return Preview(plan, sizes, publication.warnings, BUFFER_BYTES, peak_disk_bytes, push)


@only_our_errors()
def check(where: PushOptions) -> PushPreview:
    """Return what is known of a push before there is a checkpoint; change nothing.

    Raises:
        HubmergeError: what a push would raise because of the token, the repository or the options.
    """
    return preview_target(where)


@only_our_errors()
def staged(repo_id: str, token: str | None, remove: Collection[str] = ()) -> list[StagedPush]:
    """Return what unfinished pushes left on a repository, once `remove` is removed.

    Raises:
        UsageError: one of `remove` is no staging branch.
        HubmergeError: the Hub refuses.
    """
    with quiet_hub():
        hub = Hub(repo_id, token)
        if remove:
            remove_staged(hub, remove)
        return list_staged(hub)


@_public
def convert(
    load_dir: str | Path,
    save_dir: str | Path | None = None,
    *,
    repo_id: str | None = None,
    overwrite: bool = False,
    progress: Progress | bool = False,
    ranks: Ranks = SINGLE_PROCESS,
    model_assets_dir: str | Path | None = None,
    shard_size: int | str | None = None,
    dtype: str | TorchDtype | None = None,
    license: str | None = None,  # noqa: A002 - the Hub's word
    card: str | Path | None = None,
    eval_results: str | Path | None = None,
    no_config: bool = False,
    naming: NamingOptions = DEFAULT_NAMING,
) -> ConvertResult:
    """Convert a distributed checkpoint into a folder that `from_pretrained` loads.

    The folder is exactly what `push` would publish.

    Example:
        >>> import hubmerge
        >>> result = hubmerge.convert("runs/my-run", "my-model", shard_size="5GB")
        >>> result.save_dir.name
        'my-model'

    Args:
        load_dir: the folder with `.metadata` and the data files; never modified, but for
            `save_dir` if that is inside it.
        save_dir: `hf_ckpt` inside `load_dir` if None.
        repo_id: where it will be published, for the model card.
        overwrite: replace a model that `save_dir` already holds.
        progress: receives events; True shows bars on stderr.
        ranks: the processes that share the work; each of them calls this.
        model_assets_dir, shard_size, dtype, license, card, eval_results, no_config, naming: see
            `PlanOptions`.

    Raises:
        HubmergeError: one of the tree in `hubmerge.errors`. An incomplete file never has its final
            name, and a folder never has an index before it is complete.
    """
    options, began = PlanOptions.among(locals()), time.monotonic()
    folder = Path(save_dir) if save_dir is not None else _default_save_dir(Path(load_dir))
    with _listener(progress) as listener:
        publication = _publication(load_dir, repo_id, options, listener)
        result = convert_plan(
            publication, folder, overwrite=overwrite, progress=listener, ranks=ranks
        )
    return _timed(result, began)


@_public
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
    max_disk: int | str | None = None,
    clean: bool = False,
    keep_others: bool = False,
    progress: Progress | bool = False,
    ranks: Ranks = SINGLE_PROCESS,
    model_assets_dir: str | Path | None = None,
    shard_size: int | str | None = None,
    dtype: str | TorchDtype | None = None,
    license: str | None = None,  # noqa: A002 - the Hub's word
    card: str | Path | None = None,
    eval_results: str | Path | None = None,
    no_config: bool = False,
    naming: NamingOptions = DEFAULT_NAMING,
) -> PushResult:
    """Convert a distributed checkpoint and publish it on the Hub in one atomic commit.

    Example:
        >>> import hubmerge
        >>> result = hubmerge.push("runs/my-run", "my-org/my-model", model_assets_dir="base")
        >>> result.revision, result.changed
        ('main', True)

    Args:
        load_dir: as in `convert`.
        repo_id: ``ORG/NAME``; created if missing.
        private: create it private.
        revision: the branch that is moved, once; created if missing.
        create_pr: open a pull request with that one commit instead.
        tag: a tag for the commit.
        token: None means the stored login.
        staging_dir: directory for shards awaiting upload.
        max_disk: bytes that `staging_dir` ever holds; two shards if None.
        clean: remove staging branches that other, unfinished runs left.
        keep_others: leave the target's other weights, which the commit would remove.
        progress, ranks: as in `convert`.
        model_assets_dir, shard_size, dtype, license, card, eval_results, no_config, naming: see
            `PlanOptions`.

    Raises:
        HubmergeError: see `hubmerge.errors`; the branch is unchanged, and the same call resumes.
    """
    options, what = PushOptions.among(locals()), PlanOptions.among(locals())
    began = time.monotonic()
    with _listener(progress, uploads=True) as listener:
        publication = _publication(load_dir, repo_id, what, listener)
        listener.status(f"Checking {repo_id}…")
        result = push_plan(publication, options, listener, ranks)
    return _timed(result, began)


@_public
def verify(
    load_dir: str | Path,
    *,
    save_dir: str | Path | None = None,
    repo_id: str | None = None,
    revision: str = DEFAULT_BRANCH,
    token: str | None = None,
    progress: Progress | bool = False,
    model_assets_dir: str | Path | None = None,
    shard_size: int | str | None = None,
    dtype: str | TorchDtype | None = None,
    license: str | None = None,  # noqa: A002 - the Hub's word
    card: str | Path | None = None,
    eval_results: str | Path | None = None,
    no_config: bool = False,
    naming: NamingOptions = DEFAULT_NAMING,
) -> VerifyResult:
    """Verify a folder or a repository against the checkpoint that it was made from.

    Example:
        >>> import hubmerge
        >>> hubmerge.verify("runs/my-run", repo_id="my-org/my-model").differences
        ()

    Every shard's sha256 is computed from the checkpoint; nothing is written, and of a repository
    only its listing and its config are read.

    Args:
        load_dir: as in `convert`.
        save_dir: the folder.
        repo_id, revision: the repository. Its newest commit by hubmerge records, as a folder's
            ``.hubmerge.json`` does, with which options it was made, and what index, config, card
            and the like were; options given here come first, and so do the files of an assets
            folder that is given here.

    Raises:
        UsageError: neither or both of `save_dir` and `repo_id`, or no record of a push.
        HubmergeError: the checkpoint or the Hub cannot be read.
    """
    options, began = PlanOptions.among(locals()), time.monotonic()
    if (save_dir is None) == (repo_id is None):
        raise UsageError("verify needs either a repository or a folder", "--repo-id or --save-dir")
    if save_dir is not None and not Path(save_dir).is_dir():
        raise UsageError(f"{save_dir}: no such folder", "Check --save-dir.")
    with _listener(progress, words=("checking", "checked")) as listener:
        if save_dir is not None:
            result = _verify_folder(Path(load_dir), Path(save_dir), options, listener)
            return _timed(result, began)
        with quiet_hub():
            plan_with = partial(prepare, Path(load_dir), progress=listener)
            hub = Hub(str(repo_id), token)
            return _timed(verify_repository(hub, revision, options, plan_with, listener), began)


def _verify_folder(
    load_dir: Path, save_dir: Path, options: PlanOptions, progress: Progress
) -> VerifyResult:
    """Verify by the folder's record, unless it has none or the options describe the card."""
    record = read_record(save_dir)
    if record is not None and options.card is None and options.license is None:
        plan_with = partial(prepare, load_dir, progress=progress)
        result = verify_recorded_folder(save_dir, record, options, plan_with, progress)
        for warning in result.warnings:
            progress.warn(warning)
        return result
    # The card names the repository that the folder was made for.
    named = repository_named_in(save_dir / CARD)
    return verify_folder(_publication(load_dir, named, options, progress), save_dir, progress)


def _timed(result: R, began: float) -> R:
    return replace(result, seconds=round(time.monotonic() - began, 3))


@contextmanager
def _listener(progress: Progress | bool, **bars: Any) -> Iterator[Progress]:
    """Yield the caller's own progress, bars on stderr if True, or else a silent one."""
    if progress is True:
        from hubmerge.progress_bars import Bars

        with Bars(**bars) as shown:
            yield shown
    else:
        yield progress or SILENT


def _publication(
    load_dir: str | Path, repo_id: str | None, options: PlanOptions, progress: Progress
) -> Publication:
    """Plan what is written, and warn before the first byte is."""
    publication = _planned(load_dir, repo_id, options, progress)
    for warning in publication.warnings:
        progress.warn(warning)
    return publication


def _planned(
    load_dir: str | Path, repo_id: str | None, options: PlanOptions, progress: Progress
) -> Publication:
    results = options.eval_results
    more = (read_eval_results(Path(results)),) if results is not None else ()
    planned, assets = prepare(Path(load_dir), options, progress)
    assets = replace(assets, files=(*assets.files, *more))
    return Publication(planned, assets, _card_options(options), repo_id, options)


def _default_save_dir(load_dir: Path) -> Path:
    """Return `hf_ckpt` in the checkpoint, which is untrusted: a link there is not followed."""
    folder = load_dir / "hf_ckpt"
    if folder.is_symlink():
        raise UsageError(f"{folder}: is a link", "Say where to write with --save-dir.")
    return folder


def _card_options(options: PlanOptions) -> CardOptions:
    """Return the card's inputs: the user's own card is `card`, or README.md among the assets."""
    folder, card = options.model_assets_dir, options.card
    path = Path(card) if card is not None else Path(folder, CARD) if folder is not None else None
    text = None
    if path is not None and (path.is_file() or card is not None):
        try:
            text = path.read_bytes().decode()
        except (OSError, ValueError) as error:
            raise UsageError(f"{path.name}: the model card cannot be read: {error}") from None
    return CardOptions(options.naming.base_model, options.license, text)
