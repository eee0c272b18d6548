"""`msm deploy`: from an artifact to a version that answers."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from msm.cli.common import DataDir, Form, Namespace, connect, model_key
from msm.cli.output import Output, dump, note, say
from msm.cli.text import duration, size
from msm.kit.errors import Conflict, InvalidInput, NotFound

if TYPE_CHECKING:
    from msm.cli.deploying import Wanted
    from msm.client import MeshClient
    from msm.resources.serving import Model, Signature

ATTEMPTS = 5


class Accelerate(StrEnum):
    """The values of a version's `accelerate`."""

    AUTO = "auto"
    OFF = "off"


def deploy(  # noqa: PLR0913 - the parameters are the options
    name: Annotated[str, typer.Argument(metavar="NAME", help="The model's name.")],
    artifact: Annotated[
        str, typer.Argument(metavar="PATH_OR_URI", help="A file, a folder, or file, http(s), s3 address.")
    ],
    version: Annotated[str | None, typer.Option(help="The version's name.  [default: the next vN]")] = None,
    model_format: Annotated[
        str | None, typer.Option("--format", help="The artifact's format.  [default: found by looking at it]")
    ] = None,
    namespace: Namespace = "default",
    trusted: Annotated[
        bool, typer.Option("--trusted", help="Allow formats that run code while loading: pickle, joblib, Python.")
    ] = False,
    alias: Annotated[str | None, typer.Option(help="Let this alias name the version.")] = None,
    accelerate: Annotated[
        Accelerate,
        typer.Option(help="Whether to serve the version converted to ONNX, if it is found to answer alike and faster."),
    ] = Accelerate.OFF,
    label: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="A label of the model; repeatable.")
    ] = None,
    param: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="A parameter of the version, JSON or text; repeatable."),
    ] = None,
    least: Annotated[int | None, typer.Option("--min", help="Copies that are always loaded.")] = None,
    most: Annotated[int | None, typer.Option("--max", help="Copies at most.")] = None,
    traffic: Annotated[
        bool, typer.Option("--traffic/--no-traffic", help="Whether requests go to the version once it is valid.")
    ] = True,
    wait: Annotated[
        bool, typer.Option("--wait/--no-wait", help="Wait until the version is valid or has failed.")
    ] = True,
    timeout: Annotated[float, typer.Option(help="Seconds to wait at most.")] = 600.0,
    data_dir: DataDir = None,
    output: Form = Output.TABLE,
) -> None:
    """Deploy an artifact as a version of a model.

    The model is made when it is not there. Requests go to the new version once it has proved that it loads: a
    declared split gives it everything; without one the alias `stable` is moved to it, if there is one; else the
    newest version has the traffic anyway. With --no-traffic the versions that have the traffic keep it, and the new
    one is reached by its name or alias.
    """
    from msm.cli.deploying import Wanted

    key = model_key([name], namespace)
    wanted = Wanted(
        key=key,
        uri=artifact_uri(artifact),
        version=version,
        format=model_format,
        trusted=trusted,
        accelerate=accelerate.value,
        parameters={name: _json_or_text(value) for name, value in pairs(param or [], "--param").items()},
        labels=pairs(label or [], "--label"),
        alias=alias,
        least=least,
        most=most,
        traffic=traffic,
    )
    with connect(data_dir) as client:
        declared = _declare(client, wanted)
        if wait:
            from msm.cli.progress import wait_for

            wait_for(client, key, [declared], timeout_s=timeout)
        model = client.model(key)
    if output is not Output.TABLE:
        from msm.resources.manifest import plain

        dump(plain(model), output)
        return
    _report(model, declared)


def _declare(client: MeshClient, wanted: Wanted) -> str:
    """Write the model as it shall be; read again and try again when somebody else was faster."""
    from msm.cli.deploying import deployed

    for attempt in range(ATTEMPTS):
        try:
            present = client.model(wanted.key)
        except NotFound:
            present = None
        model, name = deployed(present, wanted)
        try:
            client.apply([model])
        except Conflict as conflict:
            if conflict.reason == "version_immutable" or attempt == ATTEMPTS - 1:
                raise
            continue
        return name
    raise AssertionError("the last attempt returns or raises")


def artifact_uri(artifact: str) -> str:
    """The address of an artifact: addresses as they are, paths as absolute file addresses. Raises InvalidInput for a
    path where there is nothing."""
    if "://" in artifact:
        return artifact
    path = Path(artifact).expanduser()
    if not path.exists():
        raise InvalidInput(f"there is no file or folder '{artifact}'")
    return path.resolve().as_uri()


def pairs(given: list[str], option: str) -> dict[str, str]:
    """KEY=VALUE texts as a mapping. Raises InvalidInput naming the option."""
    found = {}
    for text in given:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise InvalidInput(f"{option} '{text}' is not of the form KEY=VALUE")
        found[key] = value
    return found


def _json_or_text(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _report(model: Model, version: str) -> None:
    from msm.resources.serving import VersionStatus, service_name

    status = (model.status.versions if model.status else {}).get(version) or VersionStatus(phase="Pending")
    service = service_name(model.key)
    say(f"{service} {version} is {status.phase.lower()}")
    for label, text in (
        ("format", status.format),
        ("inputs", _tensors(status.signature, "inputs")),
        ("outputs", _tensors(status.signature, "outputs")),
        ("digest", status.digest),
        ("size", size(status.size_bytes)),
        ("memory", size(status.memory_bytes)),
        ("loads in", duration(status.load_seconds)),
        ("converted", status.acceleration.reason if status.acceleration else None),
    ):
        if text:
            say(f"  {label:<9} {text}")
    split = model.status.traffic if model.status else ()
    if split:
        say(f"  {'traffic':<9} {', '.join(f'{entry.version} {entry.weight} %' for entry in split)}")
    if status.phase == "Valid":
        note(f"ask it with: msm infer {service} --json '…'")


def _tensors(signature: Signature | None, side: str) -> str:
    tensors = getattr(signature, side) if signature else ()
    return ", ".join(f"{t.name} {t.datatype} {list(t.shape)}" for t in tensors)
