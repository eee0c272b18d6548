"""What a model format is to the worker, and what a loaded model must offer."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, Protocol, TypeVar, runtime_checkable

import numpy as np
import numpy.typing as npt

from msm.kit.errors import Forbidden, InvalidInput, LoadFailed, Unsupported
from msm.runtime.protocols.call import told
from msm.runtime.protocols.tensors import DTYPES
from msm.runtime.signature import Signature

Array = npt.NDArray[Any]
NUMERIC: Final = frozenset(
    {"BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64", "FP16", "FP32", "FP64"}
)
_FOLDERS: Final = re.compile(r"(?<![\w.:/])/(?:[\w.@+~-]+/)+")
_INSIDE: Final = re.compile(r"\bmsm_model_\d+\b|\b0x[0-9a-f]{8,}\b")
MAX_FILES: Final = 10_000


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """How to load: whether code in the artifact may run, the version's parameters, and the declared signature."""

    trusted: bool = False
    parameters: Mapping[str, Any] = field(default_factory=dict)
    signature: Signature | None = None


class LoadedModel(Protocol):
    """A model in memory. `predict` may be called by one thread at a time for each unit of allowed concurrency."""

    @property
    def signature(self) -> Signature:
        """The tensors it takes and gives."""
        ...

    @property
    def accepts(self) -> frozenset[str]:
        """Datatypes that may come in place of the declared ones, since the model converts them itself anyway."""
        ...

    @property
    def exact_outputs(self) -> bool:
        """Whether the shapes of outputs in the signature bind the model; else they are hints."""
        ...

    @property
    def may_block(self) -> bool:
        """Whether a call may take arbitrarily long: then it never runs on the event loop, however fast it was."""
        ...

    def predict(self, inputs: dict[str, Array]) -> Mapping[str, Any]:
        """The outputs by name. Any exception fails the request (or the batch, whose requests are then run alone)."""
        ...


Task = Literal["generate", "completion", "chat", "embed"]
TASKS: Final[tuple[Task, ...]] = ("generate", "completion", "chat", "embed")
Cancelled = Callable[[], bool]
T = TypeVar("T")
Steps = Iterator[T] | AsyncIterator[T]
"""What a generating call gives, step by step. An iterator is run in a thread of its own, each stream in one; an
asynchronous one runs on the event loop and must not block it. Both are closed when nobody waits for more."""


class GeneratingModel(LoadedModel, Protocol):
    """A model whose answer to one request is a sequence: `tasks` has "generate"."""

    @property
    def tasks(self) -> frozenset[str]:
        """What it offers beyond `predict`: of "generate", "completion", "chat", "embed"."""
        ...

    def generate(self, inputs: dict[str, Array], cancelled: Cancelled) -> Steps[Mapping[str, Any]]:
        """The outputs of each step by name, each as the signature says. One request a call, never a batch.

        `cancelled` turns true when the client has gone or the time is over; a long step may look at it and return.
        """
        ...


@dataclass(frozen=True, slots=True)
class TextOptions:
    """How a text is to be continued. None leaves the choice to the model.

    The worker itself ends a text at a `stop` sequence and after `max_tokens` steps; a model need not, but saves work.
    `cancelled` is that of `GeneratingModel.generate`.
    """

    cancelled: Cancelled
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    stop: tuple[str, ...] = ()
    seed: int | None = None


Message = Mapping[str, str]
"""One message of a chat: "role" and "content"."""


class CompletingModel(LoadedModel, Protocol):
    """A model that continues a text: `tasks` has "completion".

    It may offer `count_tokens(text) -> int`; otherwise each piece counts as one token, and a prompt as none.
    """

    @property
    def tasks(self) -> frozenset[str]:
        """What it offers beyond `predict`."""
        ...

    def complete(self, prompt: str, options: TextOptions) -> Steps[str]:
        """The text that follows `prompt`, in pieces of one token each, without the prompt."""
        ...


class ChattingModel(LoadedModel, Protocol):
    """A model that answers in a conversation: `tasks` has "chat"."""

    @property
    def tasks(self) -> frozenset[str]:
        """What it offers beyond `predict`."""
        ...

    def chat(self, messages: Sequence[Message], options: TextOptions) -> Steps[str]:
        """The next message of the assistant, in pieces of one token each."""
        ...


# A model with "embed" in its `tasks` is run by `predict`, with the input EMBED_INPUT BYTES [-1] and the output
# EMBED_OUTPUT FP32 [-1, d]: so embeddings are batched like any other request, and offered by every protocol.
EMBED_INPUT: Final = "text"
EMBED_OUTPUT: Final = "embedding"


def tasks_of(model: LoadedModel) -> frozenset[str]:
    """What a model offers beyond `predict`; most models nothing."""
    found: frozenset[str] = getattr(model, "tasks", frozenset())
    return found


