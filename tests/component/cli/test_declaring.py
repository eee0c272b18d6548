"""apply, deploy, delete, rollback: what they declare, print and return."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from msm.resources.meta import ObjectKey
from tests.component.cli.conftest import Run
from tests.support.served_api import ServedApi

Manifest = Callable[..., str]
FoundOut = Callable[..., None]


def spec_of(msm: Run, name: str) -> dict:
    done = msm("get", "model", name, "--output", "json")
    assert done.code == 0, done.err
    return json.loads(done.out)["spec"]


def test_apply_declares_files_folders_and_standard_input(msm: Run, name: str, manifest: Manifest, tmp_path: Path):
    (tmp_path / "a.yaml").write_text(manifest(f"{name}-a"))
    spec = {"versions": [{"name": "v1", "uri": "s3://b/k"}]}
    as_json = {"apiVersion": "msm/v1", "kind": "Model", "metadata": {"name": f"{name}-b"}, "spec": spec}
    (tmp_path / "b.json").write_text(json.dumps(as_json))
    (tmp_path / "notes.txt").write_text("not: a manifest")
    done = msm("apply", "-f", str(tmp_path), "-f", "-", stdin=manifest(f"{name}-c"))
    assert done.code == 0, done.err
    for suffix in "abc":
        assert f"model/{name}-{suffix}" in done.out
        assert spec_of(msm, f"{name}-{suffix}")["versions"][0]["name"] == "v1"


def test_apply_tells_every_fault_of_every_file_and_declares_nothing(
    msm: Run, name: str, manifest: Manifest, tmp_path: Path
):
    (tmp_path / "a.yaml").write_text(manifest(f"{name}-a"))
    (tmp_path / "b.yaml").write_text(manifest(f"{name}-b", "  maxqueue: 3\n"))
    (tmp_path / "c.yaml").write_text(manifest(f"{name}-c", "  idempotent: no\n"))
    done = msm("apply", "-f", str(tmp_path))
    assert (done.code, done.out) == (1, "")
    assert "b.yaml: line 6" in done.err
    assert "c.yaml: line 6" in done.err
    assert msm("get", "model", f"{name}-a").code == 3


def test_a_dry_run_tells_changes_and_plan(msm: Run, name: str, manifest: Manifest):
    done = msm("apply", "-f", "-", "--dry-run", stdin=manifest(name))
    assert done.code == 0
    assert "created" in done.out
    assert "It would be fetched and measured." in done.out
    assert msm("get", "model", name).code == 3


def test_apply_of_the_same_again_changes_nothing(msm: Run, name: str, manifest: Manifest):
    msm("apply", "-f", "-", stdin=manifest(name))
    again = msm("apply", "-f", "-", "-o", "json", stdin=manifest(name))
    assert json.loads(again.out)["changes"][0]["action"] == "unchanged"


def test_what_is_printed_as_yaml_can_be_applied(msm: Run, name: str, manifest: Manifest, found_out: FoundOut):
    msm("apply", "-f", "-", stdin=manifest(name))
    found_out(name)
    printed = msm("get", "model", name, "-o", "yaml").out
    again = msm("apply", "-f", "-", "-o", "json", stdin=printed)
    assert json.loads(again.out)["changes"][0]["action"] == "unchanged", again.err


def test_deploy_makes_a_model_of_a_path(msm: Run, name: str, tmp_path: Path):
    artifact = tmp_path / "iris model#1.onnx"
    artifact.write_bytes(b"x")
    done = msm(
        "deploy",
        name,
        str(artifact),
        "--no-wait",
        "--label",
        "task=x",
        "--param",
        "n=3",
        "--param",
        "s=a=b",
        "--min",
        "1",
    )
    assert done.code == 0, done.err
    spec = spec_of(msm, name)
    assert spec["versions"] == [
        {"name": "v1", "uri": artifact.as_uri(), "parameters": {"n": 3, "s": "a=b"}},
    ]  # fmt: skip
    assert spec["scaling"] == {"min": 1}
    assert "v1 is pending" in done.out


def test_deploy_adds_versions_and_moves_the_traffic(msm: Run, name: str):
    for number in (1, 2, 3):
        more = ["--alias", "stable"] if number == 1 else ["--no-traffic"] if number == 2 else []
        done = msm("deploy", name, f"s3://bucket/{number}", "--no-wait", *more)
        assert done.code == 0, done.err
    spec = spec_of(msm, name)
    assert [version["name"] for version in spec["versions"]] == ["v1", "v2", "v3"]
    assert spec["aliases"] == {"stable": "v3"}
    assert "traffic" not in spec


def test_deploy_waits_until_the_version_is_valid_and_reports_it(
    msm: Run, name: str, found_out: FoundOut, served: ServedApi
):
    msm("deploy", name, "s3://bucket/1", "--no-wait")
    timer = threading.Timer(0.3, lambda: found_out(name, digest="sha256:" + "a" * 64, load_seconds=0.5))
    timer.start()
    done = msm("deploy", name, "s3://bucket/1", "--version", "v1")
    timer.join()
    assert done.code == 0, done.err
    for part in ("v1 is valid", "sklearn", "input-0 FP64 [-1, 4]", "3.0 MiB", "500 ms", "sha256:aaaa"):
        assert part in done.out


def test_deploy_of_a_version_that_fails_says_why(msm: Run, name: str, found_out: FoundOut):
    msm("deploy", name, "s3://bucket/1", "--no-wait")
    found_out(name, phase="Failed", message="the artifact is no model")
    done = msm("deploy", name, "s3://bucket/1", "--version", "v1")
    assert done.code == 1
    assert f"version v1 of model/{name} failed: the artifact is no model" in done.err


def test_deploy_that_takes_too_long_ends_with_what_it_waits_for(msm: Run, name: str):
    done = msm("deploy", name, "s3://bucket/1", "--timeout", "0")
    assert done.code == 6
    assert "v1 is pending" in done.err


def test_a_version_cannot_be_deployed_again_with_another_artifact(msm: Run, name: str):
    msm("deploy", name, "s3://bucket/1", "--version", "v1", "--no-wait")
    done = msm("deploy", name, "s3://bucket/2", "--version", "v1", "--no-wait")
    assert done.code == 4
    assert "immutable" in done.err


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["no/such/file"], "there is no file or folder 'no/such/file'"),
        (["ftp://x/y"], "file, http, https, s3"),
        (["s3://b/k", "--label", "x"], "--label 'x' is not of the form KEY=VALUE"),
        (["s3://b/k", "--min", "5", "--max", "2"], "min 5 is greater than max 2"),
    ],
)
def test_a_wrong_deploy_is_refused_with_the_rule(msm: Run, name: str, arguments: list[str], part: str):
    done = msm("deploy", name, *arguments, "--no-wait")
    assert done.code == 1
    assert part in done.err


def test_two_deploys_at_once_are_both_there(msm: Run, name: str, served: ServedApi):
    from msm.cli.deploy import _declare
    from msm.cli.deploying import Wanted
    from msm.client import MeshClient

    def one(number: int) -> None:
        with MeshClient.of(served.data_dir) as client:
            _declare(client, Wanted(key=ObjectKey("Model", "default", name), uri=f"s3://b/{number}"))

    threads = [threading.Thread(target=one, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [version["name"] for version in spec_of(msm, name)["versions"]] == ["v1", "v2", "v3"]


def test_delete_and_rollback_take_a_model_away_and_back(msm: Run, name: str, manifest: Manifest):
    msm("apply", "-f", "-", stdin=manifest(name))
    assert "deleted" in msm("delete", "model", name).out
    assert msm("delete", name).code == 3
    done = msm("rollback", f"model/{name}")
    assert (done.code, done.err) == (0, "")
    assert spec_of(msm, name)["versions"][0]["name"] == "v1"
    assert msm("rollback", name, "--to", "99").code == 3


def test_a_name_that_begins_with_a_dash_is_no_option(msm: Run):
    assert msm("delete", "-rf").code == 2
    done = msm("delete", "--", "-rf")
    assert done.code == 3
    assert "-rf" in done.err


def test_an_unknown_model_is_told_with_the_nearest(msm: Run, name: str, manifest: Manifest):
    msm("apply", "-f", "-", stdin=manifest(f"{name}-sentiment"))
    done = msm("delete", f"{name}-sentimet")
    assert done.code == 3
    assert f"{name}-sentiment" in done.err
