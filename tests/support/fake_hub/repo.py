"""A repository as git sees it: commits, trees, refs, and the history of every ref.

Pure model, no HTTP. The history is kept so that a test can ask what every reader of a branch could
have seen, not only what is there at the end.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from . import errors, git, rules

HEADS, TAGS, PULLS = "refs/heads/", "refs/tags/", "refs/pr/"


@dataclass(frozen=True)
class FileEntry:
    """A file of a tree: its bytes if regular, the name of its blob if LFS."""

    size: int
    blob_id: str
    content: bytes | None = None
    sha256: str | None = None
    xet_hash: str | None = None

    @classmethod
    def regular(cls, content: bytes) -> FileEntry:
        """A file that git itself holds."""
        return cls(len(content), git.blob_id(content), content=content)

    @classmethod
    def lfs(cls, sha256: str, size: int, xet_hash: str | None = None) -> FileEntry:
        """A file of which git holds only a pointer."""
        pointer = git.blob_id(git.lfs_pointer(sha256, size))
        return cls(size, pointer, sha256=sha256, xet_hash=xet_hash)

    @property
    def oid(self) -> str:
        """What `preupload` calls the file's oid: sha256 for LFS, git's own otherwise."""
        return self.sha256 or self.blob_id


Files = Mapping[str, FileEntry]


@dataclass(frozen=True)
class Commit:
    """One commit and the whole tree under it."""

    sha: str
    parents: tuple[str, ...]
    files: Files
    title: str
    description: str
    author: str
    time: float


@dataclass(frozen=True)
class Move:
    """A ref that went from one commit to another; None stands for 'not there'."""

    time: float
    ref: str
    old: str | None
    new: str | None


@dataclass(frozen=True)
class Edit:
    """One line of a commit: a file put at a path, or (without an entry) something removed."""

    path: str
    entry: FileEntry | None = None
    folder: bool = False


@dataclass
class Discussion:
    """A discussion or a pull request."""

    num: int
    title: str
    description: str
    author: str
    is_pull: bool
    base: str
    start: str
    status: Literal["draft", "open", "closed", "merged"]
    time: float = field(default_factory=time.time)
    merge_commit: str | None = None

    @property
    def ref(self) -> str:
        """The branch of a pull request."""
        return f"{PULLS}{self.num}"


def apply(files: Files, edits: Sequence[Edit]) -> dict[str, FileEntry]:
    """The tree after the edits, in their order."""
    tree = dict(files)
    for edit in edits:
        if edit.entry is not None:
            tree[edit.path] = edit.entry
            continue
        prefix = edit.path.rstrip("/") + "/"
        doomed = [p for p in tree if p.startswith(prefix)] if edit.folder else [edit.path]
        if not doomed or any(path not in tree for path in doomed):
            kind = "folder" if edit.folder else "file"
            raise errors.entry_not_found(f"A {kind} with this name doesn't exist: {edit.path}")
        for path in doomed:
            del tree[path]
    for path in tree:
        above = path
        while "/" in above:
            above = above.rpartition("/")[0]
            if above in tree:
                raise errors.bad_request(f"{above} is both a file and a folder")
    added = [e.path for e in edits if e.entry is not None and e.entry.sha256 is not None]
    attributes = tree.get(".gitattributes")
    tracked = rules.track(attributes.content if attributes else None, added)
    if tracked is not None:
        tree[".gitattributes"] = FileEntry.regular(tracked)
    return tree


class Repo:
    """One model repository."""

    def __init__(self, repo_id: str, author: str, private: bool = False) -> None:
        self.id = repo_id
        self.private = private
        self.gated = False
        self.created = time.time()
        self.lock = threading.RLock()
        #: A commit is being made; another one is refused meanwhile.
        self.is_busy = False
        self.refs: dict[str, str] = {}
        self.commits: dict[str, Commit] = {}
        self.discussions: dict[int, Discussion] = {}
        self.moves: list[Move] = []
        #: Oids that were uploaded to this repo; a blob of another repo is not ours to name.
        self.lfs_objects: set[str] = set()
        files = {".gitattributes": FileEntry.regular(rules.DEFAULT_GITATTRIBUTES)}
        self._set(HEADS + "main", self._store((), files, "initial commit", "", author).sha)

    # -- reading ---------------------------------------------------------------------------------

    def resolve(self, revision: str) -> Commit:
        """The commit of a branch, tag, full ref, or (shortened) sha."""
        with self.lock:
            for ref in (revision, HEADS + revision, TAGS + revision):
                if ref in self.refs:
                    return self.commits[self.refs[ref]]
            if len(revision) >= 7:
                matches = [sha for sha in self.commits if sha.startswith(revision)]
                if len(matches) == 1:
                    return self.commits[matches[0]]
        raise errors.revision_not_found(revision)

    def branch(self, revision: str) -> str:
        """The full name of a ref that can be committed to."""
        for ref in (HEADS + revision, revision):
            if ref in self.refs and ref.startswith((HEADS, PULLS)):
                return ref
        raise errors.revision_not_found(revision)

    def history(self, sha: str) -> Iterator[Commit]:
        """The commit and its ancestors, newest first."""
        step: str | None = sha
        while step is not None:
            commit = self.commits[step]
            yield commit
            step = commit.parents[0] if commit.parents else None

    def last_change(self, sha: str, path: str) -> Commit:
        """The newest commit that changed the file, or anything under the folder."""
        history = list(self.history(sha))
        for commit, before in itertools.pairwise(history):
            if _under(commit.files, path) != _under(before.files, path):
                return commit
        return history[-1]

    def known_lfs(self, oid: str) -> FileEntry | None:
        """An LFS file of that oid in any commit: what a server-side copy may name."""
        for commit in self.commits.values():
            for entry in commit.files.values():
                if entry.sha256 == oid:
                    return entry
        return None

    # -- writing ---------------------------------------------------------------------------------

    def commit(
        self,
        ref: str,
        edits: Sequence[Edit],
        title: str,
        description: str = "",
        *,
        author: str = "system",
        parent: str | None = None,
    ) -> Commit:
        """Commit on a branch; `parent` must then be its head. All of it happens or nothing does."""
        with self.lock:
            head = self.refs[ref]
            if parent is not None and not head.startswith(parent):
                raise errors.stale_parent()
            files = apply(self.commits[head].files, edits)
            commit = self._store((head,), files, title, description, author)
            self._set(ref, commit.sha)
            return commit

    def create_branch(self, name: str, start: str | None) -> None:
        """A new branch."""
        with self.lock:
            if name.startswith("refs/"):
                raise errors.bad_request(f"Invalid reference for a branch: {name}")
            if HEADS + name in self.refs:
                raise errors.conflict(f"Reference {HEADS}{name} already exists")
            self._set(HEADS + name, self.resolve(start or "main").sha)

    def delete_branch(self, name: str) -> None:
        """Remove a branch; its commits stay, as they do on the Hub until they are collected."""
        with self.lock:
            if name == "main":
                raise errors.forbidden(f"Cannot delete {HEADS}main")
            if HEADS + name not in self.refs:
                # No code, unlike elsewhere: nothing promises a RevisionNotFoundError here.
                raise errors.ApiError(404, f"Invalid rev id: {name}")
            self._set(HEADS + name, None)

    def create_tag(self, name: str, revision: str) -> None:
        """A new tag."""
        with self.lock:
            if TAGS + name in self.refs:
                raise errors.conflict("Tag reference exists already")
            if not name or any(c in name for c in " ~^:?*[\\"):
                raise errors.bad_request(f"Invalid tag: {name}")
            self._set(TAGS + name, self.resolve(revision).sha)

    def delete_tag(self, name: str) -> None:
        """Remove a tag."""
        with self.lock:
            if TAGS + name not in self.refs:
                raise errors.revision_not_found(name)
            self._set(TAGS + name, None)

    # -- pull requests ---------------------------------------------------------------------------

    def discuss(
        self, title: str, description: str, author: str, base: str | None, start: str | None = None
    ) -> Discussion:
        """Open a discussion, or (with a base branch) a pull request that starts at `start`."""
        with self.lock:
            num = len(self.discussions) + 1
            sha = "" if base is None else self.resolve(start or base).sha
            discussion = Discussion(
                num, title, description, author, base is not None, base or "", sha, "open"
            )
            self.discussions[num] = discussion
            if base is not None:
                self._set(discussion.ref, sha)
            return discussion

    def conflicts(self, discussion: Discussion) -> list[str]:
        """Files that both the pull request and its base changed."""
        start = self.commits[discussion.start].files
        ours = _changes(start, self.resolve(discussion.base).files)
        theirs = _changes(start, self.resolve(discussion.ref).files)
        return sorted(path for path in ours if path in theirs and ours[path] != theirs[path])

    def merge(self, discussion: Discussion, author: str) -> Commit:
        """Merge as the Hub does: the pull request becomes one commit on its base."""
        with self.lock:
            if discussion.status != "open" or not discussion.is_pull:
                raise errors.bad_request(f"#{discussion.num} is {discussion.status}, not open")
            if self.conflicts(discussion):
                raise errors.conflict("This pull request has conflicts with its base")
            start, head = self.commits[discussion.start].files, self.resolve(discussion.ref).files
            edits = [Edit(path, entry) for path, entry in _changes(start, head).items()]
            title = f"{discussion.title} (#{discussion.num})"
            commit = self.commit(HEADS + discussion.base, edits, title, author=author)
            discussion.status, discussion.merge_commit = "merged", commit.sha
            return commit

    # -- storage ---------------------------------------------------------------------------------

    def _store(
        self, parents: tuple[str, ...], files: Files, title: str, description: str, author: str
    ) -> Commit:
        now = time.time()
        tree = git.tree_ids({path: entry.blob_id for path, entry in files.items()})[""]
        message = f"{title}\n\n{description}" if description else title
        sha = git.commit_id(tree, list(parents), author, int(now), message)
        commit = Commit(sha, parents, dict(files), title, description, author, now)
        return self.commits.setdefault(sha, commit)

    def _set(self, ref: str, sha: str | None) -> None:
        old = self.refs.get(ref)
        if sha is None:
            del self.refs[ref]
        else:
            self.refs[ref] = sha
        self.moves.append(Move(time.time(), ref, old, sha))

    def falsify(self, ref: str, path: str, entry: FileEntry) -> Commit:
        """Replace a file in the newest commit without a trace: a Hub that stored it wrong."""
        with self.lock:
            good = self.commits[self.refs[ref]]
            bad = replace(good, files={**good.files, path: entry})
            self.commits[good.sha] = bad
            return bad


def _under(files: Files, path: str) -> dict[str, FileEntry]:
    return {p: e for p, e in files.items() if p == path or p.startswith(path + "/")}


def _changes(before: Files, after: Files) -> dict[str, FileEntry | None]:
    paths = set(before) | set(after)
    return {p: after.get(p) for p in sorted(paths) if before.get(p) != after.get(p)}
