"""Which files go to LFS and which are ignored, decided as the Hub decides it.

The client asks before every upload (`preupload`) and obeys, so these rules decide which of the two
code paths a test takes.
"""

from __future__ import annotations

from collections.abc import Iterable

from pathspec import GitIgnoreSpec

LFS_ATTRIBUTES = "filter=lfs diff=lfs merge=lfs -text"

_LFS_PATTERNS = """
*.7z *.arrow *.bin *.bz2 *.ckpt *.ftz *.gz *.h5 *.joblib *.lfs.* *.mlmodel *.model *.msgpack *.npy
*.npz *.onnx *.ot *.parquet *.pb *.pickle *.pkl *.pt *.pth *.rar *.safetensors saved_model/**/*
*.tar.* *.tar *.tflite *.tgz *.wasm *.xz *.zip *.zst *tfevents*
"""

DEFAULT_GITATTRIBUTES = "".join(
    f"{pattern} {LFS_ATTRIBUTES}\n" for pattern in _LFS_PATTERNS.split()
).encode()


def tracked_by_lfs(gitattributes: bytes | None, path: str) -> bool:
    """Whether the repo's own .gitattributes send this path to LFS."""
    lines = (gitattributes or b"").decode("utf-8", "replace").splitlines()
    patterns = [line.split()[0] for line in lines if "filter=lfs" in line]
    return GitIgnoreSpec.from_lines(patterns).match_file(path)


def is_binary(sample: bytes) -> bool:
    """The Hub's guess from a file's first bytes."""
    if b"\0" in sample:
        return True
    try:
        sample.decode("utf-8")
    except UnicodeDecodeError as error:
        # The sample may end in the middle of a character: that is still text.
        return error.start < len(sample) - 3
    return False


def goes_to_lfs(
    gitattributes: bytes | None, path: str, size: int, sample: bytes, threshold: int
) -> bool:
    """Whether a new file must be uploaded as LFS."""
    return size >= threshold or tracked_by_lfs(gitattributes, path) or is_binary(sample)


def ignored(gitignore: str | None, path: str) -> bool:
    """Whether .gitignore covers the path; the client then skips the file without a word."""
    return GitIgnoreSpec.from_lines((gitignore or "").splitlines()).match_file(path)


def track(gitattributes: bytes | None, paths: Iterable[str]) -> bytes | None:
    """.gitattributes with a line for each LFS path that no pattern covers, None if none is missing.

    The real Hub makes this edit inside the commit that adds such a file (a large tokenizer.json,
    say), so the tree after a commit can differ in a file that the commit did not name.
    """
    missing = [path for path in paths if not tracked_by_lfs(gitattributes, path)]
    if not missing:
        return None
    before = (gitattributes or b"").decode("utf-8", "replace")
    if before and not before.endswith("\n"):
        before += "\n"
    # A space separates the pattern from its attributes, so git writes one in a name as [[:space:]].
    lines = (f"{path.replace(' ', '[[:space:]]')} {LFS_ATTRIBUTES}\n" for path in missing)
    return (before + "".join(lines)).encode()
