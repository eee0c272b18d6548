"""Artifacts that carry code: pickles under many names, skops files that name functions, Python classes."""

from __future__ import annotations

import json
import os
import pickle
import warnings
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from bench._models import write_network
from tests.badinput.makers import MARK, Maker, registered_in, written

MAKERS: dict[str, Maker] = {}
maker = registered_in(MAKERS)


class _Runs:
    """Unpickling it makes a folder beside the artifact."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.mkdir, (str(self._folder / MARK),)


def _pickle(folder: Path) -> bytes:
    return pickle.dumps(_Runs(folder))


@maker
def pickle_as_pkl(folder: Path) -> Path:
    return written(folder / "model.pkl", _pickle(folder))


@maker
def pickle_as_joblib(folder: Path) -> Path:
    return written(folder / "model.joblib", _pickle(folder))


@maker
def pickle_as_onnx(folder: Path) -> Path:
    return written(folder / "model.onnx", _pickle(folder))


@maker
def pickle_as_skops(folder: Path) -> Path:
    return written(folder / "model.skops", _pickle(folder))


@maker
def pickle_as_json(folder: Path) -> Path:
    return written(folder / "model.json", _pickle(folder))


@maker
def pickle_as_safetensors(folder: Path) -> Path:
    return written(folder / "model.safetensors", _pickle(folder))


@maker
def pickle_as_text(folder: Path) -> Path:
    return written(folder / "model.txt", pickle.dumps(_Runs(folder), protocol=0))


@maker
def pickle_of_protocol_0(folder: Path) -> Path:
    return written(folder / "model.pkl", pickle.dumps(_Runs(folder), protocol=0))


@maker
def pickle_compressed(folder: Path) -> Path:
    return written(folder / "model.joblib", zlib.compress(_pickle(folder)))


@maker
def pickle_in_zip(folder: Path) -> Path:
    path = folder / "model.skops"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("data.pkl", _pickle(folder))
    return path


@maker
def pickle_in_torch_zip(folder: Path) -> Path:
    path = folder / "model.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", _pickle(folder))
        archive.writestr("archive/version", "3\n")
    return path


@maker
def pickle_in_npy(folder: Path) -> Path:
    path = folder / "model.npy"
    np.save(path, np.array([_Runs(folder)], dtype=object), allow_pickle=True)
    return path


@maker
def pickle_in_folder(folder: Path) -> Path:
    (folder / "model").mkdir()
    written(folder / "model" / "model.pkl", _pickle(folder))
    return folder / "model"


@maker
def pickle_beside_a_network(folder: Path) -> Path:
    (folder / "model").mkdir()
    written(folder / "model" / "model.pkl", _pickle(folder))
    write_network(folder / "model" / "broken.onnx", 1).write_bytes(b"\x08\x08")
    return folder / "model"


@maker
def pickle_memo_bomb(folder: Path) -> Path:
    doubling = b"".join(b"(h%bh%btq%b0" % (bytes([i]), bytes([i]), bytes([i + 1])) for i in range(60))
    return written(folder / "model.pkl", b"\x80\x02]q\x000" + doubling + b"h<.")


@maker
def skops_with_a_function(folder: Path) -> Path:
    """A skops archive whose schema names os.mkdir."""
    schema = {
        "__class__": "mkdir", "__module__": "os", "__loader__": "FunctionNode", "__id__": 1, "protocol": 2,
        "content": {"module_path": "os", "function": "mkdir"}, "_skops_version": "0.11",
    }  # fmt: skip
    path = folder / "model.skops"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("schema.json", json.dumps(schema))
    return path


@maker
def skops_with_a_reduce(folder: Path) -> Path:
    """A skops archive that wants a constructor of another module called."""
    schema = {
        "__class__": "Popen", "__module__": "subprocess", "__loader__": "ObjectNode", "__id__": 1, "protocol": 2,
        "content": {"__class__": "dict", "__module__": "builtins", "__loader__": "DictNode", "content": {}, "__id__": 2,
                    "key_types": {"__class__": "list", "__module__": "builtins", "__loader__": "ListNode",
                                  "content": [], "__id__": 3}},
        "_skops_version": "0.11",
    }  # fmt: skip
    path = folder / "model.skops"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("schema.json", json.dumps(schema))
    return path


@maker
def skops_with_a_deep_schema(folder: Path) -> Path:
    path = folder / "model.skops"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("schema.json", "[" * 200_000 + "]" * 200_000)
    return path


@maker
def skops_zip_bomb(folder: Path) -> Path:
    path = folder / "model.skops"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        archive.writestr("schema.json", b" " * (200 << 20))
    return path


@maker
def skops_with_an_entry_twice(folder: Path) -> Path:
    path = folder / "model.skops"
    with warnings.catch_warnings(), zipfile.ZipFile(path, "w") as archive:
        warnings.simplefilter("ignore")
        archive.writestr("schema.json", "{}")
        archive.writestr("schema.json", "[]")
    return path


@maker
def python_class(folder: Path) -> Path:
    (folder / "model").mkdir()
    code = f"import os\nos.mkdir({str(folder / MARK)!r})\nclass Model:\n    def predict(self, inputs): return inputs\n"
    (folder / "model" / "model.py").write_text(code)
    return folder / "model"


@maker
def python_file_as_onnx(folder: Path) -> Path:
    code = f"import os\nos.mkdir({str(folder / MARK)!r})\nclass Model:\n    def predict(self, inputs): return inputs\n"
    return written(folder / "model.onnx", code.encode())


# ---- Python classes that are trusted and wrong


def _python(folder: Path, source: str) -> Path:
    (folder / "model.py").write_text(source)
    return folder


@maker
def python_syntax_error(folder: Path) -> Path:
    return _python(folder, "class Model\n    pass\n")


@maker
def python_raises_on_import(folder: Path) -> Path:
    return _python(folder, "class Model: pass\nraise RuntimeError('not today')\n")


@maker
def python_raises_on_load(folder: Path) -> Path:
    return _python(
        folder, "class Model:\n    def load(self, path): raise KeyError(path)\n    def predict(self, i): ...\n"
    )


@maker
def python_without_predict(folder: Path) -> Path:
    return _python(folder, "class Model:\n    pass\n")


@maker
def python_exits(folder: Path) -> Path:
    return _python(folder, "import sys\nclass Model: pass\nsys.exit(0)\n")


@maker
def python_aborts(folder: Path) -> Path:
    return _python(folder, "import os\nclass Model: pass\nos.abort()\n")


@maker
def python_hangs(folder: Path) -> Path:
    return _python(folder, "class Model: pass\nwhile True: pass\n")


@maker
def python_takes_memory(folder: Path) -> Path:
    return _python(folder, "class Model: pass\nwaste = [bytearray(1 << 24) for _ in range(100_000)]\n")


@maker
def python_wrong_signature(folder: Path) -> Path:
    source = "class Model:\n    signature = {'inputs': [{'name': 'x', 'datatype': 'FLOAT', 'shape': [1]}]}\n"
    return _python(folder, source + "    def predict(self, inputs): return inputs\n")


@maker
def python_forks(folder: Path) -> Path:
    return _python(folder, "import os\nclass Model: pass\nos.fork()\nos._exit(7)\n")
