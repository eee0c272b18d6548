"""Where artifacts come from: files, HTTP, S3, each with its limits and refusals."""

from __future__ import annotations

import http.server
import os
import socket
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from msm.kit.errors import LoadFailed
from msm.node.addresses import is_public
from msm.node.config import FetchSettings, S3Settings
from msm.node.fetch import Fetcher


class Files(http.server.SimpleHTTPRequestHandler):
    """Serves a folder; /hop/N redirects N times, /away and /down leave for other places, /short breaks off."""

    def do_GET(self) -> None:
        _, first, *rest = self.path.split("/")
        if first == "hop":
            left = int(rest[0])
            self._redirect(f"/hop/{left - 1}" if left else "/model.bin")
        elif first == "away":
            self._redirect("http://169.254.169.254/latest")
        elif first == "down":
            self._redirect("file:///etc/passwd")
        elif first == "short":
            self.send_response(200)
            self.send_header("Content-Length", "1000")
            self.end_headers()
            self.wfile.write(b"only this")
        elif first == "secret":
            self.send_error(403)
        else:
            super().do_GET()

    def _redirect(self, where: str) -> None:
        self.send_response(302)
        self.send_header("Location", where)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *arguments: Any) -> None:
        pass


@pytest.fixture(scope="module")
def web(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """host:port of a web server with model.bin."""
    folder = tmp_path_factory.mktemp("web")
    (folder / "model.bin").write_bytes(b"m" * 3_000_000)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Files, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


async def refusal(fetcher: Fetcher, uri: str, target: Path) -> str:
    with pytest.raises(LoadFailed) as refused:
        await fetcher.fetch(uri, target)
    return refused.value.reason


# ---- http


async def test_http_files_arrive_with_progress(web: str, tmp_path: Path):
    seen: list[int] = []
    fetcher = Fetcher(FetchSettings(private_hosts=frozenset({web})))
    await fetcher.fetch(f"http://{web}/model.bin", tmp_path / "got", seen.append)
    assert (tmp_path / "got").read_bytes() == b"m" * 3_000_000
    assert seen[-1] == 3_000_000
    assert seen == sorted(seen)
    assert len(seen) > 1


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("/none.bin", "artifact_missing"),
        ("/secret/x", "source_not_allowed"),
        ("/short/x", "fetch_failed"),
        ("/hop/4", "fetch_failed"),
        ("/away", "source_blocked"),
        ("/down", "source_blocked"),
    ],
)
async def test_http_refusals(web: str, tmp_path: Path, path: str, reason: str):
    fetcher = Fetcher(FetchSettings(private_hosts=frozenset({web})))
    assert await refusal(fetcher, f"http://{web}{path}", tmp_path / "got") == reason


async def test_three_redirects_are_followed(web: str, tmp_path: Path):
    fetcher = Fetcher(FetchSettings(private_hosts=frozenset({web})))
    await fetcher.fetch(f"http://{web}/hop/2", tmp_path / "got")
    assert (tmp_path / "got").stat().st_size == 3_000_000


async def test_a_download_over_the_limit_is_ended(web: str, tmp_path: Path):
    settings = FetchSettings(private_hosts=frozenset({web}), max_artifact_bytes=2_000_000)
    assert await refusal(Fetcher(settings), f"http://{web}/model.bin", tmp_path / "got") == "too_large"


async def test_private_addresses_are_blocked_by_default(web: str, tmp_path: Path):
    port = web.rpartition(":")[2]
    for host in ("127.0.0.1", "localhost", "0", "0x7f.1", "2130706433", "[::1]", "[::ffff:127.0.0.1]"):
        assert await refusal(Fetcher(FetchSettings()), f"http://{host}:{port}/model.bin", tmp_path / "got") in (
            "source_blocked",
            "fetch_failed",  # some resolvers do not know the odd spellings at all
        ), host
    assert not (tmp_path / "got").exists()


async def test_an_allowed_host_is_allowed_on_its_port_only(web: str, tmp_path: Path):
    fetcher = Fetcher(FetchSettings(private_hosts=frozenset({web})))
    assert await refusal(fetcher, "http://127.0.0.1:1/model.bin", tmp_path / "got") == "source_blocked"


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("8.8.8.8", True), ("2606:4700::1111", True), ("127.0.0.1", False), ("10.1.2.3", False),
        ("192.168.0.1", False), ("172.16.0.1", False), ("169.254.169.254", False), ("100.64.1.1", False),
        ("0.0.0.0", False), ("224.0.0.1", False), ("255.255.255.255", False), ("::1", False), ("fe80::1", False),
        ("fd00::1", False), ("::ffff:10.0.0.1", False), ("::ffff:8.8.8.8", True), ("2002:7f00:1::", False),
    ],
)  # fmt: skip
def test_which_addresses_are_public(address: str, public: bool):
    assert is_public(address) is public


# ---- file


async def test_files_and_folders_are_copied(tmp_path: Path):
    source = tmp_path / "source"
    (source / "sub").mkdir(parents=True)
    (source / "a.txt").write_text("a")
    (source / "sub" / "b.txt").write_text("b")
    fetcher = Fetcher(FetchSettings())
    await fetcher.fetch(source.as_uri(), tmp_path / "got")
    assert (tmp_path / "got" / "sub" / "b.txt").read_text() == "b"
    await fetcher.fetch(str(source / "a.txt"), tmp_path / "plain")
    assert (tmp_path / "plain").read_text() == "a"


