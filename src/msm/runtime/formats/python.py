"""Any Python class: a file, or a folder with `model.py`, that has a class `Model`.

    class Model:
        signature = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 4]}], "outputs": [...]}   # optional
        def load(self, path): ...            # optional; `path` is the folder (or the file) of the artifact
        def predict(self, inputs): ...       # dict of arrays by name → dict of arrays by name

It runs code, so the version must be trusted. The file is imported under a name of its own, so that models do not meet;
files beside it are reached by relative imports (`from . import features`). Without a signature the model takes
whatever is sent, one request at a time.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import itertools
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import msgspec

from msm.kit.errors import LoadFailed, MsmError
from msm.runtime.formats.base import Array, LoadOptions, first_line, need_trust
from msm.runtime.signature import Signature

_COUNT: Final = itertools.count()
_NO_TYPES: Final[frozenset[str]] = frozenset()


class PythonModel:
    """The user's object. Its calls may do anything, so they never run on the event loop."""

    exact_outputs = True
    may_block = True
    accepts = _NO_TYPES

    def __init__(self, model: Any, signature: Signature, module: str) -> None:
        self.signature = signature
        self._model = model
        self._module = module

    def predict(self, inputs: dict[str, Array]) -> Mapping[str, Any]:
        """Call the user's `predict`."""
        result: Mapping[str, Any] = self._model.predict(inputs)
        return result

    def __del__(self) -> None:
        for name in [name for name in sys.modules if name == self._module or name.startswith(self._module + ".")]:
            del sys.modules[name]


class PythonFormat:
    """A Python class `Model`."""

    name = "python"
    libraries: tuple[str, ...] = ()

    def sniff(self, path: Path) -> bool:
        file = _file(path)
        return file is not None and b"class Model" in file.read_bytes()

    def load(self, path: Path, options: LoadOptions) -> PythonModel:
        need_trust(options, "a Python class")
        file = _file(path)
        if file is None:
            raise LoadFailed("the artifact holds no model.py", reason="wrong_format")
        module = f"msm_model_{next(_COUNT)}"
        try:
            model, signature = _create(module, file, path)
        except (MsmError, MemoryError):
            raise
        except BaseException as error:
            raise LoadFailed(f"the Python model could not be loaded: it raised {first_line(error)}") from error
        return PythonModel(model, options.signature or signature, module)


def _file(path: Path) -> Path | None:
    """The file with the class: the artifact itself, the folder's model.py, or its only Python file."""
    if path.is_file():
        return path if path.suffix == ".py" or _is_text(path) else None
    if (path / "model.py").is_file():
        return path / "model.py"
    found = sorted(path.glob("*.py")) if path.is_dir() else []
    return found[0] if len(found) == 1 else None


def _is_text(path: Path) -> bool:
    with path.open("rb") as file:
        start = file.read(4096)
    return bool(start) and b"\0" not in start and b"class Model" in path.read_bytes()


def _create(module: str, file: Path, artifact: Path) -> tuple[Any, Signature]:
    loader = importlib.machinery.SourceFileLoader(module, str(file))
    spec = importlib.util.spec_from_file_location(
        module, file, loader=loader, submodule_search_locations=[str(file.parent)]
    )
    if spec is None:
        raise LoadFailed("the Python file could not be read", reason="corrupt_artifact")
    code = importlib.util.module_from_spec(spec)
    sys.modules[module] = code
    try:
        loader.exec_module(code)
        model = _instance(code)
        if hasattr(model, "load"):
            model.load(str(artifact))
        return model, _signature(getattr(model, "signature", None))
    except BaseException:
        sys.modules.pop(module, None)
        raise


def _instance(code: ModuleType) -> Any:
    kind = getattr(code, "Model", None)
    if not callable(kind):
        raise LoadFailed("the Python file has no class Model", reason="not_a_model")
    model = kind()
    if not callable(getattr(model, "predict", None)):
        raise LoadFailed("class Model has no method predict", reason="not_a_model")
    return model


def _signature(declared: Any) -> Signature:
    if declared is None:
        return Signature()
    try:
        return msgspec.convert(declared, Signature)
    except msgspec.ValidationError as error:
        problem = str(error).replace("`", "'")
        raise LoadFailed(f"the signature of class Model is wrong: {problem}", reason="bad_signature") from error
