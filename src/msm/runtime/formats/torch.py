"""PyTorch networks: `torch.export` programs (.pt2), TorchScript, and pickled modules.

All three need `trusted: true`. A pickled module is Python code. A TorchScript file is a program whose operators reach
files and memory, and PyTorch itself advises to treat one like any executable. The reader of .pt2 files evaluates the
expressions of their dimensions and unpickles constants, so its content can run code, too.

Signature of a .pt2 file: its own; a dimension exported as dynamic may vary, within the range it was exported with.
Else the declared one, else the version's parameter `signature` or a `signature.json` beside the model in the folder
(both as in a version), else none: whatever comes is taken. Inputs go to `forward` by the names of its arguments, or in
their order when the names are others. Outputs: the keys of a dict, the fields of a named tuple, else `output-0`,
`output-1`, ...; declared names apply in order. BF16 results are given as FP32.

One thread of computation, no gradients.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

from msm.kit.errors import InvalidInput, LoadFailed, MsmError
from msm.runtime.formats import torch_file
from msm.runtime.formats.base import (
    Array,
    LoadOptions,
    files,
    first_line,
    loose_files,
    missing_library,
    need_trust,
    parameter,
    single,
)
from msm.runtime.signature import Datatype, Signature, Tensor

_DATATYPES: Final[dict[str, Datatype]] = {
    "bool": "BOOL", "uint8": "UINT8", "uint16": "UINT16", "uint32": "UINT32", "uint64": "UINT64", "int8": "INT8",
    "int16": "INT16", "int32": "INT32", "int64": "INT64", "float16": "FP16", "float32": "FP32", "float64": "FP64",
    "bfloat16": "BF16",
}  # fmt: skip
_WHAT: Final = {
    "script": "a TorchScript program",
    "export": "a torch.export program",
    "pickle": "a pickled PyTorch module",
}

Call = Callable[[dict[str, Any]], Any]


class TorchModel:
    """A network: `call` takes tensors by input name, in the signature's order, and gives what `forward` gives."""

    accepts: frozenset[str] = frozenset()
    may_block = False

    def __init__(self, call: Call, signature: Signature, *, exact_outputs: bool, limits: Limits | None = None) -> None:
        self.signature = signature
        self.exact_outputs = exact_outputs
        self._call = call
        self._limits = limits
        self._bf16 = {tensor.name for tensor in signature.inputs if tensor.datatype == "BF16"}
        self._names = [tensor.name for tensor in signature.outputs]

    def predict(self, inputs: dict[str, Array]) -> Mapping[str, Any]:
        """Run the network."""
        import torch

        if self._limits is not None:
            self._limits.check(inputs)
        with torch.inference_mode():
            tensors = {name: _tensor(name, array, name in self._bf16) for name, array in inputs.items()}
            return self._named(self._call(tensors))

    def _named(self, result: Any) -> dict[str, Array]:
        found = {name: _array(value) for name, value in _leaves(result)}
        if not self._names or found.keys() == set(self._names):
            return found
        return dict(zip(self._names, found.values(), strict=False)) if len(found) == len(self._names) else found


class Limits:
    """The ranges and equalities of the dynamic dimensions of an exported program.

    `dimensions`: input → for each dimension the name of its symbol or None; `ranges`: symbol → smallest and largest.
    """

    def __init__(self, dimensions: Mapping[str, Sequence[str | None]], ranges: Mapping[str, tuple[int, int]]) -> None:
        self._dimensions = dimensions
        self._ranges = ranges

    def check(self, inputs: Mapping[str, Array]) -> None:
        """Raises InvalidInput when a dimension is out of its range or differs from one that must be equal."""
        seen: dict[str, int] = {}
        for name, symbols in self._dimensions.items():
            for axis, symbol in enumerate(symbols):
                if symbol is None:
                    continue
                size = inputs[name].shape[axis]
                low, high = self._ranges.get(symbol, (0, size))
                if not low <= size <= high:
                    raise InvalidInput(
                        f"dimension {axis} of input {name!r} must be from {low} to {high}, got {size}",
                        reason="shape_mismatch",
                    )
                if seen.setdefault(symbol, size) != size:
                    raise InvalidInput(
                        f"dimension {axis} of input {name!r} must be {seen[symbol]} as in the inputs before it, "
                        f"got {size}",
                        reason="shape_mismatch",
                    )


class TorchFormat:
    """Archives of PyTorch."""

    name = "torch"
    libraries: tuple[str, ...] = ("torch",)

    def sniff(self, path: Path) -> bool:
        return any(torch_file.kind(file) is not None for file in loose_files(path))

    def load(self, path: Path, options: LoadOptions) -> TorchModel:
        file = single(path, self.name, [found for found in files(path) if torch_file.kind(found) is not None])
        kind = torch_file.kind(file)
        need_trust(options, _WHAT[str(kind)])
        try:
            import torch
        except ImportError as error:
            raise missing_library(self.name, "torch", error) from error
        torch.set_num_threads(1)
        try:
            if kind == "export":
                return _exported(torch.export.load(file), options.signature)
            network = torch.jit.load(file, "cpu") if kind == "script" else torch.load(file, "cpu", weights_only=False)
        except (MsmError, MemoryError, ImportError):
            raise
        except Exception as error:
            raise LoadFailed(
                f"the PyTorch file could not be read: {first_line(error)}", reason="corrupt_artifact"
            ) from error
        if not isinstance(network, torch.nn.Module):
            raise LoadFailed(
                f"the file holds {type(network).__name__}, which is no network: store it by torch.export.save",
                reason="not_a_model",
            )
        network.eval()
        signature = _given(path, options)
        return TorchModel(_caller(network, _arguments(network)), signature, exact_outputs=bool(signature.outputs))


