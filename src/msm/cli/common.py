"""What commands share: options, how objects are named, the exit codes, and the way from an error to one of them."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from msm.cli.output import Output, note
from msm.cli.text import clean
from msm.kit import errors

if TYPE_CHECKING:
    from msm.client import MeshClient
    from msm.resources.meta import ObjectKey

DataDir = Annotated[
    str | None,
    typer.Option("--data-dir", metavar="DIR", help="The mesh's data directory.  [default: $MSM_HOME or ~/.msm]"),
]
Namespace = Annotated[str, typer.Option("--namespace", "-n", help="The model's namespace.")]
Form = Annotated[Output, typer.Option("--output", "-o", help="How to print.")]
KindAndName = Annotated[
    list[str], typer.Argument(metavar="[KIND] NAME", help="A model's name, after its kind or alone.")
]

USAGE = 2
INTERRUPTED = 130
BROKEN_PIPE = 141  # what a shell reports for a program that a closed pipe ended
EXIT_CODES: tuple[tuple[type[errors.MsmError], int], ...] = (
    (errors.NotFound, 3),
    (errors.Conflict, 4),
    (errors.Unauthenticated, 5),
    (errors.Forbidden, 5),
    (errors.Unavailable, 6),
    (errors.Overloaded, 6),
    (errors.DeadlineExceeded, 6),
)


class Failed(errors.MsmError):
    """The command did what it was asked and the outcome is a failure."""

    reason = "failed"


def exit_code(error: errors.MsmError) -> int:
    """0 is success, 1 a failure, 2 wrong usage, 3 not found, 4 conflict, 5 not allowed, 6 not available now."""
    if isinstance(error, errors.LoadFailed):
        return 1
    return next((code for kind, code in EXIT_CODES if isinstance(error, kind)), 1)


def tell(error: errors.MsmError) -> None:
    """The error on standard error: a sentence, or one for each fault."""
    problems = error.problems if isinstance(error, errors.InvalidInput) else ()
    if len(problems) < 2:
        note(f"error: {error.message}")
        return
    note(f"error: {len(problems)} faults")
    for path, sentence in problems:
        note(f"  {sentence} [{path}]")


class Group(TyperGroup):
    """Ends every command with an exit code and a sentence, never with a traceback."""

    def invoke(self, ctx: Any) -> Any:
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()
        except errors.MsmError as error:
            tell(error)
            raise typer.Exit(exit_code(error)) from error
        except BrokenPipeError as error:
            _forget_stdout()
            raise typer.Exit(BROKEN_PIPE) from error
        except KeyboardInterrupt as error:
            raise typer.Exit(INTERRUPTED) from error
        except OSError as error:
            note(f"error: {error.strerror or type(error).__name__}{_of_file(error)}")
            raise typer.Exit(1) from error
        return result


def _of_file(error: OSError) -> str:
    return f": {clean(str(error.filename))}" if error.filename else ""


def _forget_stdout() -> None:
    """Send what is still buffered nowhere, or the interpreter complains at its end."""
    devnull = os.open(os.devnull, os.O_WRONLY)
    os.dup2(devnull, sys.stdout.fileno())


def connect(data_dir: str | None) -> MeshClient:
    """A client of the mesh that the command is about. Raises Unavailable when none runs."""
    from msm.client import MeshClient
    from msm.settings import data_dir as resolved

    return MeshClient.of(resolved(data_dir))


def object_key(words: Sequence[str], namespace: str) -> ObjectKey:
    """As `model_key`, and the runtime that "runtime mlserver" or "runtime/mlserver" names."""
    parts = [part for word in words for part in word.split("/")]
    if len(parts) > 1 and kind_of(parts[0]) == "runtime":
        from msm.resources.meta import ObjectKey

        if len(parts) != 2:
            raise errors.InvalidInput(f"'{' '.join(words)}' does not name a runtime; write: runtime NAME")
        return ObjectKey("ServingRuntime", namespace, parts[1])
    return model_key(words, namespace)


def model_key(words: Sequence[str], namespace: str) -> ObjectKey:
    """The model that "iris", "model iris", "model/iris" or "team/iris" names. Raises InvalidInput for anything else."""
    from msm.resources.meta import ObjectKey

    parts = [part for word in words for part in word.split("/")]
    if len(parts) > 1 and kind_of(parts[0]) == "model":
        parts = parts[1:]
    match parts:
        case [name]:
            return ObjectKey("Model", namespace, name)
        case [space, name] if len(words) == 1:
            return ObjectKey("Model", space, name)
        case _:
            raise errors.InvalidInput(f"'{' '.join(words)}' does not name a model; write its name, or: model NAME")


KINDS = {
    "model": "model", "models": "model", "version": "version", "versions": "version", "worker": "worker",
    "workers": "worker", "copy": "copy", "copies": "copy", "node": "node", "nodes": "node",
    "runtime": "runtime", "runtimes": "runtime", "servingruntime": "runtime", "servingruntimes": "runtime",
}  # fmt: skip


def kind_of(word: str) -> str | None:
    """The kind that a word names, in singular."""
    return KINDS.get(word.lower())