class Format(Protocol):
    """One way of storing models. The class must be cheap to import: libraries are imported by `load`.

    `libraries` are the modules that `load` imports; a worker imports them beforehand when it is going to need them.
    """

    name: str
    libraries: tuple[str, ...]

    def sniff(self, path: Path) -> bool:
        """Whether the artifact is of this format, judged by its content. Never runs code of the artifact."""
        ...

    def load(self, path: Path, options: LoadOptions) -> LoadedModel:
        """The model in memory. Raises LoadFailed, Forbidden (needs trust), Unsupported (library missing)."""
        ...


@runtime_checkable
class Prepared(Protocol):
    """A format whose first load would pay for more than the import of its libraries."""

    def prepare(self) -> None:
        """Pay for it now, without any artifact and without leaving a thread behind."""
        ...


def files(path: Path) -> Iterator[Path]:
    """The files of an artifact at its top level: itself, or what the directory holds, in order, without hidden ones."""
    if path.is_file():
        yield path
    elif path.is_dir():
        entries = sorted(entry for entry in path.iterdir() if not entry.name.startswith("."))
        yield from (entry for entry in entries[:MAX_FILES] if entry.is_file())


def loose_files(path: Path) -> Iterator[Path]:
    """The files by whose content an artifact may be recognised: none for a folder that says itself what it is.

    A folder of MLflow, of a transformer or with a class `Model` holds files that alone would be of another format.
    """
    if not path.is_dir() or not (is_mlflow(path) or is_transformer(path) or is_python(path)):
        yield from files(path)


def is_mlflow(path: Path) -> bool:
    """Whether a folder is one that MLflow wrote."""
    file = path / "MLmodel"
    return file.is_file() and b"flavors:" in file.read_bytes()


def is_transformer(path: Path) -> bool:
    """Whether a folder holds a transformer with its weights, as the Hugging Face libraries store it."""
    return "architectures" in read_json(path / "config.json") and any(
        file.name.startswith(("model", "pytorch_model")) and file.name.endswith((".safetensors", ".bin"))
        for file in files(path)
    )


def is_python(path: Path) -> bool:
    """Whether a folder holds `model.py` with a class `Model`."""
    file = path / "model.py"
    return file.is_file() and re.search(rb"^class Model\b", file.read_bytes(), re.MULTILINE) is not None


def read_json(file: Path) -> dict[str, Any]:
    """The object in a JSON file; empty when there is none."""
    try:
        found = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def head(path: Path, size: int = 4096) -> bytes:
    """The first bytes of a file."""
    with path.open("rb") as file:
        return file.read(size)


def single(path: Path, format_name: str, candidates: list[Path]) -> Path:
    """The one file of an artifact that is of a format. Raises LoadFailed when there is none or a choice."""
    if not candidates:
        raise LoadFailed(f"the artifact holds no {format_name} model", reason="wrong_format")
    if len(candidates) > 1:
        names = ", ".join(candidate.name for candidate in candidates[:5])
        raise LoadFailed(
            f"the artifact holds {len(candidates)} {format_name} models ({names}), there must be one",
            reason="ambiguous_artifact",
        )
    return candidates[0]


def need_trust(options: LoadOptions, what: str) -> None:
    """Raises Forbidden unless the version is trusted to run code."""
    if not options.trusted:
        raise Forbidden(
            f"{what} can run any code when it is loaded: declare the version with trusted: true to allow that",
            reason="unsafe_format",
        )


def missing_library(format_name: str, extra: str, error: ImportError) -> Unsupported:
    """The error for a format whose library is not installed here."""
    problem = Unsupported(
        f"format {format_name} needs {error.name or 'a library'}: install model-service-mesh[{extra}]",
        reason="format_not_installed",
    )
    problem.__cause__ = error
    return problem


def parameter(options: LoadOptions, name: str, kind: type, default: Any) -> Any:
    """A parameter of the version. Raises InvalidInput when it is of another type."""
    value = options.parameters.get(name, default)
    if value is not None and type(value) is not kind:
        raise InvalidInput(
            f"parameter {name!r} must be of type {kind.__name__}, got {str(value)[:50]!r}", reason="invalid_parameter"
        )
    return value


def zeros(signature: Signature) -> dict[str, Array]:
    """The smallest input of a signature: one row of zeros, or empty text."""
    inputs: dict[str, Array] = {}
    for tensor in signature.inputs:
        array = np.zeros(tensor.example_shape(), DTYPES[tensor.datatype])
        if tensor.datatype == "BYTES":
            array.fill(b"")
        inputs[tensor.name] = array
    return inputs


def first_line(error: BaseException) -> str:
    """Type and first line of a foreign exception: what a person may be told of it.

    Of paths only the end is told; addresses in memory and the names under which models are imported are left out.
    """
    lines = str(error).strip().splitlines()
    if not lines:
        return type(error).__name__
    line = _INSIDE.sub("model", _FOLDERS.sub("", lines[0][:1000]))
    return f"{type(error).__name__}: {told(line[:200])}"