def _given(path: Path, options: LoadOptions) -> Signature:
    """The signature that somebody wrote, or an empty one."""
    if options.signature is not None:
        return options.signature
    given = parameter(options, "signature", dict, None)
    beside = path / "signature.json"
    try:
        if given is not None:
            return msgspec.convert(given, Signature)
        if path.is_dir() and beside.is_file():
            return msgspec.json.decode(beside.read_bytes(), type=Signature)
    except msgspec.DecodeError as error:
        problem = str(error).replace("`", "'")
        raise LoadFailed(f"the signature given with the model is wrong: {problem}", reason="bad_signature") from error
    return Signature()


def _arguments(network: Any) -> list[str]:
    """The names of the arguments of `forward`."""
    schema = getattr(network.forward, "schema", None)
    if schema is not None:
        return [argument.name for argument in schema.arguments[1:]]
    code = getattr(type(network).forward, "__code__", None)
    return list(code.co_varnames[1 : code.co_argcount]) if code is not None else []


def _caller(network: Any, names: Sequence[str]) -> Call:
    known = set(names)

    def call(tensors: dict[str, Any]) -> Any:
        if tensors.keys() <= known:
            return network(**tensors)
        return network(*tensors.values())

    return call


def _exported(program: Any, declared: Signature | None) -> TorchModel:
    """The model of an exported program, with its own signature; the names may be those of a declared one."""
    from torch.utils import _pytree as pytree

    values = {node.name: node.meta.get("val") for node in program.graph.nodes}
    inputs = tuple(_described(name, values[name]) for name in program.graph_signature.user_inputs)
    order = [tensor.name for tensor in inputs]
    leaves = [_graph_value(values, output) for output in program.graph_signature.user_outputs]
    outputs = tuple(
        _described(name, value) for name, value in _leaves(pytree.tree_unflatten(leaves, program.call_spec.out_spec))
    )
    found = Signature(inputs, tuple(_as_given(tensor) for tensor in outputs))
    signature = _agreed(declared, found)
    spec = program.call_spec.in_spec
    module = program.module()

    def call(tensors: dict[str, Any]) -> Any:
        positional, named = pytree.tree_unflatten(list(tensors.values()), spec)
        return module(*positional, **named)

    ours = [tensor.name for tensor in signature.inputs]
    dimensions = {
        name: [None if isinstance(size, int) else str(size) for size in values[theirs].shape]
        for name, theirs in zip(ours, order, strict=True)
    }
    ranges = {
        str(symbol): (_bound(r.lower, 0), _bound(r.upper, 2**63)) for symbol, r in program.range_constraints.items()
    }
    return TorchModel(call, signature, exact_outputs=True, limits=Limits(dimensions, ranges))


def _graph_value(values: Mapping[str, Any], output: Any) -> Any:
    return values.get(output, output) if isinstance(output, str) else output


def _described(name: str, value: Any) -> Tensor:
    """The tensor that a value in the graph stands for. Raises LoadFailed when it is none."""
    datatype = _DATATYPES.get(str(getattr(value, "dtype", None)).removeprefix("torch."))
    if datatype is None:
        raise LoadFailed(
            f"{name!r} of the exported program is {str(getattr(value, 'dtype', value))[:50]}, which is no tensor of "
            "the protocol",
            reason="unsupported_type",
        )
    return Tensor(name, datatype, tuple(size if isinstance(size, int) else -1 for size in value.shape))


def _as_given(tensor: Tensor) -> Tensor:
    return Tensor(tensor.name, "FP32", tensor.shape) if tensor.datatype == "BF16" else tensor


def _bound(value: Any, unbounded: int) -> int:
    """A bound of a range as a number."""
    try:
        return int(value)
    except (TypeError, ValueError, OverflowError, AttributeError):  # each kind of infinity has its own
        return unbounded


def _agreed(declared: Signature | None, found: Signature) -> Signature:
    """The declared tensors, which may have names of their own, if they fit those of the program, in its order."""
    if declared is None:
        return found
    for what, ours, theirs in (("inputs", declared.inputs, found.inputs), ("outputs", declared.outputs, found.outputs)):
        if ours and [(t.datatype, len(t.shape)) for t in ours] != [(t.datatype, len(t.shape)) for t in theirs]:
            raise LoadFailed(
                f"the signature declares other {what} than the program has: "
                + ", ".join(f"{t.name} {t.datatype} {list(t.shape)}" for t in theirs),
                reason="signature_mismatch",
            )
    return Signature(declared.inputs or found.inputs, declared.outputs or found.outputs)


def _leaves(result: Any) -> list[tuple[str, Any]]:
    """The outputs by name. Raises LoadFailed for a structure that has none."""
    if isinstance(result, Mapping):
        return [(str(name), value) for name, value in result.items()]
    if isinstance(result, tuple) and hasattr(result, "_fields"):
        return list(zip(result._fields, result, strict=True))
    if isinstance(result, tuple | list):
        return [(f"output-{index}", value) for index, value in enumerate(result)]
    return [("output-0", result)]


def _tensor(name: str, array: Array, bf16: bool) -> Any:
    import torch

    if array.dtype == object:
        raise InvalidInput(f"input {name!r} is BYTES, which a PyTorch network cannot take", reason="datatype_mismatch")
    # The bytes of a request are not ours to write to, and a network may.
    tensor = torch.from_numpy(array if array.flags.writeable else array.copy())
    return tensor.view(torch.bfloat16) if bf16 else tensor


def _array(value: Any) -> Any:
    import torch

    if not isinstance(value, torch.Tensor):
        return value
    if value.dtype is torch.bfloat16:
        value = value.float()
    return value.detach().cpu().numpy()
