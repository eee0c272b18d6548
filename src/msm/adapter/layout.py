"""Model folders as external servers want them, made of links to the artifact and small files. Blocks: call in a thread.

Nothing of the artifact is copied or changed. Raises LoadFailed for an artifact that the server could not take.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from msm.adapter.spec import ServerSpec
from msm.kit.errors import LoadFailed
from msm.runtime.repository import LoadSpec

_BACKENDS: Final = Path("/opt/tritonserver/backends")
_BACKEND_OPTION: Final = re.compile(r"--backend-dir(?:ectory)?=(.+)")
_NAME_LINE: Final = re.compile(r"^name[ \t]*:[ \t]*(\"[^\"]*\"|'[^']*')[ \t]*,?[ \t]*$", re.MULTILINE)
_SETTINGS: Final = "model-settings.json"
_CONFIG: Final = "config.pbtxt"
# MLServer's class for a format, and the name under which it finds the file in a folder.
_MLSERVER: Final[dict[str, tuple[str, str]]] = {
    "sklearn": ("mlserver_sklearn.SKLearnModel", "model.joblib"),
    "xgboost": ("mlserver_xgboost.XGBoostModel", "model.json"),
    "lightgbm": ("mlserver_lightgbm.LightGBMModel", "model.bst"),
    "catboost": ("mlserver_catboost.CatboostModel", "model.cbm"),
    "mlflow": ("mlserver_mlflow.MLflowRuntime", "model"),
    "huggingface": ("mlserver_huggingface.HuggingFaceRuntime", "model"),
}
_DATA_ONLY: Final = frozenset({"xgboost", "lightgbm", "catboost"})
# Triton's backend for a format, and the file's name in the folder of its version.
_TRITON: Final[dict[str, tuple[str, str]]] = {
    "onnx": ("onnxruntime", "model.onnx"),
    "torchscript": ("pytorch", "model.pt"),
    "tensorrt": ("tensorrt", "model.plan"),
    "openvino": ("openvino", "model.xml"),
    "python": ("python", "model.py"),
}


def lay_out(spec: ServerSpec, repository: Path, name: str, order: LoadSpec) -> Path:
    """The folder of a model in a server's repository, anew; returns it."""
    folder = repository / name
    remove(folder)
    folder.mkdir(parents=True)
    artifact = Path(order.path)
    if spec.adapter == "mlserver":
        _mlserver(folder, name, artifact, order)
    elif spec.adapter == "triton":
        _triton(folder, artifact, order, backends_of(spec.command))
    else:
        _link_all(artifact, folder, artifact.name)
    return folder


def remove(folder: Path) -> None:
    """Take a model's folder away; the artifact behind the links stays."""
    shutil.rmtree(folder, ignore_errors=True)


def _link_all(artifact: Path, folder: Path, name: str, leave_out: Sequence[str] = ()) -> None:
    """The entries of a folder, or the file under `name`."""
    if not artifact.is_dir():
        (folder / name).symlink_to(artifact)
        return
    for entry in artifact.iterdir():
        if entry.name not in leave_out:
            (folder / entry.name).symlink_to(entry)


def _needs_trust(what: str) -> LoadFailed:
    return LoadFailed(f"{what} runs code of the artifact: it needs trusted: true", reason="untrusted")


def _mlserver(folder: Path, name: str, artifact: Path, order: LoadSpec) -> None:
    own = artifact / _SETTINGS if artifact.is_dir() else None
    settings: dict[str, Any] = {}
    if own is not None and own.is_file():
        settings = _read_settings(own)
        _link_all(artifact, folder, artifact.name, leave_out=(_SETTINGS,))
    else:
        known = _MLSERVER.get(order.format or "")
        if known is None and "implementation" not in order.parameters:
            raise LoadFailed(
                f"MLServer's class for format {order.format!r} is not known: name it as parameters.implementation, or "
                f"give a folder with a {_SETTINGS}",
                reason="unknown_format",
            )
        file = known[1] if known else artifact.name
        _link_all(artifact, folder, file)
        uri = "." if artifact.is_dir() else file
        settings = {"implementation": known[0] if known else "", "parameters": {"uri": f"./{uri}"}}
    settings |= {key: order.parameters[key] for key in order.parameters if key not in ("parameters", "name")}
    settings["parameters"] = {**settings.get("parameters", {}), **_mapping(order.parameters.get("parameters"))}
    safe = settings.get("implementation") == _MLSERVER.get(order.format or "", ("",))[0] and order.format in _DATA_ONLY
    if not safe and not order.trusted:
        raise _needs_trust(f"format {order.format} on MLServer")
    settings["name"] = name
    settings["parameters"].pop("version", None)
    (folder / _SETTINGS).write_text(json.dumps(settings))


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _read_settings(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_bytes())
    except ValueError as error:
        raise LoadFailed(f"{_SETTINGS} is not JSON: {error}", reason="corrupt") from error
    if not isinstance(found, dict) or not isinstance(found.get("implementation"), str):
        raise LoadFailed(f"{_SETTINGS} names no implementation", reason="corrupt")
    return found


def backends_of(command: Sequence[str]) -> Path:
    """Where a Triton that is started like this looks for its backends."""
    found = [match[1] for argument in command if (match := _BACKEND_OPTION.fullmatch(argument))]
    return Path(found[-1]) if found else _BACKENDS


def _triton(folder: Path, artifact: Path, order: LoadSpec, backends: Path) -> None:
    if artifact.is_dir() and not order.trusted and any(artifact.rglob("*.py")):
        raise _needs_trust("a Triton model folder with a Python file")
    own = artifact / _CONFIG
    if artifact.is_dir() and own.is_file():
        _link_all(artifact, folder, artifact.name, leave_out=(_CONFIG,))
        config = _NAME_LINE.sub("", own.read_text("utf-8", "replace"))
    else:
        backend, file = _TRITON.get(order.format or "", ("", ""))
        if not backend:
            raise LoadFailed(
                f"Triton's backend for format {order.format!r} is not known: give a folder with a {_CONFIG}",
                reason="unknown_format",
            )
        if backend == "python" and not order.trusted:
            raise _needs_trust("format python on Triton")
        version = folder / "1"
        version.mkdir()
        _link_all(artifact, version, file)
        if order.format == "onnx" and not (backends / "onnxruntime").is_dir():
            # A Triton without the backend for ONNX runs it by its Python backend and the onnxruntime it finds there.
            backend = "python"
            shutil.copyfile(Path(__file__).with_name("triton_onnx.py"), version / "model.py")
        config = f'backend: "{backend}"\n'
    more = order.parameters.get("config", "")
    (folder / _CONFIG).write_text(f"{config}\n{more if isinstance(more, str) else ''}\n")
