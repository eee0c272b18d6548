"""Versions, splits, sticky assignment and roll back, through a real Envoy, counted."""

from __future__ import annotations

import asyncio
import json
import struct
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx

from bench._load import Answer, Connection
from bench._mesh import Mesh
from bench._models import BODY
from tests.system.conftest import Ran


def declared(name: str, versions: dict[str, Path], **spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "msm/v1",
        "kind": "Model",
        "metadata": {"name": name},
        "spec": {"versions": [{"name": v, "uri": path.as_uri()} for v, path in versions.items()], **spec},
    }


def split(**weights: int) -> dict[str, Any]:
    return {"split": [{"version": version, "weight": weight} for version, weight in weights.items()]}


async def ask_many(
    running: Mesh, path: str, times: int, headers: Callable[[int], dict[str, str]] = lambda i: {}
) -> list[Answer]:
    connections = [Connection(running.gateway) for _ in range(8)]

    async def share(first: int) -> list[Answer]:
        return [await connections[first].post(path, BODY, headers(i)) for i in range(first, times, 8)]

    answers = [a for part in await asyncio.gather(*map(share, range(8))) for a in part]
    for connection in connections:
        connection.close()
    return answers


def versions_of(answers: list[Answer]) -> Counter[str]:
    assert all(answer.status == 200 for answer in answers), [a.body for a in answers if a.status != 200][:3]
    return Counter(answer.headers["x-msm-version"] for answer in answers)


def wait_for_version(running: Mesh, path: str, version: str, *, within_s: float = 10.0) -> None:
    deadline = time.monotonic() + within_s
    while True:
        answer = httpx.post(running.gateway + path, content=BODY)
        if answer.status_code == 200 and answer.headers["x-msm-version"] == version:
            return
        assert time.monotonic() < deadline, f"{version} does not answer: {answer.status_code} {answer.text}"
        time.sleep(0.02)


def wait_for_revision(running: Mesh, name: str, *, within_s: float = 10.0) -> None:
    """Until answers come by the rules that are declared now."""
    declared_now = next(m for m in running.models() if m["metadata"]["name"] == name)["metadata"]["generation"]
    deadline = time.monotonic() + within_s
    while True:
        answer = httpx.post(f"{running.gateway}/v2/models/{name}/infer", content=BODY)
        if answer.headers.get("x-msm-revision") == str(declared_now):
            return
        assert time.monotonic() < deadline, f"revision {declared_now} of {name} is not in force: {answer.headers}"


async def test_a_split_is_kept_and_sums_up(running: Mesh, network: Path, other_network: Path):
    spec = declared("shared-out", {"v1": network, "v2": other_network}, traffic=split(v1=80, v2=20))
    running.apply([spec])
    running.wait_valid(within_s=30, of="shared-out")
    counted = versions_of(await ask_many(running, "/v2/models/shared-out/infer", 1000))
    # Binomial with n = 1000, p = 0.2: five standard deviations are 63.
    assert abs(counted["v2"] - 200) < 64
    assert counted.total() == 1000


async def test_growing_a_weight_moves_nobody_who_was_already_on_it(running: Mesh, network: Path, other_network: Path):
    versions = {"v1": network, "v2": other_network}
    sticky = {"sticky": {"header": "x-user-id"}}

    def user(i: int) -> dict[str, str]:
        return {"x-user-id": f"user-{i}"}

    async def assignment(v2: int) -> dict[int, str]:
        traffic = {**split(v1=100 - v2, v2=v2), **sticky}
        running.apply([declared("sticky", versions, traffic=traffic)])
        running.wait_valid(within_s=30, of="sticky")
        wait_for_revision(running, "sticky")
        twice = await ask_many(running, "/v2/models/sticky/infer", 400, lambda i: user(i % 200))
        versions_of(twice)
        by_user: dict[int, set[str]] = {}
        order = [i % 200 for first in range(8) for i in range(first, 400, 8)]
        for i, answer in zip(order, twice, strict=True):
            by_user.setdefault(i, set()).add(answer.headers["x-msm-version"])
        assert all(len(seen) == 1 for seen in by_user.values()), "a user saw two versions"
        return {i: seen.pop() for i, seen in by_user.items()}

    before, after = await assignment(10), await assignment(50)
    on_v2 = {i for i, version in before.items() if version == "v2"}
    assert 0 < len(on_v2) < 60
    assert all(after[i] == "v2" for i in on_v2)
    assert sum(version == "v2" for version in after.values()) > len(on_v2)


