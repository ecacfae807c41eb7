"""Object ids exactly as git computes them.

Real ids (rather than random ones) let a test compute what the Hub must answer, and make two equal
trees recognisable as equal.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping


def _object_id(kind: str, body: bytes) -> str:
    header = f"{kind} {len(body)}\0".encode()
    return hashlib.sha1(header + body, usedforsecurity=False).hexdigest()


def blob_id(content: bytes) -> str:
    """The id of a file's content."""
    return _object_id("blob", content)


def lfs_pointer(sha256: str, size: int) -> bytes:
    """What git itself stores for an LFS file; its length is the listing's `pointerSize`."""
    return (
        f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()
    )


def tree_ids(blobs: Mapping[str, str]) -> dict[str, str]:
    """The id of every folder of a tree given as path -> blob id; the root is ``""``."""
    folders: dict[str, dict[str, tuple[str, str]]] = {"": {}}
    for path, blob in blobs.items():
        folder, _, name = path.rpartition("/")
        folders.setdefault(folder, {})[name] = ("100644", blob)
        while folder:
            folder = folder.rpartition("/")[0]
            folders.setdefault(folder, {})
    ids: dict[str, str] = {}
    # Deepest first: a folder's id depends on those of the folders in it.
    for folder in sorted(folders, key=lambda f: f.count("/") + bool(f), reverse=True):
        ids[folder] = _tree_id(folders[folder])
        if folder:
            parent, _, name = folder.rpartition("/")
            folders[parent][name] = ("40000", ids[folder])
    return ids


def _tree_id(entries: Mapping[str, tuple[str, str]]) -> str:
    # git sorts folders as if their name ended in a slash.
    order = sorted(entries, key=lambda name: name + "/" if entries[name][0] == "40000" else name)
    body = b"".join(
        f"{entries[name][0]} {name}\0".encode() + bytes.fromhex(entries[name][1]) for name in order
    )
    return _object_id("tree", body)


def commit_id(tree: str, parents: list[str], author: str, seconds: int, message: str) -> str:
    """The id of a commit object."""
    who = f"{author} <{author}@users.noreply.example> {seconds} +0000"
    lines = [f"tree {tree}", *(f"parent {p}" for p in parents), f"author {who}", f"committer {who}"]
    return _object_id("commit", ("\n".join(lines) + f"\n\n{message}").encode())