async def test_files_outside_the_roots_are_refused_also_behind_a_link(tmp_path: Path):
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    inside.mkdir()
    outside.write_text("secret")
    (inside / "link").symlink_to(outside)
    (inside / "fine").write_text("fine")
    fetcher = Fetcher(FetchSettings(file_roots=(str(inside),)))
    await fetcher.fetch((inside / "fine").as_uri(), tmp_path / "got1")
    for path in (outside, inside / "link", inside / ".." / "outside"):
        assert await refusal(fetcher, f"file://{path}", tmp_path / "got2") == "source_not_allowed"


async def test_odd_folders_are_refused_whole(tmp_path: Path):
    def with_link(folder: Path) -> None:
        (folder / "x").symlink_to("/etc/passwd")

    def with_pipe(folder: Path) -> None:
        os.mkfifo(folder / "x")

    def with_socket(folder: Path) -> None:
        os.chdir(folder)
        bound = socket.socket(socket.AF_UNIX)
        bound.bind("s")
        bound.close()

    def with_clash(folder: Path) -> None:
        (folder / "Model").write_text("1")
        (folder / "model").write_text("2")

    before = Path.cwd()
    for number, make in enumerate((with_link, with_pipe, with_socket, with_clash)):
        folder = tmp_path / f"odd{number}"
        folder.mkdir()
        make(folder)
        os.chdir(before)
        fetcher = Fetcher(FetchSettings())
        assert await refusal(fetcher, folder.as_uri(), tmp_path / f"got{number}") == "source_not_allowed", make.__name__


async def test_pipes_devices_and_missing_files_are_refused(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe")
    fetcher = Fetcher(FetchSettings())
    assert await refusal(fetcher, (tmp_path / "pipe").as_uri(), tmp_path / "got1") == "source_not_allowed"
    assert await refusal(fetcher, "file:///dev/zero", tmp_path / "got2") == "source_not_allowed"
    assert await refusal(fetcher, (tmp_path / "none").as_uri(), tmp_path / "got3") == "artifact_missing"


async def test_folders_have_a_limit_of_files_and_bytes(tmp_path: Path):
    source = tmp_path / "many"
    source.mkdir()
    for number in range(5):
        (source / f"{number}").write_bytes(b"x" * 100)
    few = Fetcher(FetchSettings(max_files=4))
    assert await refusal(few, source.as_uri(), tmp_path / "got1") == "source_not_allowed"
    small = Fetcher(FetchSettings(max_artifact_bytes=450))
    assert await refusal(small, source.as_uri(), tmp_path / "got2") == "too_large"


async def test_unknown_schemes_are_refused(tmp_path: Path):
    assert await refusal(Fetcher(FetchSettings()), "ftp://host/x", tmp_path / "got") == "source_not_allowed"


# ---- s3


@pytest.fixture(scope="module")
def bucket() -> Iterator[S3Settings]:
    """A real S3 server (moto) with bucket `models`: net.onnx and the folder tree/."""
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    settings = S3Settings(f"http://{host}:{port}", "TEST_S3_KEY", "TEST_S3_SECRET", "TEST_S3_TOKEN", "us-east-1")
    client = boto3.client(
        "s3",
        endpoint_url=settings.endpoint_url,
        region_name="us-east-1",
        aws_access_key_id="key",
        aws_secret_access_key="secret",
    )
    client.create_bucket(Bucket="models")
    client.put_object(Bucket="models", Key="net.onnx", Body=b"n" * 2_500_000)
    client.put_object(Bucket="models", Key="tree/a.txt", Body=b"a")
    client.put_object(Bucket="models", Key="tree/sub/b.txt", Body=b"b")
    client.put_object(Bucket="models", Key="evil/../../escape", Body=b"e")
    client.close()
    yield settings
    server.stop()


@pytest.fixture
def s3(bucket: S3Settings, monkeypatch: pytest.MonkeyPatch) -> FetchSettings:
    monkeypatch.setenv("TEST_S3_KEY", "key")
    monkeypatch.setenv("TEST_S3_SECRET", "secret")
    return FetchSettings(s3=bucket, idle_timeout_s=5.0)


async def test_s3_objects_and_prefixes_arrive(s3: FetchSettings, tmp_path: Path):
    seen: list[int] = []
    await Fetcher(s3).fetch("s3://models/net.onnx", tmp_path / "got", seen.append)
    assert (tmp_path / "got").read_bytes() == b"n" * 2_500_000
    assert seen[-1] == 2_500_000
    await Fetcher(s3).fetch("s3://models/tree", tmp_path / "tree")
    assert (tmp_path / "tree" / "a.txt").read_text() == "a"
    assert (tmp_path / "tree" / "sub" / "b.txt").read_text() == "b"


async def test_s3_refusals(s3: FetchSettings, tmp_path: Path):
    fetcher = Fetcher(s3)
    assert await refusal(fetcher, "s3://models/none.onnx", tmp_path / "got1") == "artifact_missing"
    assert await refusal(fetcher, "s3://nobucket/x", tmp_path / "got2") == "artifact_missing"
    small = Fetcher(FetchSettings(s3=s3.s3, max_artifact_bytes=1_000_000))
    assert await refusal(small, "s3://models/net.onnx", tmp_path / "got3") == "too_large"
    assert await refusal(fetcher, "s3://models/evil", tmp_path / "got4") == "source_not_allowed"
    assert not (tmp_path.parent / "escape").exists()
