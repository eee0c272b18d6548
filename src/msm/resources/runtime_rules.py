"""What the types cannot say about a `ServingRuntime`: a command that can work, and no shell between us and it."""

from __future__ import annotations

import re
from collections.abc import Iterator

from msm.resources.meta import NAME_RULE, is_name
from msm.resources.runtimes import PLACEHOLDER, PLACEHOLDERS, ServingRuntime, ServingRuntimeSpec
from msm.resources.text import child, has_control, shown

Problem = tuple[str, str]

MAX_ARGUMENTS = 200
MAX_ARGUMENT = 4096
MAX_FORMATS = 64
MAX_ENV = 100
_SHELLS = frozenset(
    {"sh", "bash", "dash", "zsh", "ksh", "csh", "tcsh", "fish", "ash", "busybox", "env", "xargs", "sudo"}
)
_ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")
_LOADER = ("LD_", "PYTHONSTARTUP")
_LIBRARIES = "LD_LIBRARY_PATH"


def runtime_problems(runtime: ServingRuntime) -> Iterator[Problem]:
    """Each rule that `runtime` breaks by itself."""
    spec = runtime.spec
    yield from _command(spec)
    yield from _env(spec)
    yield from _placeholders(spec)
    yield from _formats(spec)
    if spec.multi_model is not None and spec.multi_model == spec.one_process_per_model:
        told = "one process for each model" if spec.one_process_per_model else "many models in one server"
        yield (
            "$.spec.multiModel",
            f"{str(spec.multi_model).lower()} contradicts the adapter {spec.adapter}, which runs {told}",
        )
    if spec.protocol == "openai" and not spec.one_process_per_model:
        yield (
            "$.spec.protocol",
            f"openai needs the adapter process, not {spec.adapter}: that protocol cannot load models",
        )
    if spec.readiness is not None and not re.fullmatch(r"/[!-~]{0,255}", spec.readiness):
        yield "$.spec.readiness", f"{shown(spec.readiness)} is not a path that begins with '/'"


def _command(spec: ServingRuntimeSpec) -> Iterator[Problem]:
    path = "$.spec.command"
    if not 1 <= len(spec.command) <= MAX_ARGUMENTS:
        yield path, f"{len(spec.command)} arguments are given; 1 to {MAX_ARGUMENTS} are needed"
        return
    for index, argument in enumerate(spec.command):
        if len(argument) > MAX_ARGUMENT or "\0" in argument or (has_control(argument) and "\n" not in argument):
            yield (
                f"{path}[{index}]",
                f"an argument has at most {MAX_ARGUMENT} characters, none of them control characters",
            )
    program = spec.command[0]
    if not program.startswith("/") or ".." in program.split("/") or "{" in program:
        yield f"{path}[0]", f"the program {shown(program)} is not an absolute path; it is not searched for"
    elif program.rstrip("/").rsplit("/", 1)[-1] in _SHELLS:
        yield (
            f"{path}[0]",
            f"the program {shown(program)} runs other programs; name the server itself and its arguments",
        )


def _env(spec: ServingRuntimeSpec) -> Iterator[Problem]:
    if len(spec.env) > MAX_ENV:
        yield "$.spec.env", f"{len(spec.env)} variables are given; at most {MAX_ENV} are allowed"
        return
    for name, value in spec.env.items():
        path = child("$.spec.env", name)
        if not _ENV_NAME.fullmatch(name):
            yield path, f"{shown(name)} is not the name of a variable"
        elif name.startswith(_LOADER) and name != _LIBRARIES:
            yield path, f"the variable {shown(name)} puts other code into the server; it is not allowed"
        if len(value) > MAX_ARGUMENT or "\0" in value:
            yield path, f"the value has at most {MAX_ARGUMENT} characters, no NUL"


def _placeholders(spec: ServingRuntimeSpec) -> Iterator[Problem]:
    texts = [*((f"$.spec.command[{i}]", text) for i, text in enumerate(spec.command))]
    texts += [(child("$.spec.env", name), text) for name, text in spec.env.items()]
    used: set[str] = set()
    for path, text in texts:
        for name in PLACEHOLDER.findall(text):
            used.add(name)
            if name not in PLACEHOLDERS:
                yield path, f"the placeholder {{{name}}} is unknown; known are {', '.join(PLACEHOLDERS)}"
    wanted: tuple[str, ...] = ("http_port", "model_dir" if spec.one_process_per_model else "repository")
    other = {"repository"} if spec.one_process_per_model else {"model_dir", "name"}
    if spec.one_process_per_model and spec.protocol == "oip":
        wanted = (*wanted, "name")  # the address of a model holds its name
    for name in wanted:
        if name not in used:
            yield (
                "$.spec.command",
                f"neither the command nor env holds {{{name}}}, which the adapter {spec.adapter} needs",
            )
    for name in sorted(other & used):
        yield "$.spec.command", f"the adapter {spec.adapter} has no value for {{{name}}}"


def _formats(spec: ServingRuntimeSpec) -> Iterator[Problem]:
    if not 1 <= len(spec.formats) <= MAX_FORMATS:
        yield "$.spec.formats", f"{len(spec.formats)} formats are given; 1 to {MAX_FORMATS} are needed"
        return
    for index, name in enumerate(spec.formats):
        if not is_name(name):
            yield f"$.spec.formats[{index}]", f"the format {shown(name)} is not allowed: {NAME_RULE}"
        elif name in spec.formats[:index]:
            yield f"$.spec.formats[{index}]", f"the format {shown(name)} is given twice; once is enough"
