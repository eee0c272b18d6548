"""Digests of artifacts, and the cheap fingerprint by which an unchanged copy is known again.

A file's digest is the sha256 of its bytes. A folder's digest is the sha256 over one line for each of its
files, sorted by path: relative path, size and sha256 of the file, joined by NUL and ended by a line feed.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from msm.kit.errors import LoadFailed

CHUNK = 1 << 20
MAX_DEPTH = 16
MAX_PATH = 1024
PREFIX = "sha256:"

Fingerprint = tuple[tuple[str, int, int, int], ...]


def digest_of(path: Path) -> str:
    """The digest of a file or folder, as "sha256:<hex>". Reads everything: call it in a thread."""
    if not path.is_dir():
        return PREFIX + _hash_file(path)
    whole = hashlib.sha256()
    for name, entry in sorted(walk_files(path)):
        whole.update(f"{name}\0{entry.stat().st_size}\0{_hash_file(Path(entry.path))}\n".encode())
    return PREFIX + whole.hexdigest()


def fingerprint(path: Path) -> Fingerprint:
    """Name, change time, size and inode of every file: equal as long as nobody wrote to them."""
    if not path.is_dir():
        return (_mark("", path.stat()),)
    return tuple(sorted(_mark(name, entry.stat(follow_symlinks=False)) for name, entry in walk_files(path)))


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files of a folder."""
    return sum(size for _, _, size, _ in fingerprint(path))


def walk_files(root: Path, *, most: int | None = None) -> Iterator[tuple[str, os.DirEntry[str]]]:
    """Every file below `root` with its relative path.

    Raises LoadFailed for anything that is neither a plain file nor a folder, for names that clash where upper
    and lower case are the same, and for more than `most` files: such a folder is not taken at all.
    """
    folders: list[tuple[str, Path]] = [("", root)]
    seen: set[str] = set()
    while folders:
        prefix, folder = folders.pop()
        with os.scandir(folder) as entries:
            for entry in entries:
                name = prefix + entry.name
                check_name(name)
                if name.casefold() in seen:
                    raise refused(f"two names differ only in case: {name!r}")
                seen.add(name.casefold())
                if most is not None and len(seen) > most:
                    raise refused(f"it holds more than {most} files")
                mode = entry.stat(follow_symlinks=False).st_mode
                if stat.S_ISDIR(mode):
                    folders.append((name + "/", Path(entry.path)))
                elif stat.S_ISREG(mode):
                    yield name, entry
                else:
                    raise refused(f"{name!r} is neither a plain file nor a folder")


def check_name(name: str) -> None:
    """Raise LoadFailed unless `name` is a plain relative path that means the same everywhere."""
    parts = PurePosixPath(name).parts
    if name.startswith("/") or ".." in parts or not parts or "\0" in name or "\\" in name:
        raise refused(f"the name {name!r} leaves the folder")
    if len(parts) > MAX_DEPTH or len(os.fsencode(name)) > MAX_PATH:
        raise refused(f"a path is deeper than {MAX_DEPTH} folders or longer than {MAX_PATH} bytes")
    try:
        name.encode()
    except UnicodeEncodeError:
        raise refused(f"the name {name!a} is not valid UTF-8") from None


def refused(why: str) -> LoadFailed:
    """The error for a folder with content that is not taken."""
    return LoadFailed(f"the artifact is refused: {why}", reason="source_not_allowed")


def _hash_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _mark(name: str, status: os.stat_result) -> tuple[str, int, int, int]:
    return name, status.st_mtime_ns, status.st_size, status.st_ino
