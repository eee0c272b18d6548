"""Brings an artifact from where its address points to a place of ours. Schemes: file, http, https, s3.

Knows nothing of the cache: it writes one file or one folder to the path it is given and raises when it
cannot, leaving what is half written to the caller. Every limit counts the bytes as they arrive, never what
the source claims.
"""

from __future__ import annotations

import asyncio
import errno
import os
import stat
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from urllib.parse import unquote, urljoin, urlsplit

import httpx

from msm.kit.errors import LoadFailed
from msm.node.addresses import allowed_address, host_and_port
from msm.node.config import FetchSettings
from msm.node.digest import CHUNK, walk_files
from msm.node.fetch_s3 import S3Source

Progress = Callable[[int], None]
TRANSIENT = frozenset({"fetch_failed", "disk_full"})


class Meter:
    """Counts the bytes of one fetch, tells them on, and ends the fetch at the limit."""

    def __init__(self, limit: int, progress: Progress | None) -> None:
        self.count = 0
        self._limit = limit
        self._progress = progress

    def add(self, count: int) -> None:
        """Raises LoadFailed ("too_large") past the limit."""
        self.count += count
        if self.count > self._limit:
            raise LoadFailed(f"the artifact is larger than {self._limit} bytes", reason="too_large")
        if self._progress is not None:
            self._progress(self.count)


class Fetcher:
    """Fetches by address. Holds no state between fetches."""

    def __init__(self, settings: FetchSettings) -> None:
        self._settings = settings

    async def fetch(self, uri: str, target: Path, progress: Progress | None = None) -> None:
        """Write what `uri` names to `target`, which must not exist.

        `progress` hears the bytes so far, possibly from another thread.

        Raises LoadFailed with one of the reasons artifact_missing, source_not_allowed, source_blocked,
        too_large, disk_full, fetch_failed.
        """
        meter = Meter(self._settings.max_artifact_bytes, progress)
        scheme = urlsplit(uri).scheme
        try:
            async with asyncio.timeout(self._settings.timeout_s):
                if scheme in ("", "file"):
                    await asyncio.to_thread(self._copy_local, unquote(urlsplit(uri).path), target, meter)
                elif scheme in ("http", "https"):
                    await self._download(uri, target, meter)
                elif scheme == "s3":
                    await S3Source(self._settings).fetch(uri, target, meter.add)
                else:
                    raise LoadFailed(f"the scheme {scheme!r} is not offered", reason="source_not_allowed")
        except TimeoutError as error:
            message = f"the artifact did not arrive within {self._settings.timeout_s:g} s"
            raise LoadFailed(message, reason="fetch_failed") from error

    # ---- file

    def _copy_local(self, path: str, target: Path, meter: Meter) -> None:
        source = self._resolve(path)
        with as_load_failure():
            if not source.is_dir():
                _copy_file(source, target, meter)
                return
            target.mkdir()
            for name, entry in walk_files(source, most=self._settings.max_files):
                place = target / name
                place.parent.mkdir(parents=True, exist_ok=True)
                _copy_file(Path(entry.path), place, meter)

    def _resolve(self, path: str) -> Path:
        """The real place of a path, which must be below a configured root."""
        try:
            real = Path(path).resolve(strict=True)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise LoadFailed("there is no file or folder at its address", reason="artifact_missing") from error
        except (OSError, RuntimeError, ValueError) as error:
            raise LoadFailed("its address cannot be read", reason="fetch_failed") from error
        roots = self._settings.file_roots
        if roots is not None and not any(real.is_relative_to(Path(root).resolve()) for root in roots):
            raise LoadFailed(
                "its address is outside the folders that this node may read from", reason="source_not_allowed"
            )
        return real

    # ---- http

    async def _download(self, uri: str, target: Path, meter: Meter) -> None:
        try:
            async with self._answer(uri) as answer:
                _check_status(answer.status_code)
                with as_load_failure(), target.open("xb") as file:
                    async for chunk in answer.aiter_bytes(CHUNK):
                        meter.add(len(chunk))
                        await asyncio.to_thread(file.write, chunk)
        except httpx.HTTPError as error:
            message = f"the server does not give it: {type(error).__name__}"
            raise LoadFailed(message, reason="fetch_failed") from error

    @asynccontextmanager
    async def _answer(self, uri: str) -> AsyncIterator[httpx.Response]:
        """The answer to `uri` after redirects, each of which is judged like the address itself."""
        timeout = httpx.Timeout(self._settings.idle_timeout_s)
        async with httpx.AsyncClient(timeout=timeout, trust_env=False, follow_redirects=False) as client:
            for _ in range(self._settings.max_redirects + 1):
                request = await self._request(client, uri)
                answer = await client.send(request, stream=True)
                try:
                    if not answer.has_redirect_location:
                        yield answer
                        return
                    uri = _next_address(uri, answer.headers["location"])
                finally:
                    await answer.aclose()
        message = f"the source redirects more than {self._settings.max_redirects} times"
        raise LoadFailed(message, reason="fetch_failed")

    async def _request(self, client: httpx.AsyncClient, uri: str) -> httpx.Request:
        """A request to the very address that was judged, under the name that was written."""
        address = await allowed_address(uri, self._settings.private_hosts)
        host, _ = host_and_port(uri)
        url = httpx.URL(uri)
        headers = {"host": url.netloc.decode("ascii"), "accept-encoding": "identity"}
        return client.build_request(
            "GET", url.copy_with(host=address), headers=headers, extensions={"sni_hostname": host}
        )


def _next_address(uri: str, location: str) -> str:
    following = urljoin(uri, location)
    old, new = urlsplit(uri).scheme, urlsplit(following).scheme
    if new not in ("http", "https") or (old == "https" and new == "http"):
        raise LoadFailed(f"the source redirects from {old} to {new!r}", reason="source_blocked")
    return following


def _check_status(status: int) -> None:
    if status in (404, 410):
        raise LoadFailed(f"the server does not have it (status {status})", reason="artifact_missing")
    if status in (401, 403):
        raise LoadFailed(f"the server does not allow it (status {status})", reason="source_not_allowed")
    if status != 200:
        raise LoadFailed(f"the server does not give it (status {status})", reason="fetch_failed")


def _copy_file(source: Path, target: Path, meter: Meter) -> None:
    """Copy a plain file; what changes while it is read is not taken."""
    # O_NONBLOCK: opening a pipe that nobody writes to must not hang.
    descriptor = os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    with open(descriptor, "rb") as reader:  # noqa: PTH123  (a descriptor, not a path)
        before = os.fstat(descriptor)
        if not stat.S_ISREG(before.st_mode):
            raise LoadFailed("its address names neither a plain file nor a folder", reason="source_not_allowed")
        with target.open("xb") as writer:
            while chunk := reader.read(CHUNK):
                meter.add(len(chunk))
                writer.write(chunk)
        after = os.fstat(descriptor)
    if (before.st_mtime_ns, before.st_size) != (after.st_mtime_ns, after.st_size):
        raise LoadFailed("the file changed while it was read", reason="fetch_failed")


@contextmanager
def as_load_failure() -> Iterator[None]:
    """Turn the operating system's errors into ours."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise LoadFailed("the disk of the artifact cache is full", reason="disk_full") from error
        if error.errno in (errno.EACCES, errno.EPERM):
            raise LoadFailed("the node may not read it", reason="source_not_allowed") from error
        if isinstance(error, FileNotFoundError):
            raise LoadFailed("a file of it is missing", reason="artifact_missing") from error
        raise LoadFailed(f"it cannot be read: {error.strerror}", reason="fetch_failed") from error
