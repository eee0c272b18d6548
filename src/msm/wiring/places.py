"""Where a node keeps what: below its data directory, and the folder for its sockets."""

from __future__ import annotations

import hashlib
import os
import stat
import tempfile
from pathlib import Path

from msm.kit.errors import Forbidden, Unavailable
from msm.node.config import LONGEST_SOCKET_NAME, SOCKET_PATH_LIMIT

STORE_FILE = "store.db"


def run_dir_of(data_dir: Path) -> Path:
    """The folder for sockets: below the data directory, or a short path of this user when that would be too long."""
    inside = data_dir / "run"
    if len(os.fsencode(inside / LONGEST_SOCKET_NAME)) <= SOCKET_PATH_LIMIT:
        return inside
    digest = hashlib.blake2b(os.fsencode(data_dir), digest_size=8).hexdigest()
    return Path(tempfile.gettempdir()) / f"msm-{os.getuid()}-{digest}"


def prepare(data_dir: Path) -> Path:
    """Make the data directory and the folder for sockets, private to this user; returns the latter.

    Raises Forbidden when the socket folder belongs to somebody else, Unavailable when nothing can be made there.
    """
    run_dir = run_dir_of(data_dir)
    try:
        for folder in (data_dir, run_dir):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = run_dir.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
            raise Forbidden(f"the folder for sockets of {data_dir} belongs to another user")
        run_dir.chmod(0o700)
    except OSError as error:
        raise Unavailable(f"the data directory {data_dir} cannot be used: {error.strerror}") from error
    return run_dir
