"""The node over HTTP: state, explanations, logs, metrics."""

from __future__ import annotations

import pytest

from msm.api.logs import read_more, read_tail
from msm.api.metrics import MOST_VERSIONS, render
from msm.resources.observed import CopyStatus
from tests.support.fake_node import FakeNode
from tests.unit.api.conftest import Api


async def test_the_node_tells_its_state(api: Api):
    status = (await api.http.get("/api/v1/node")).json()
    assert (status["name"], status["workers"][1]["state"]) == ("fake", "Backoff")


async def test_a_model_is_explained_and_an_unknown_one_is_not(api: Api):
    await api.declare("iris")
    explained = (await api.http.get("/api/v1/explain/default/iris")).json()
    assert explained["rejected"][0]["message"] == "it is not ready"
    assert (await api.http.get("/api/v1/explain/default/irs")).json()["nearest"] == ["iris"]


async def test_the_log_of_a_worker_is_told_by_lines_and_model(api: Api):
    path = api.node.log_path("w0")
    path.write_text(
        "".join(f"line {number} of default/{'iris' if number % 2 else 'digits'}/v1\n" for number in range(10))
    )
    answer = await api.http.get("/api/v1/logs/w0?lines=2")
    assert answer.text.splitlines() == ["line 8 of default/digits/v1", "line 9 of default/iris/v1"]
    answer = await api.http.get("/api/v1/logs/w0?lines=2&model=default/iris/")
    assert answer.text.splitlines() == ["line 7 of default/iris/v1", "line 9 of default/iris/v1"]


async def test_a_worker_that_has_not_written_yet_has_an_empty_log(api: Api):
    answer = await api.http.get("/api/v1/logs/w1")
    assert (answer.status_code, answer.text) == (200, "")


@pytest.mark.parametrize("worker", ["w9", "..%2F..%2Fadmin.token", "%2e%2e"])
async def test_an_unknown_worker_has_no_log(api: Api, worker: str):
    assert (await api.http.get(f"/api/v1/logs/{worker}")).status_code == 404


@pytest.mark.parametrize("query", ["lines=-1", "lines=x", "lines=10001", "follow=maybe", "lines=" + "9" * 30])
async def test_wrong_parameters_are_refused(api: Api, query: str):
    answer = await api.http.get(f"/api/v1/logs/w0?{query}")
    assert answer.status_code == 400
    assert query.partition("=")[0] in answer.json()["detail"]


async def test_a_log_is_followed_over_rotation_without_half_lines(tmp_path):
    path = tmp_path / "w.log"
    path.write_bytes(b"one\ntwo\nthr")
    tail = await read_tail(path, 1)
    assert tail.text == b"thr"
    with path.open("ab") as file:
        file.write(b"ee\nfour\nhal")
    tail = await read_more(tail)
    assert tail.text == b"ee\nfour\n"
    path.rename(tmp_path / "w.log.1")
    path.write_bytes(b"new\n")
    tail = await read_more(tail)
    assert tail.text == b"new\n"
    path.write_bytes(b"")
    tail = await read_more(tail)
    path.unlink()
    assert (await read_more(tail)).text == b""


async def test_metrics_are_prometheus_text(api: Api):
    await api.node.activate("iris", None)
    answer = await api.http.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    lines = answer.text.splitlines()
    assert 'msm_requests_total{version="default/iris/v1"} 3' in lines
    assert 'msm_workers{state="Backoff"} 1' in lines
    assert "msm_events_dropped_total 0" in lines
    assert "msm_used_bytes 1073741824" in lines


async def test_the_number_of_series_is_bounded(tmp_path):
    node = FakeNode(tmp_path)
    for number in range(MOST_VERSIONS + 50):
        name = f"default/m{number}/v1"
        node.copies[name] = CopyStatus(version=name, worker="w0", state="Ready", requests=number + 1)
    lines = render(node.snapshot(), dropped_events=0).splitlines()
    series = [line for line in lines if line.startswith("msm_requests_total{")]
    assert len(series) == MOST_VERSIONS + 1
    assert 'msm_requests_total{version="other"} 1275' in series
