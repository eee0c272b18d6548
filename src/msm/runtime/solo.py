"""A model in a process of its own: for code that holds the interpreter so long that its neighbours would suffer.

The worker talks to it over a socket pair, one call at a time: a head (names, datatypes, shapes, sizes) and the tensors'
bytes in the form of the Open Inference Protocol. The process has the environment of the worker
and dies with it. When it dies by itself only the
call that it worked on fails, and the next one starts it anew.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from socket import socketpair
from typing import Any, Final

import msgspec

from msm.kit.errors import Internal, MsmError, Unavailable
from msm.runtime import formats, logs, memory
from msm.runtime.formats.base import Array, LoadedModel, LoadOptions, first_line
from msm.runtime.protocols.tensors import read_binary, wire_array, write_binary
from msm.runtime.signature import Signature
from msm.runtime.validate import check_outputs

_PR_SET_PDEATHSIG: Final = 1


class SoloSpec(msgspec.Struct, frozen=True, kw_only=True):
    """What the process loads."""

    path: str
    format: str
    trusted: bool = False
    parameters: dict[str, Any] = {}
    signature: Signature | None = None


class _Tensor(msgspec.Struct, frozen=True):
    name: str
    datatype: str
    shape: tuple[int, ...]


class _Failed(msgspec.Struct, frozen=True):
    error: str
    reason: str


class SoloModel:
    """A `LoadedModel` whose calls go to a process of its own. `original` tells its signature and what it accepts."""

    may_block = True

    def __init__(self, spec: SoloSpec, original: LoadedModel) -> None:
        self.signature = original.signature
        self.accepts = original.accepts
        self.exact_outputs = original.exact_outputs
        self._spec = msgspec.json.encode(spec).decode()
        self._calls = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._wire: Connection | None = None

    @property
    def pid(self) -> int | None:
        """The process, None before the first call and after its end."""
        return None if self._process is None else self._process.pid

    def start(self) -> None:
        """Start the process and wait until it holds the model. Blocks. Raises Unavailable when it cannot be had."""
        ours, theirs = socketpair()
        with theirs:
            command = [sys.executable, "-m", "msm.runtime.solo", str(theirs.fileno())]
            self._process = subprocess.Popen(command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL)
        self._wire = Connection(ours.detach())
        try:
            self._wire.send_bytes(self._spec.encode())
            answer = self._wire.recv_bytes()
        except (EOFError, OSError) as error:
            raise Unavailable(f"the process of the model {self._end()} while it loaded", reason="not_loaded") from error
        if answer:
            failed = msgspec.json.decode(answer, type=_Failed)
            self._end()
            raise Unavailable(f"the model could not be loaded again: {failed.error}", reason="not_loaded")

    def predict(self, inputs: dict[str, Array]) -> Mapping[str, Any]:
        """Predict there. Raises Internal when the model raises, or its process dies."""
        with self._calls:
            if self._wire is None:
                self.start()
            wire = self._wire
            assert wire is not None
            try:
                _send(wire, {name: wire_array(name, array) for name, array in inputs.items()})
                return _receive(wire)
            except (EOFError, OSError) as error:
                raise Internal(f"the process of the model {self._end()}", reason="model_error") from error

    def abort(self) -> None:
        """Kill the process: a call that is stuck in it fails at once. From any thread."""
        process = self._process
        if process is not None:
            process.kill()

    def __del__(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._end()

    def _end(self) -> str:
        """Take the end of the process; says how it ended."""
        process, wire = self._process, self._wire
        self._process = self._wire = None
        if wire is not None:
            wire.close()
        if process is None:
            return "is gone"
        code = process.wait()
        return f"ended by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"


def _send(wire: Connection, tensors: Mapping[str, tuple[str, Array]]) -> None:
    head = [_Tensor(name, datatype, array.shape) for name, (datatype, array) in tensors.items()]
    wire.send_bytes(msgspec.json.encode(head))
    for _, array in tensors.values():
        wire.send_bytes(write_binary(array))


def _receive(wire: Connection) -> dict[str, Array]:
    head = wire.recv_bytes()
    if head.startswith(b"{"):
        failed = msgspec.json.decode(head, type=_Failed)
        raise Internal(failed.error, reason=failed.reason)
    tensors = msgspec.json.decode(head, type=list[_Tensor])
    return {t.name: read_binary(t.name, t.datatype, t.shape, wire.recv_bytes()) for t in tensors}


def serve(wire: Connection) -> None:
    """What the process does: load, then answer calls until the worker hangs up."""
    spec = msgspec.json.decode(wire.recv_bytes(), type=SoloSpec)
    try:
        options = LoadOptions(spec.trusted, spec.parameters, spec.signature)
        model = formats.load(Path(spec.path), spec.format, options).model
    except MsmError as error:
        wire.send_bytes(msgspec.json.encode(_Failed(error.message, error.reason)))
        return
    wire.send_bytes(b"")
    with contextlib.suppress(EOFError):
        while True:
            _answer(wire, model, _receive(wire))


def _answer(wire: Connection, model: LoadedModel, inputs: dict[str, Array]) -> None:
    try:
        outputs = check_outputs(model.signature, model.predict(inputs), exact=model.exact_outputs)
    except MsmError as error:
        wire.send_bytes(msgspec.json.encode(_Failed(error.message, error.reason)))
    except BaseException as error:
        wire.send_bytes(msgspec.json.encode(_Failed(f"the model raised {first_line(error)}", "model_error")))
    else:
        _send(wire, outputs)


def main(arguments: list[str]) -> None:
    """Run on the socket that was inherited, until the worker hangs up or dies."""
    parser = argparse.ArgumentParser("python -m msm.runtime.solo", description="Holds one model for a worker.")
    parser.add_argument("socket", type=int, help="number of the inherited socket")
    options = parser.parse_args(arguments)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    for number in (signal.SIGINT, signal.SIGHUP):  # the terminal's signals are for the node
        signal.signal(number, signal.SIG_IGN)
    memory.limit_arenas()
    logs.set_up(f"solo-{os.getpid()}")
    serve(Connection(options.socket))


if __name__ == "__main__":
    main(sys.argv[1:])
