"""The node's artifact cache: `artifacts/sha256/<hex>/<name>`, addressed by content.

An artifact appears under its digest in one rename after it is complete and on disk; nothing half written is
ever there. Its digest is checked whenever it is used: by reading it all at first use, afterwards by its
fingerprint as long as that is unchanged. The entry keeps the file name of the source, because formats are
recognised by it too.
"""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import time
import uuid
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from msm.kit.errors import LoadFailed
from msm.kit.tasks import Tasks
from msm.node.digest import PREFIX, Fingerprint, digest_of, fingerprint, size_of
from msm.node.fetch import Fetcher, Progress, as_load_failure
from msm.observe.logs import get_logger

log = get_logger("artifacts")
SAFE_NAME = re.compile(r"[^A-Za-z0-9._-]")
YOUNG_S = 600.0


@dataclass(frozen=True, slots=True)
class Artifact:
    """A complete artifact in the cache."""

    digest: str
    path: Path
    size_bytes: int


class Artifacts:
    """The cache. `named` gives the digests that some version names: those never go."""

    def __init__(
        self, folder: Path, fetcher: Fetcher, tasks: Tasks, *, limit_bytes: int, named: Callable[[], Collection[str]]
    ) -> None:
        self._blobs = folder / "sha256"
        self._tmp = folder / "tmp"
        self._fetcher = fetcher
        self._tasks = tasks
        self._limit = limit_bytes
        self._named = named
        self._fetching: dict[str, asyncio.Task[Artifact | LoadFailed]] = {}
        self._watchers: dict[str, set[Progress]] = {}
        self._checked: dict[Path, Fingerprint] = {}
        self._total = 0

    async def start(self) -> None:
        """Remove what an earlier process left half fetched, and measure the cache."""
        self._total = await asyncio.to_thread(self._prepare)

    def _prepare(self) -> int:
        shutil.rmtree(self._tmp, ignore_errors=True)
        self._tmp.mkdir(parents=True)
        self._blobs.mkdir(parents=True, exist_ok=True)
        return sum(size_of(entry) for entry in self._blobs.iterdir())

    async def fetch(self, uri: str, digest: str | None, progress: Progress | None = None) -> Artifact:
        """The artifact at `uri`, from the cache when `digest` is known and there.

        Callers of one address share one fetch. Raises LoadFailed (see `Fetcher.fetch`), and "digest_mismatch"
        when what is there has not the digest that was declared.
        """
        if digest is not None:
            held = await self._held(digest, _name_of(uri))
            if held is not None:
                return held
        artifact = await self._shared_fetch(uri, progress)
        if digest is not None and artifact.digest != digest:
            raise LoadFailed(
                f"the artifact has the digest {artifact.digest}, declared is {digest}", reason="digest_mismatch"
            )
        return artifact

    async def held(self, digest: str, name: str) -> Path | None:
        """Where the content of `digest` lies, under that name; None when it is not in the cache or was damaged."""
        found = await self._held(digest, name)
        return None if found is None else found.path

    @asynccontextmanager
    async def place(self) -> AsyncIterator[Path]:
        """An empty folder for something that is made here and may be kept; it is gone after the block."""
        folder = self._tmp / uuid.uuid4().hex
        await asyncio.to_thread(folder.mkdir)
        try:
            yield folder
        finally:
            await asyncio.to_thread(shutil.rmtree, folder, True)

    async def keep(self, folder: Path, name: str) -> Artifact:
        """Take what was made in a `place` under `name` into the cache. Raises LoadFailed."""
        try:
            artifact = await asyncio.to_thread(self._keep, folder, name)
        except OSError as error:
            with as_load_failure():
                raise
            raise AssertionError("unreachable") from error
        self._total += artifact.size_bytes
        if self._total > self._limit:
            await asyncio.to_thread(self._clear)
        return artifact

    async def _held(self, digest: str, name: str) -> Artifact | None:
        """The cached artifact if it is there and has not been changed; a damaged one is removed."""
        entry = self._entry(digest)
        try:
            path = await asyncio.to_thread(self._check, entry, digest, name)
        except FileNotFoundError:
            return None
        if path is None:
            log.warning("a cached artifact does not have its digest any more; it is fetched again", digest=digest)
            await asyncio.to_thread(shutil.rmtree, entry, True)
            return None
        return Artifact(digest, path, sum(size for _, _, size, _ in self._checked[path]))

    def _check(self, entry: Path, digest: str, name: str) -> Path | None:
        """The path of an intact entry, under `name` if it can be had; None when it is damaged."""
        names = sorted(entry.iterdir())
        if not names:
            raise FileNotFoundError(entry)
        path = entry / name
        if path not in names:
            path = names[0]
            if path.is_file():
                os.link(path, entry / name)
                path = entry / name
        found = fingerprint(path)
        if self._checked.get(path) != found:
            if digest_of(path) != digest:
                return None
            self._checked[path] = found
            os.utime(entry)  # the time of use by which the cache is cleared
        return path

    async def _shared_fetch(self, uri: str, progress: Progress | None) -> Artifact:
        task = self._fetching.get(uri)
        watchers = self._watchers.setdefault(uri, set())
        if progress is not None:
            watchers.add(progress)
        if task is None:
            task = self._tasks.start(f"fetch {_name_of(uri)}", self._outcome(uri))
            self._fetching[uri] = task
            task.add_done_callback(lambda _: self._fetching.pop(uri, None))
        try:
            result = await asyncio.shield(task)
        finally:
            if progress is not None:
                watchers.discard(progress)
        if isinstance(result, LoadFailed):
            raise LoadFailed(result.message, reason=result.reason) from result
        return result

    async def _outcome(self, uri: str) -> Artifact | LoadFailed:
        """A fetch that fails is a result for those who wait, not a failure of a task."""
        try:
            return await self._fetch_new(uri)
        except LoadFailed as error:
            return error
        finally:
            self._watchers.pop(uri, None)

    async def _fetch_new(self, uri: str) -> Artifact:
        place = self._tmp / uuid.uuid4().hex
        name = _name_of(uri)
        watchers = self._watchers[uri]

        def tell(count: int) -> None:
            for watcher in tuple(watchers):
                watcher(count)

        try:
            place.mkdir()
            await self._fetcher.fetch(uri, place / name, tell)
            return await self.keep(place, name)
        except OSError as error:
            with as_load_failure():
                raise
            raise AssertionError("unreachable") from error
        finally:
            await asyncio.to_thread(shutil.rmtree, place, True)

    def _keep(self, place: Path, name: str) -> Artifact:
        """Bring a complete fetch to disk and give it its place in one step."""
        content = place / name
        _sync_tree(content)
        _sync(place)
        digest = digest_of(content)
        entry = self._entry(digest)
        try:
            place.rename(entry)
        except OSError:
            if not entry.is_dir():  # else the same content is there already
                raise
        else:
            _sync(self._blobs)
        path = self._check(entry, digest, name)
        if path is None:
            shutil.rmtree(entry, ignore_errors=True)
            raise LoadFailed("the cached copy of the artifact was damaged; try again", reason="fetch_failed")
        return Artifact(digest, path, size_of(path))

    def _clear(self) -> None:
        """Remove what no version names, oldest use first, until the cache is below its limit."""
        named = {self._entry(digest).name for digest in self._named()}
        entries = sorted(self._blobs.iterdir(), key=lambda entry: entry.stat().st_mtime)
        newest = time.time() - YOUNG_S
        for entry in entries:
            if self._total <= self._limit:
                return
            if entry.name in named or entry.stat().st_mtime > newest:
                continue
            size = size_of(entry)
            doomed = self._tmp / uuid.uuid4().hex
            entry.rename(doomed)
            shutil.rmtree(doomed, ignore_errors=True)
            self._total -= size
            log.info("an artifact that no version names left the cache", digest=entry.name, bytes=size)

    def _entry(self, digest: str) -> Path:
        return self._blobs / digest.removeprefix(PREFIX)


def _name_of(uri: str) -> str:
    """The source's own file name, reduced to characters that are safe everywhere."""
    last = unquote(urlsplit(uri).path).rstrip("/").rsplit("/", 1)[-1]
    return SAFE_NAME.sub("_", last).lstrip(".")[-100:] or "artifact"


def _sync_tree(path: Path) -> None:
    if path.is_dir():
        for folder, _, files in os.walk(path):
            for file in files:
                _sync(Path(folder) / file)
            _sync(Path(folder))
    else:
        _sync(path)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
