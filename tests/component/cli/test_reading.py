"""get, describe, explain, history, diff, events, logs, top, token: what people and programs read."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
import yaml

from msm.observe.events import Event
from tests.component.cli.conftest import Run
from tests.support.served_api import ServedApi

Manifest = Callable[..., str]
FoundOut = Callable[..., None]


@pytest.fixture
def declared(msm: Run, name: str, manifest: Manifest, found_out: FoundOut) -> str:
    assert msm("apply", "-f", "-", stdin=manifest(name)).code == 0
    found_out(name)
    return name


def test_models_are_listed_as_table_json_and_yaml(msm: Run, declared: str):
    line = next(line for line in msm("get").out.splitlines() if declared in line)
    assert "Valid" in line
    assert "v1 100 %" in line
    as_json = json.loads(msm("get", "models", "-o", "json").out)
    as_yaml = yaml.safe_load(msm("get", "models", "-o", "yaml").out)
    assert as_json == as_yaml
    assert declared in [item["metadata"]["name"] for item in as_json]


def test_one_model_is_an_object(msm: Run, declared: str):
    for words in ([declared], ["model", declared], [f"model/{declared}"], [f"default/{declared}"]):
        found = json.loads(msm("get", *words, "-o", "json").out)
        assert found["metadata"]["name"] == declared
        assert list(found)[:2] == ["apiVersion", "kind"]


def test_versions_workers_copies_and_node_are_listed(msm: Run, declared: str, served: ServedApi):
    served.run(served.node.activate(declared, "v1"))
    assert "1 ready" in msm("get", "versions", declared).out
    (version,) = json.loads(msm("get", "versions", declared, "-o", "json").out)
    assert (version["model"], version["status"]["phase"]) == (declared, "Valid")
    assert "it ended by signal 11" in msm("get", "workers").out
    assert [worker["id"] for worker in json.loads(msm("get", "workers", "w1", "-o", "json").out)] == ["w1"]
    assert f"{declared}/v1" in msm("get", "copies").out
    assert "4.0 GiB" in msm("get", "node").out
    assert msm("get", "workers", "w9").code == 3


@pytest.mark.parametrize("words", [["a", "b", "c"], ["nonsense", "x"], ["model", "a", "b"]])
def test_what_names_no_model_is_refused(msm: Run, words: list[str]):
    done = msm("get", *words)
    assert done.code == 1
    assert "does not name a model" in done.err


def test_describe_tells_versions_traffic_and_events(msm: Run, declared: str, served: ServedApi):
    event = Event(at=1_000.0, subject=f"model/{declared}", reason="VersionValid", message="It loads.", source="test")
    served.call(lambda: served.deps.events.emit(event))
    done = msm("describe", "model", declared)
    for part in ("sklearn", "v1 100 % (as declared)", "It loads.", "0 to 4", "30 s"):
        assert part in done.out
    assert json.loads(msm("describe", declared, "-o", "json").out)["events"][0]["reason"] == "VersionValid"


def test_explain_tells_decisions_and_rejections(msm: Run, declared: str):
    done = msm("explain", "model", declared)
    assert "Nobody asked for it." in done.out
    assert "w1: it is not ready (state Backoff)" in done.out


def test_history_and_diff_tell_what_changed(msm: Run, declared: str, manifest: Manifest):
    msm("apply", "-f", "-", stdin=manifest(declared, "  maxQueue: 5\n"))
    entries = json.loads(msm("history", declared, "-o", "json").out)
    assert [(entry["generation"], entry["action"]) for entry in entries] == [(1, "created"), (2, "updated")]
    assert "updated" in msm("history", "model", declared).out
    done = msm("diff", declared)
    assert "+  maxQueue: 5" in done.out.splitlines()
    assert not [line for line in done.out.splitlines() if line.startswith("-") and not line.startswith("---")]
    assert "-  maxQueue: 5" in msm("diff", declared, "--from", "2", "--to", "1").out.splitlines()
    assert msm("diff", declared, "--to", "1").out.count("+") > 3
    assert msm("diff", declared, "--from", "9").code == 3


def test_events_are_listed_by_subject_and_age(msm: Run, declared: str, served: ServedApi):
    event = Event(at=1_000.0, subject=f"model/{declared}/v1", reason="Old", message="Long ago.", source="test")
    served.call(lambda: served.deps.events.emit(event))
    assert "Long ago." in msm("events", f"model/{declared}").out
    assert json.loads(msm("events", f"model/{declared}", "--since", "1h", "-o", "json").out) == []
    assert msm("events", "--since", "yesterday").code == 1


def test_logs_are_those_of_a_worker_or_of_a_model(msm: Run, declared: str, served: ServedApi):
    log = served.node.log_path("w0")
    with log.open("a") as file:
        file.write(f"about default/{declared}/v1\nabout another\n")
    assert msm("logs", "w0", "--lines", "1").out == "about another\n"
    assert f"w0  about default/{declared}/v1" in msm("logs", declared).out
    assert "another" not in msm("logs", declared).out
    assert msm("logs", "nothing-of-that-name").code == 3


def test_top_prints_once_without_a_terminal(msm: Run, declared: str, served: ServedApi):
    served.run(served.node.activate(declared, "v1"))
    done = msm("top")
    assert "4.0 GiB used" in done.out
    assert f"{declared}/v1" in done.out


def test_the_token_is_shown_only_when_asked_for(msm: Run, served: ServedApi):
    token = served.deps.tokens.token
    assert msm("token").out.strip() == str(served.data_dir / "admin.token")
    assert msm("token", "--show").out.strip() == token


def test_what_a_server_says_cannot_steer_the_terminal(msm: Run, declared: str, served: ServedApi, found_out: FoundOut):
    evil = "\x1b[2J\x1b]0;title\x07red\x1b[31m\x9b1m\u202e\rend"
    found_out(declared, phase="Failed", message=evil)
    event = Event(at=2_000.0, subject=f"model/{declared}", reason="Evil", message=evil, source="test")
    served.call(lambda: served.deps.events.emit(event))
    failed = msm("deploy", declared, f"file:///models/{declared}", "--version", "v1", "--min", "1")
    assert (failed.code, "red" in failed.err) == (1, True)
    printed = [msm("describe", declared), msm("events"), failed, msm("get", "-o", "json")]
    for done in printed:
        text = done.out + done.err
        assert not {"\x1b", "\x07", "\x9b", "\r", "\u202e"} & set(text)
    assert json.loads(msm("events", f"model/{declared}", "-o", "json").out)[-1]["message"] == evil
