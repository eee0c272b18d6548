"""Any Python class: a file, or a folder with `model.py`, that has a class `Model`.

    class Model:
        signature = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 4]}], "outputs": [...]}   # optional
        def load(self, path): ...            # optional; `path` is the folder (or the file) of the artifact
        def predict(self, inputs): ...       # dict of arrays by name → dict of arrays by name

Or, besides `predict` or in place of it, a model that generates; each method is a generator, plain or asynchronous:

        def generate(self, inputs): ...              # yields dicts of arrays, one for each step

        tasks = ["completion", "chat", "embed"]      # what of the following it offers; without it, what it has
        def complete(self, prompt, options): ...     # yields pieces of text (`formats.base.TextOptions`)
        def chat(self, messages, options): ...       # yields pieces of text
        chat_template = "..."                        # instead of `chat`: how `complete` is asked; see `templates`
        def count_tokens(self, text): ...            # optional, for the usage that is told
        # "embed": `predict` with the input text BYTES [-1] and the output embedding FP32 [-1, d]

`generate` may take `cancelled` as a second argument: a function that turns true when nobody waits any more.

It runs code, so the version must be trusted. The file is imported under a name of its own, so that models do not meet;
files beside it are reached by relative imports (`from . import features`). Without a signature the model takes
whatever is sent, one request at a time.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import inspect
import itertools
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import msgspec

from msm.kit.errors import Internal, LoadFailed, MsmError, Unsupported
from msm.runtime.formats.base import (
    EMBED_INPUT,
    EMBED_OUTPUT,
    TASKS,
    Array,
    Cancelled,
    LoadOptions,
    Message,
    Steps,
    TextOptions,
    first_line,
    need_trust,
)
from msm.runtime.formats.templates import ChatTemplate
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
        template = getattr(model, "chat_template", None)
        self._template = None if template is None else ChatTemplate(template)
        self.tasks = _tasks(model, signature)
        self._told = "generate" in self.tasks and _takes_cancelled(model.generate)

    def predict(self, inputs: dict[str, Array]) -> Mapping[str, Any]:
        """Call the user's `predict`."""
        if not hasattr(self._model, "predict"):
            raise Unsupported(
                f"the model has no predict: it offers {', '.join(sorted(self.tasks))}", reason="no_predict"
            )
        result: Mapping[str, Any] = self._model.predict(inputs)
        return result

    def generate(self, inputs: dict[str, Array], cancelled: Cancelled) -> Steps[Mapping[str, Any]]:
        """Call the user's `generate`."""
        found = self._model.generate(inputs, cancelled) if self._told else self._model.generate(inputs)
        return _steps(found, "generate")

    def complete(self, prompt: str, options: TextOptions) -> Steps[str]:
        """Call the user's `complete`."""
        return _steps(self._model.complete(prompt, options), "complete")

    def chat(self, messages: Sequence[Message], options: TextOptions) -> Steps[str]:
        """Call the user's `chat`, or `complete` with what the template makes of the messages."""
        if hasattr(self._model, "chat"):
            return _steps(self._model.chat(list(messages), options), "chat")
        assert self._template is not None
        return self.complete(self._template.render(messages), options)

    def count_tokens(self, text: str) -> int | None:
        """What the user's `count_tokens` says, None when there is none."""
        count = getattr(self._model, "count_tokens", None)
        return None if count is None else int(count(text))

    def __del__(self) -> None:
        for name in [name for name in sys.modules if name == self._module or name.startswith(self._module + ".")]:
            del sys.modules[name]


def _steps(found: Any, method: str) -> Steps[Any]:
    if hasattr(found, "__anext__"):
        return found  # type: ignore[no-any-return]
    if hasattr(found, "__aiter__"):
        return found.__aiter__()  # type: ignore[no-any-return]
    if inspect.isawaitable(found) or isinstance(found, str | bytes | Mapping) or not hasattr(found, "__iter__"):
        if inspect.iscoroutine(found):
            found.close()
        raise Internal(
            f"{method} of the model gave {type(found).__name__}, it must be a generator", reason="model_output_invalid"
        )
    steps: Steps[Any] = iter(found)
    return steps


def _takes_cancelled(method: Any) -> bool:
    try:
        inspect.signature(method).bind({}, None)
    except TypeError:
        return False
    return True


def _tasks(model: Any, signature: Signature) -> frozenset[str]:
    """What the user's object offers. Raises LoadFailed when it says more than it has."""
    completes = callable(getattr(model, "complete", None))
    has = {
        "generate": callable(getattr(model, "generate", None)),
        "completion": completes,
        "chat": callable(getattr(model, "chat", None)) or (completes and hasattr(model, "chat_template")),
        "embed": _embeds(signature) and callable(getattr(model, "predict", None)),
    }
    declared = getattr(model, "tasks", None)
    if declared is None:  # by its shape alone a predicting model is not taken for one that embeds
        return frozenset(task for task, there in has.items() if there and task != "embed")
    if isinstance(declared, str) or not all(task in TASKS for task in declared):
        raise LoadFailed(
            f"tasks of class Model must be a list of {', '.join(TASKS)}, got {str(declared)[:100]!r}",
            reason="not_a_model",
        )
    needs = {
        "generate": "a method generate",
        "completion": "a method complete",
        "chat": "a method chat, or a method complete and a chat_template",
        "embed": f"predict with the input {EMBED_INPUT!r} BYTES [-1] and the output {EMBED_OUTPUT!r} FP32 [-1, d]",
    }
    for task in declared:
        if not has[task]:
            raise LoadFailed(f"class Model offers {task!r}, which needs {needs[task]}", reason="not_a_model")
    return frozenset(declared) | ({"generate"} if has["generate"] else frozenset())


def _embeds(signature: Signature) -> bool:
    inputs = [(tensor.name, tensor.datatype, tensor.shape) for tensor in signature.inputs if not tensor.optional]
    outputs = [tensor for tensor in signature.outputs if tensor.name == EMBED_OUTPUT]
    return (
        inputs == [(EMBED_INPUT, "BYTES", (-1,))]
        and len(outputs) == 1
        and outputs[0].datatype == "FP32"
        and len(outputs[0].shape) == 2
    )


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
            return PythonModel(model, options.signature or signature, module)
        except (MsmError, MemoryError):
            raise
        except BaseException as error:
            raise LoadFailed(f"the Python model could not be loaded: it raised {first_line(error)}") from error


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
    if not any(callable(getattr(model, method, None)) for method in ("predict", "generate", "complete", "chat")):
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
