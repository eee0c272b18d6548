"""Fetches from S3 and what speaks like it, through fsspec's s3fs (installed with the extra `s3`)."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from msm.kit.errors import LoadFailed, MsmError
from msm.node.config import FetchSettings
from msm.node.digest import CHUNK, check_name, refused


class S3Source:
    """One fetch from S3. The endpoint comes from the node's settings, never from the model's address."""

    def __init__(self, settings: FetchSettings) -> None:
        self._settings = settings
        self._cancelled = threading.Event()

    async def fetch(self, uri: str, target: Path, count: Callable[[int], None]) -> None:
        """Write the object, or all objects below the prefix, to `target`."""
        parts = urlsplit(uri)
        place = f"{parts.netloc}/{unquote(parts.path).strip('/')}"
        try:
            await asyncio.to_thread(self._copy, place, target, count)
        except asyncio.CancelledError:
            self._cancelled.set()  # the thread ends at its next chunk
            raise

    def _copy(self, place: str, target: Path, count: Callable[[int], None]) -> None:
        system = self._connect()
        try:
            objects = self._objects(system, place)
            for name, remote in objects.items():
                local = target / name if name else target
                local.parent.mkdir(parents=True, exist_ok=True)
                self._copy_object(system, remote, local, count)
        except MsmError:
            raise
        except FileNotFoundError as error:
            raise LoadFailed("there is no object at its address", reason="artifact_missing") from error
        except PermissionError as error:
            raise LoadFailed("the storage does not allow it", reason="source_not_allowed") from error
        except Exception as error:  # the library passes on whatever its transport raises
            raise _as_failure(error) from error

    def _connect(self) -> Any:
        try:
            import s3fs
        except ImportError as error:
            message = "s3 addresses need the extra: pip install 'model-service-mesh[s3]'"
            raise LoadFailed(message, reason="source_not_allowed") from error
        s3 = self._settings.s3
        key, secret = os.environ.get(s3.key_env), os.environ.get(s3.secret_env)
        idle_s = self._settings.idle_timeout_s
        return s3fs.S3FileSystem(
            anon=not (key and secret),
            key=key,
            secret=secret,
            token=os.environ.get(s3.token_env),
            endpoint_url=s3.endpoint_url,
            client_kwargs={"region_name": s3.region} if s3.region else {},
            config_kwargs={"connect_timeout": idle_s, "read_timeout": idle_s, "retries": {"max_attempts": 3}},
            use_listings_cache=False,
            skip_instance_cache=True,
        )

    def _objects(self, system: Any, place: str) -> dict[str, str]:
        """Remote names by relative name; one with an empty name when `place` is an object itself."""
        if system.info(place)["type"] == "file":
            return {"": place}
        found: dict[str, str] = {}
        folded: set[str] = set()
        for remote in system.find(place):
            name = remote[len(place) :].lstrip("/")
            if not name or name.endswith("/"):
                continue
            check_name(name)
            if name.casefold() in folded:
                raise refused(f"two names differ only in case: {name!r}")
            folded.add(name.casefold())
            found[name] = remote
            if len(found) > self._settings.max_files:
                raise refused(f"it holds more than {self._settings.max_files} files")
        if not found:
            raise FileNotFoundError(place)
        return found

    def _copy_object(self, system: Any, remote: str, local: Path, count: Callable[[int], None]) -> None:
        remote_file = system.open(remote, "rb", block_size=8 * CHUNK, cache_type="readahead")
        with remote_file as reader, local.open("xb") as writer:
            while chunk := reader.read(CHUNK):
                if self._cancelled.is_set():
                    raise LoadFailed("the fetch was given up", reason="fetch_failed")
                count(len(chunk))
                writer.write(chunk)


def _as_failure(error: Exception) -> LoadFailed:
    if isinstance(error, OSError) and error.errno == 28:
        return LoadFailed("the disk of the artifact cache is full", reason="disk_full")
    return LoadFailed(f"the storage does not give it: {type(error).__name__}", reason="fetch_failed")
