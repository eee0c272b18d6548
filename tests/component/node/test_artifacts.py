"""The artifact cache: addressed by content, complete or absent, checked at each use."""

from __future__ import annotations

import asyncio
import hashlib
import os
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from msm.kit.errors import LoadFailed
from msm.kit.tasks import Tasks
from msm.node.artifacts import Artifacts
from msm.node.config import FetchSettings
from msm.node.digest import digest_of
from msm.node.fetch import Fetcher, Progress

Open = Callable[..., Artifacts]


class CountingFetcher(Fetcher):
    """The real fetcher, counting its fetches."""

    def __init__(self) -> None:
        super().__init__(FetchSettings())
        self.fetches = 0

    async def fetch(self, uri: str, target: Path, progress: Progress | None = None) -> None:
        self.fetches += 1
        await super().fetch(uri, target, progress)


@pytest.fixture
def fetcher() -> CountingFetcher:
    return CountingFetcher()


@pytest.fixture
async def cache(tmp_path: Path, fetcher: CountingFetcher) -> AsyncIterator[Artifacts]:
    async with Tasks(lambda name, failure: pytest.fail(f"{name}: {failure!r}")) as tasks:
        artifacts = Artifacts(tmp_path / "cache", fetcher, tasks, limit_bytes=1 << 30, named=set)
        await artifacts.start()
        yield artifacts


def source(folder: Path, content: bytes = b"weights", name: str = "model.onnx") -> str:
    (folder / name).write_bytes(content)
    return (folder / name).as_uri()


