"""The command line against a served API; all tests share one, and use names of their own."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from typer.testing import CliRunner

from msm.cli.main import app
from msm.resources.meta import ObjectKey
from msm.resources.serving import ModelStatus, Signature, Tensor, VersionStatus
from tests.support.served_api import ServedApi, served_api

_names = itertools.count()
IRIS = Signature(
    inputs=(Tensor(name="input-0", datatype="FP64", shape=(-1, 4)),),
    outputs=(Tensor(name="output-0", datatype="INT64", shape=(-1,)),),
)


@dataclass(frozen=True)
class Ran:
    """How a command ended."""

    code: int
    out: str
    err: str


Run = Callable[..., Ran]


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedApi]:
    with served_api(tmp_path_factory.mktemp("mesh")) as running:
        yield running


@pytest.fixture
def msm(served: ServedApi, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs `msm ARGUMENTS` in this process against the served API."""
    monkeypatch.setenv("MSM_HOME", str(served.data_dir))
    monkeypatch.setenv("NO_COLOR", "1")

    def run(*arguments: str, stdin: str | bytes | None = None) -> Ran:
        result = CliRunner().invoke(app, list(arguments), input=stdin)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return Ran(result.exit_code, result.stdout, result.stderr)

    return run


@pytest.fixture
def name() -> str:
    """A model's name that no other test uses."""
    return f"model-{next(_names)}"


@pytest.fixture
def manifest() -> Callable[..., str]:
    def text(name: str, more: str = "") -> str:
        return (
            f"apiVersion: msm/v1\nkind: Model\nmetadata: {{name: {name}}}\nspec:\n"
            f"  versions: [{{name: v1, uri: 'file:///models/{name}'}}]\n{more}"
        )

    return text


@pytest.fixture
def found_out(served: ServedApi) -> Callable[..., None]:
    """Record what the node would find out about a version."""

    def record(name: str, version: str = "v1", *, namespace: str = "default", **more: Any) -> None:
        fields = {"phase": "Valid", "format": "sklearn", "signature": IRIS, "memory_bytes": 3 << 20, **more}
        key = ObjectKey("Model", namespace, name)

        def change(status: ModelStatus) -> ModelStatus:
            versions = {**status.versions, version: VersionStatus(**fields)}
            return ModelStatus(observed_generation=1, versions=versions, traffic=status.traffic)

        served.run(served.deps.catalog.get(key))  # it has to be there
        served.run(served.deps.catalog.update_status(key, change))

    return record