def test_a_version_is_reached_by_path_by_alias_and_not_by_a_forged_header(
    running: Mesh, network: Path, other_network: Path
):
    running.apply(
        [declared("named", {"v1": network, "v2": other_network}, aliases={"old": "v1"}, traffic=split(v2=100))]
    )
    running.wait_valid(within_s=30, of="named")
    paths = {
        "/v2/models/named/infer": "v2",
        "/v2/models/named/versions/v1/infer": "v1",
        "/v2/models/named:old/infer": "v1",
        "/v2/models/named/versions/old/infer": "v1",
    }
    for path, version in paths.items():
        answer = httpx.post(running.gateway + path, content=BODY)
        assert (answer.status_code, answer.headers.get("x-msm-version")) == (200, version), (path, answer.text)
    forged = {"x-msm-version": "v1", "X-MSM-Target": "default/named/v1", "x-msm-service": "other"}
    answer = httpx.post(running.gateway + "/v2/models/named/infer", content=BODY, headers=forged)
    assert answer.headers["x-msm-version"] == "v2"
    assert answer.headers["x-msm-model"] == "named"
    assert answer.headers["x-msm-revision"] == "1"
    missing = httpx.post(running.gateway + "/v2/models/named/versions/v9/infer", content=BODY)
    assert missing.status_code == 404
    assert "v9" in missing.json()["error"]


def test_a_new_version_takes_over_and_rolling_back_brings_the_old_one(
    running: Mesh, network: Path, other_network: Path, msm: Callable[..., Ran]
):
    for version, path in (("v1", network), ("v2", other_network)):
        done = msm("deploy", "released", str(path), "--version", version)
        assert done.code == 0, done.err
        wait_for_version(running, "/v2/models/released/infer", version)
    assert msm("rollback", "released").code == 0
    wait_for_version(running, "/v2/models/released/infer", "v1")
    history = json.loads(msm("history", "released", "--output", "json").out)
    assert [entry["generation"] for entry in history] in ([1, 2, 3], [3, 2, 1])


def test_a_version_that_does_not_load_never_takes_traffic(
    running: Mesh, network: Path, tmp_path: Path, msm: Callable[..., Ran]
):
    assert msm("deploy", "steady", str(network), "--version", "v1").code == 0
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(network.read_bytes()[:200])
    done = msm("deploy", "steady", str(broken), "--version", "v2", "--format", "onnx")
    assert done.code == 1
    assert "v2" in done.err
    assert "Traceback" not in done.err
    answer = httpx.post(running.gateway + "/v2/models/steady/infer", content=BODY)
    assert (answer.status_code, answer.headers["x-msm-version"]) == (200, "v1")
    direct = httpx.post(running.gateway + "/v2/models/steady/versions/v2/infer", content=BODY)
    assert direct.status_code == 503
    assert "error" in direct.json()


def test_kserve_v1_and_the_other_bodies_reach_the_version_through_the_gateway(running: Mesh, network: Path):
    running.apply([declared("bodies", {"v1": network}, aliases={"old": "v1"})])
    running.wait_valid(within_s=30, of="bodies")
    row = [5.1, 3.5, 1.4, 0.2]
    url = running.gateway + "/v2/models/bodies/infer"
    wanted = httpx.post(url, content=BODY).json()["outputs"][0]["data"]
    for path in ("/v1/models/bodies:predict", "/v1/models/bodies:old:predict"):
        for body in ({"instances": [row]}, {"inputs": [row]}):
            answer = httpx.post(running.gateway + path, json=body)
            assert (answer.status_code, answer.headers.get("x-msm-version")) == (200, "v1"), answer.text
            assert list(answer.json()) == ["predictions"]
            assert len(answer.json()["predictions"]) == 1
    known = httpx.get(running.gateway + "/v1/models/bodies").json()
    assert (known["name"], known["ready"]) == ("bodies", True)
    wrong = httpx.post(running.gateway + "/v1/models/bodies:predict", json={"instances": [[1]]})
    assert (wrong.status_code, wrong.json()["code"]) == (400, "shape_mismatch")
    count = len(json.loads(BODY)["inputs"][0]["data"])
    values = json.loads(BODY)["inputs"][0]["data"]
    table = ",".join(f"c{i}" for i in range(count)) + "\n" + ",".join(map(str, values)) + "\n"
    as_csv = httpx.post(url, content=table, headers={"content-type": "text/csv"})
    assert as_csv.json()["outputs"][0]["data"] == wanted
    packed = struct.pack(f"<{count}f", *values)
    raw = httpx.post(url, content=packed, headers={"inference-header-content-length": "0"})
    assert raw.json()["outputs"][0]["data"] == wanted
    late = httpx.post(url, content=BODY, headers={"x-request-timeout": "0ms"})
    assert late.status_code == 504