def files_in(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


async def test_an_artifact_stands_under_its_digest_and_own_name(cache: Artifacts, tmp_path: Path):
    artifact = await cache.fetch(source(tmp_path), None)
    expected = hashlib.sha256(b"weights").hexdigest()
    assert artifact.digest == f"sha256:{expected}"
    assert artifact.path == tmp_path / "cache" / "sha256" / expected / "model.onnx"
    assert artifact.size_bytes == 7
    assert files_in(tmp_path / "cache" / "tmp") == []


async def test_concurrent_wishes_share_one_fetch(cache: Artifacts, fetcher: CountingFetcher, tmp_path: Path):
    uri = source(tmp_path, b"x" * 5_000_000)
    found = await asyncio.gather(*(cache.fetch(uri, None) for _ in range(20)))
    assert {artifact.path for artifact in found} == {found[0].path}
    assert fetcher.fetches == 1


async def test_a_known_digest_is_not_fetched_again_even_after_a_restart(
    cache: Artifacts, fetcher: CountingFetcher, tmp_path: Path
):
    uri = source(tmp_path)
    artifact = await cache.fetch(uri, None)
    (tmp_path / "model.onnx").unlink()
    assert (await cache.fetch(uri, artifact.digest)).path == artifact.path
    async with Tasks(lambda name, failure: None) as tasks:
        later = Artifacts(tmp_path / "cache", fetcher, tasks, limit_bytes=1 << 30, named=set)
        await later.start()
        assert (await later.fetch(uri, artifact.digest)).path == artifact.path
    assert fetcher.fetches == 1


async def test_a_wrong_declared_digest_is_refused(cache: Artifacts, tmp_path: Path):
    with pytest.raises(LoadFailed, match="declared is") as refused:
        await cache.fetch(source(tmp_path), "sha256:" + "0" * 64)
    assert refused.value.reason == "digest_mismatch"


async def test_a_damaged_copy_is_noticed_and_fetched_again(cache: Artifacts, fetcher: CountingFetcher, tmp_path: Path):
    uri = source(tmp_path)
    artifact = await cache.fetch(uri, None)
    artifact.path.write_bytes(b"wEights")
    again = await cache.fetch(uri, artifact.digest)
    assert again.path.read_bytes() == b"weights"
    assert fetcher.fetches == 2
    again.path.write_bytes(b"broken!")
    source(tmp_path, b"new content")
    with pytest.raises(LoadFailed) as refused:
        await cache.fetch(uri, artifact.digest)
    assert refused.value.reason == "digest_mismatch"


async def test_the_same_content_under_two_names_is_kept_once(cache: Artifacts, tmp_path: Path):
    first = await cache.fetch(source(tmp_path, name="a.onnx"), None)
    second = await cache.fetch(source(tmp_path, name="b.onnx"), None)
    assert (first.path.name, second.path.name) == ("a.onnx", "b.onnx")
    assert first.path.stat().st_ino == second.path.stat().st_ino


async def test_odd_names_become_safe_ones(cache: Artifacts, tmp_path: Path):
    artifact = await cache.fetch(source(tmp_path, name=".we ird$(x).onnx"), None)
    assert artifact.path.name == "we_ird__x_.onnx"


async def test_a_folder_has_a_digest_of_names_and_contents(cache: Artifacts, tmp_path: Path):
    folder = tmp_path / "bundle"
    (folder / "sub").mkdir(parents=True)
    (folder / "b").write_bytes(b"2")
    (folder / "sub" / "a").write_bytes(b"1")
    artifact = await cache.fetch(folder.as_uri(), None)
    lines = "".join(
        f"{name}\0{1}\0{hashlib.sha256(content).hexdigest()}\n" for name, content in (("b", b"2"), ("sub/a", b"1"))
    )
    assert artifact.digest == "sha256:" + hashlib.sha256(lines.encode()).hexdigest()
    (folder / "b").rename(folder / "c")
    assert digest_of(folder) != artifact.digest


async def test_a_failed_fetch_leaves_nothing_and_may_be_tried_again(cache: Artifacts, tmp_path: Path):
    with pytest.raises(LoadFailed) as refused:
        await cache.fetch((tmp_path / "later.onnx").as_uri(), None)
    assert refused.value.reason == "artifact_missing"
    assert files_in(tmp_path / "cache") == []
    assert (await cache.fetch(source(tmp_path, name="later.onnx"), None)).size_bytes == 7


async def test_what_a_killed_process_left_half_fetched_is_removed(tmp_path: Path, fetcher: CountingFetcher):
    half = tmp_path / "cache" / "tmp" / "123"
    half.mkdir(parents=True)
    (half / "model.onnx").write_bytes(b"hal")
    async with Tasks(lambda name, failure: None) as tasks:
        await Artifacts(tmp_path / "cache", fetcher, tasks, limit_bytes=1, named=set).start()
    assert files_in(tmp_path / "cache") == []


async def test_a_full_cache_drops_the_longest_unused_that_no_version_names(tmp_path: Path, fetcher: CountingFetcher):
    named: set[str] = set()
    async with Tasks(lambda name, failure: pytest.fail(repr(failure))) as tasks:
        cache = Artifacts(tmp_path / "cache", fetcher, tasks, limit_bytes=2_500, named=lambda: named)
        await cache.start()
        kept = await cache.fetch(source(tmp_path, b"1" * 1000, "kept"), None)
        named.add(kept.digest)
        old = await cache.fetch(source(tmp_path, b"2" * 1000, "old"), None)
        for artifact, age in ((kept, 9_000), (old, 8_000)):
            entry = artifact.path.parent
            moment = entry.stat().st_mtime - age
            os.utime(entry, (moment, moment))
        fresh = await cache.fetch(source(tmp_path, b"3" * 1000, "fresh"), None)
    assert kept.path.exists()
    assert not old.path.exists()
    assert fresh.path.exists()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode != 0:
        pytest.skip("mounting a small file system needs root with the right to mount")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


async def test_a_full_disk_is_told_and_leaves_nothing_behind(
    small_disk: Path, tmp_path: Path, fetcher: CountingFetcher
):
    uri = source(tmp_path, b"x" * 4_000_000)
    async with Tasks(lambda name, failure: pytest.fail(repr(failure))) as tasks:
        cache = Artifacts(small_disk / "cache", fetcher, tasks, limit_bytes=1 << 30, named=set)
        await cache.start()
        with pytest.raises(LoadFailed, match="disk of the artifact cache is full") as refused:
            await cache.fetch(uri, None)
    assert refused.value.reason == "disk_full"
    assert files_in(small_disk) == []
