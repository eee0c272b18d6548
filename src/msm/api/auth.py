"""Who may call: a bearer token in a file that only the node's user can read. There is no way to switch it off."""

from __future__ import annotations

import contextlib
import hmac
import os
import secrets
import stat
from dataclasses import dataclass, field
from pathlib import Path

from msm.kit.errors import Forbidden, Internal, Unauthenticated
from msm.resources.wire import TOKEN_FILE

PREFIX = "msm_"
_MIN_LENGTH = 32
_MAX_BYTES = 1024


@dataclass(frozen=True, slots=True)
class TokenFile:
    """The administrator's token and the file it is kept in. Made by `open`."""

    path: Path
    token: str = field(repr=False)

    @classmethod
    def open(cls, data_dir: Path) -> TokenFile:
        """Read the token, or write a new one of 256 random bits at the first start.

        Raises Forbidden when other users may read the file, Internal when it holds no token.
        """
        path = data_dir / TOKEN_FILE
        with contextlib.suppress(FileExistsError):
            if not path.exists():
                _write_new(path, PREFIX + secrets.token_urlsafe(32))
        return cls(path, read_token(path))

    def check(self, presented: str | None) -> None:
        """Raise Unauthenticated unless `presented` is the token. Takes the same time for every wrong one."""
        given = (presented or "").encode("utf-8", "surrogateescape")
        if not hmac.compare_digest(given, self.token.encode()):
            raise Unauthenticated("a valid bearer token is needed in the Authorization header")


def read_token(path: Path) -> str:
    """The token in `path`. Raises Forbidden when others than its owner may use it, FileNotFoundError without it."""
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_CLOEXEC), "rb") as file:
        state = os.fstat(file.fileno())
        if not stat.S_ISREG(state.st_mode) or state.st_mode & 0o077:
            mode = stat.S_IMODE(state.st_mode)
            raise Forbidden(
                f"the token file has mode {mode:04o}: other users may read it; mend it with: chmod 600 '{path}', or "
                "delete it for a new token at the next start",
                reason="token_file_open",
            )
        token = file.read(_MAX_BYTES).decode("ascii", "replace").strip()
    if len(token) < _MIN_LENGTH:
        raise Internal(f"the token file '{path}' holds no token; delete it for a new one at the next start")
    return token


def _write_new(path: Path, token: str) -> None:
    """Appear whole or not at all, and never over another process's token."""
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(8)}")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        with os.fdopen(os.open(temporary, flags, 0o600), "w", encoding="ascii") as file:
            file.write(token + "\n")
            file.flush()
            os.fsync(file.fileno())
        os.link(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
