"""`msm infer`: a real request through the gateway, as any client would send it."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from msm.cli.common import DataDir, Failed, Form, Namespace, model_key
from msm.cli.output import Output, dump, note, say
from msm.cli.text import duration
from msm.kit import errors

if TYPE_CHECKING:
    from msm.cli.tensors import Body
    from msm.client import InferReply
    from msm.resources.serving import Model, Signature

SHOWN_VALUES = 32


def infer(  # noqa: PLR0913 - the parameters are the options
    name: Annotated[str, typer.Argument(metavar="NAME", help="The model's name.")],
    json_text: Annotated[
        str | None,
        typer.Option("--json", metavar="TEXT|@FILE|@-", help="Rows, inputs by name, or a whole request body."),
    ] = None,
    csv: Annotated[str | None, typer.Option(metavar="FILE|-", help="A table; a head may name the inputs.")] = None,
    file: Annotated[Path | None, typer.Option(metavar="PATH", help="A file whose bytes are the one input.")] = None,
    version: Annotated[str | None, typer.Option(help="A version or an alias.  [default: by the traffic]")] = None,
    header: Annotated[
        list[str] | None,
        typer.Option("--header", "-H", metavar="KEY=VALUE", help="A header of the request; repeatable."),
    ] = None,
    namespace: Namespace = "default",
    timeout: Annotated[float, typer.Option(help="Seconds to wait at most.")] = 300.0,
    data_dir: DataDir = None,
    output: Form = Output.TABLE,
) -> None:
    """Ask a model through the gateway.

    Prints what it answers and which version and worker answered.

    Rows are enough where the model's inputs are known: --json '[[5.1, 3.5, 1.4, 0.2]]'. A whole body of the Open
    Inference Protocol, an object with "inputs", is sent as it is.
    """
    from msm.cli.deploy import pairs
    from msm.client import Connection, MeshClient
    from msm.resources.serving import service_name
    from msm.settings import data_dir as resolved

    key = model_key([name], namespace)
    headers = pairs(header or [], "--header")
    with MeshClient(Connection.discover(resolved(data_dir)), timeout_s=timeout) as client:
        model = client.model(key)
        body = _body(json_text, csv, file, signature_for(model, version))
        begun = time.monotonic()
        reply = client.infer(service_name(key), body.content, version=version, headers={**body.headers, **headers})
        taken = time.monotonic() - begun
    if reply.status >= 400:
        raise reply_error(reply)
    _show(reply, taken, output)


def _body(json_text: str | None, csv: str | None, file: Path | None, signature: Signature | None) -> Body:
    from msm.cli import tensors

    if sum(given is not None for given in (json_text, csv, file)) != 1:
        raise typer.BadParameter("give one of --json, --csv, --file")
    if json_text is not None:
        return tensors.from_json(_text(json_text[1:]) if json_text.startswith("@") else json_text, signature)
    if csv is not None:
        return tensors.from_csv(_text(csv), signature)
    assert file is not None, "one of the three is given"
    return tensors.from_bytes(file.read_bytes(), signature)


def _text(name: str) -> str:
    raw = sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise errors.InvalidInput(f"{'standard input' if name == '-' else name} is not UTF-8 text") from error


def signature_for(model: Model, wanted: str | None) -> Signature | None:
    """The inputs and outputs of the version that will be asked: the named one, or that with most of the traffic."""
    from msm.planning.routing import effective_split, resolve_version

    if wanted is None:
        name = max(effective_split(model).split, key=lambda entry: entry.weight).version
    else:
        name = (resolve_version(model, wanted) or ("",))[0]
    version = model.version(name)
    if version is None:
        known = ", ".join([*(other.name for other in model.spec.versions), *model.spec.aliases])
        raise errors.NotFound(f"{model.key} has no version or alias '{wanted}'; it has {known}")
    status = (model.status.versions if model.status else {}).get(name)
    return (status.signature if status else None) or version.signature


def reply_error(reply: InferReply) -> errors.MsmError:
    """The error that a refused inference stands for, with the sentence of the mesh or of the model."""
    import msgspec

    try:
        told = msgspec.json.decode(reply.body, type=dict[str, Any]).get("error")
    except msgspec.DecodeError:
        told = None
    sentence = told if isinstance(told, str) and told else f"the gateway answered with status {reply.status}"
    kinds: dict[int, type[errors.MsmError]] = {
        400: errors.InvalidInput,
        401: errors.Unauthenticated,
        403: errors.Forbidden,
        404: errors.NotFound,
        409: errors.Conflict,
        413: errors.InputTooLarge,
        429: errors.Overloaded,
        503: errors.Unavailable,
        504: errors.DeadlineExceeded,
    }
    return kinds.get(reply.status, Failed)(sentence)


def _show(reply: InferReply, taken: float, output: Output) -> None:
    import msgspec

    try:
        answer = msgspec.json.decode(reply.body, type=dict[str, Any])
    except msgspec.DecodeError as error:
        raise Failed(f"the model answered with {len(reply.body)} bytes that are not JSON") from error
    who = f"{reply.headers.get('x-msm-model', '?')} {reply.headers.get('x-msm-version', '?')}"
    answered = f"answered by {who} in worker {reply.headers.get('x-msm-worker', '?')} after {duration(taken)}"
    if output is not Output.TABLE:
        dump(answer, output)
        note(answered)
        return
    for tensor in answer.get("outputs", []):
        data = tensor.get("data", [])
        shown = msgspec.json.encode(data[:SHOWN_VALUES]).decode()
        more = f" … {len(data) - SHOWN_VALUES} more" if len(data) > SHOWN_VALUES else ""
        say(f"{tensor.get('name')} {tensor.get('datatype')} {tensor.get('shape')}: {shown}{more}")
    say(answered)
