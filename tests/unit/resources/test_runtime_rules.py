from __future__ import annotations

from typing import Any

import msgspec
import pytest

from msm.kit.errors import InvalidInput
from msm.resources.manifest import dump_yaml, load
from msm.resources.runtimes import ServingRuntime, needs_trust, quantity_bytes, runtime_keys

GOOD: dict[str, Any] = {
    "adapter": "mlserver",
    "command": ["/opt/mlserver", "start", "{repository}", "--port={http_port}"],
    "formats": ["sklearn"],
}
PROCESS: dict[str, Any] = {
    "adapter": "process",
    "command": ["/opt/serve", "{model_dir}", "{http_port}", "{name}"],
    "formats": ["huggingface"],
}


def read(spec: dict[str, Any]) -> ServingRuntime:
    manifest = {"apiVersion": "msm/v1", "kind": "ServingRuntime", "metadata": {"name": "own"}, "spec": spec}
    found = load(msgspec.json.encode(manifest))[0].resource
    assert isinstance(found, ServingRuntime)
    return found


@pytest.mark.parametrize("spec", [GOOD, PROCESS, {**PROCESS, "protocol": "openai"}])
def test_a_runtime_is_read_back_from_what_it_is_written_as(spec: dict[str, Any]) -> None:
    runtime = read(spec)
    assert load(dump_yaml(runtime))[0].resource == runtime


@pytest.mark.parametrize(
    ("change", "path", "part"),
    [
        ({"command": ["mlserver", "{repository}{http_port}"]}, "$.spec.command[0]", "not an absolute path"),
        ({"command": ["/opt/../bin/x", "{repository}{http_port}"]}, "$.spec.command[0]", "not an absolute path"),
        ({"command": ["/bin/sh", "-c", "{repository}{http_port}"]}, "$.spec.command[0]", "runs other programs"),
        ({"command": ["/usr/bin/env", "x", "{repository}{http_port}"]}, "$.spec.command[0]", "runs other programs"),
        ({"command": []}, "$.spec.command", "1 to 200"),
        ({"command": ["/opt/x", "{http_port}"]}, "$.spec.command", "{repository}"),
        ({"command": ["/opt/x", "{repository}"]}, "$.spec.command", "{http_port}"),
        ({"command": [*GOOD["command"], "{model_dir}"]}, "$.spec.command", "no value for {model_dir}"),
        ({"command": [*GOOD["command"], "{port}"]}, "$.spec.command[4]", "the placeholder {port} is unknown"),
        ({"command": "mlserver start"}, "$.spec.command", "expected a list"),
        ({"env": {"LD_PRELOAD": "/x.so"}}, "$.spec.env.LD_PRELOAD", "other code"),
        ({"env": {"A-B": "1"}}, "$.spec.env.A-B", "not the name"),
        ({"formats": []}, "$.spec.formats", "1 to 64"),
        ({"formats": ["a", "a"]}, "$.spec.formats[1]", "twice"),
        ({"multiModel": False}, "$.spec.multiModel", "contradicts"),
        ({"protocol": "openai"}, "$.spec.protocol", "needs the adapter process"),
        ({"adapter": "torch"}, "$.spec.adapter", "expected one of"),
        ({"readiness": "health"}, "$.spec.readiness", "begins with '/'"),
        ({"memoryOverhead": "lots"}, "$.spec.memoryOverhead", "does not match"),
        ({"workers": 0}, "$.spec.workers", "at least 1"),
        ({"image": "x"}, "$.spec.image", "unknown"),
    ],
)
def test_a_fault_is_told_with_its_path(change: dict[str, Any], path: str, part: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        read({**GOOD, **change})
    told = [sentence for where, sentence in refused.value.problems if where == path]
    assert any(part in sentence for sentence in told), refused.value.problems


def test_a_library_path_may_be_set() -> None:
    assert read({**GOOD, "env": {"LD_LIBRARY_PATH": "/opt/lib"}}).spec.env == {"LD_LIBRARY_PATH": "/opt/lib"}


def test_a_version_cannot_declare_memory_that_is_measured_anyway() -> None:
    version = {"name": "v1", "uri": "file:///m.onnx", "memory": "5Mi"}
    model = {"apiVersion": "msm/v1", "kind": "Model", "metadata": {"name": "m"}, "spec": {"versions": [version]}}
    with pytest.raises(InvalidInput, match="only versions with a runtime"):
        load(msgspec.json.encode(model))


def test_a_version_of_a_runtime_cannot_be_converted() -> None:
    version = {"name": "v1", "uri": "file:///m.skops", "runtime": "mlserver", "accelerate": "auto"}
    model = {"apiVersion": "msm/v1", "kind": "Model", "metadata": {"name": "m"}, "spec": {"versions": [version]}}
    with pytest.raises(InvalidInput, match="only the built-in worker converts") as refused:
        load(msgspec.json.encode(model))
    assert [path for path, _ in refused.value.problems] == ["$.spec.versions[0].accelerate"]


@pytest.mark.parametrize(
    ("text", "count"), [("1", 1), ("5k", 5000), ("2Ki", 2048), ("512Mi", 512 << 20), ("3Gi", 3 << 30), ("1T", 10**12)]
)
def test_quantities(text: str, count: int) -> None:
    assert quantity_bytes(text) == count


def test_where_a_runtime_is_looked_for() -> None:
    assert [key.namespace for key in runtime_keys("team", "x")] == ["team", "default"]
    assert [key.namespace for key in runtime_keys("default", "x")] == ["default"]


def test_what_needs_trust() -> None:
    assert needs_trust("mlserver", "sklearn")
    assert not needs_trust("mlserver", "xgboost")
    assert not needs_trust("triton", "onnx")
    assert needs_trust("triton", "python")
