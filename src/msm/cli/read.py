"""Commands that look at what is declared and what became of it: get, describe, explain, history, diff."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from msm.cli.common import DataDir, Form, KindAndName, Namespace, connect, kind_of, model_key, object_key
from msm.cli.output import Output, dump, dump_line, say, show, table
from msm.cli.text import one_line
from msm.kit.errors import InvalidInput, NotFound

if TYPE_CHECKING:
    from msm.client import MeshClient
    from msm.resources.meta import ObjectKey
    from msm.resources.serving import Model


def get(
    target: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KIND] [NAME]",
            help="models (as without), versions, runtimes, workers, copies or node; a model's name.",
        ),
    ] = None,
    namespace: Annotated[
        str | None, typer.Option("--namespace", "-n", help="Only this namespace.  [default: all]")
    ] = None,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Go on with every change of models.")] = False,
    data_dir: DataDir = None,
    output: Form = Output.TABLE,
) -> None:
    """List models, versions, runtimes, workers or copies."""
    words = list(target or [])
    kind = kind_of(words[0]) if words and len(words[0].split("/")) == 1 else None
    rest = words[1:] if kind else words
    if watch and kind not in (None, "model"):
        raise InvalidInput(f"only models can be watched, not {kind}")
    with connect(data_dir) as client:
        if kind in (None, "model"):
            _get_models(client, rest, namespace, output, watch=watch)
        elif kind == "runtime":
            _get_runtimes(client, rest, namespace, output)
        elif kind == "version":
            _get_versions(client, rest, namespace, output)
        else:
            _get_of_node(client, kind or "node", rest, output)


def _get_models(
    client: MeshClient, words: Sequence[str], namespace: str | None, output: Output, *, watch: bool
) -> None:
    from msm.cli.tables import MODEL_COLUMNS, model_row
    from msm.resources.manifest import plain

    revision = None
    if words:
        models = [client.model(model_key(words, namespace or "default"))]
    else:
        listed = client.models(namespace)
        models, revision = list(listed.items), listed.revision
    if output is Output.TABLE:
        show(table(MODEL_COLUMNS, [model_row(model) for model in models]))
    elif watch:
        for model in models:
            dump_line(plain(model))
    else:
        found: Any = [plain(model) for model in models]
        dump(found[0] if words else found, output)
    if watch:
        wanted = {model.key for model in models} if words else None
        _watch(client, None if revision is None else revision + 1, wanted, namespace, output)


def _watch(
    client: MeshClient, first: int | None, wanted: set[Any] | None, namespace: str | None, output: Output
) -> None:
    from msm.cli.tables import model_row
    from msm.resources.manifest import plain

    for item in client.watch(first):
        if (wanted is not None and item.key not in wanted) or namespace not in (None, item.namespace):
            continue
        if output is not Output.TABLE:
            dump_line({"deleted": str(item.key)} if item.model is None else plain(item.model))
        elif item.model is None:
            say(f"{item.key} deleted")
        else:
            say("  ".join(one_line(str(cell)) for cell in model_row(item.model)))


def _get_versions(client: MeshClient, words: Sequence[str], namespace: str | None, output: Output) -> None:
    from msm.cli.tables import VERSION_COLUMNS, version_rows
    from msm.resources.manifest import plain

    models = [client.model(model_key(words, namespace or "default"))] if words else list(client.models(namespace).items)
    if output is Output.TABLE:
        copies = client.node().copies
        show(table(VERSION_COLUMNS, [row for model in models for row in version_rows(model, copies)]))
    else:
        dump([_version(model, version) for model in models for version in plain(model)["spec"]["versions"]], output)


def _get_runtimes(client: MeshClient, words: Sequence[str], namespace: str | None, output: Output) -> None:
    from msm.cli.tables import RUNTIME_COLUMNS, runtime_row
    from msm.resources.manifest import plain

    if words:
        runtimes = [client.runtime(object_key(["runtime", *words], namespace or "default"))]
    else:
        runtimes = list(client.runtimes(namespace).items)
    if output is Output.TABLE:
        workers = client.node().workers
        show(table(RUNTIME_COLUMNS, [runtime_row(runtime, workers) for runtime in runtimes]))
    else:
        found: Any = [plain(runtime) for runtime in runtimes]
        dump(found[0] if words else found, output)


def _describe_runtime(client: MeshClient, key: ObjectKey, output: Output) -> None:
    from msm.cli.tables import EVENT_COLUMNS, WORKER_COLUMNS, event_row, runtime_rows, worker_row
    from msm.resources.manifest import plain

    runtime = client.runtime(key)
    workers = [worker for worker in client.node().workers if worker.runtime == f"{key.namespace}/{key.name}"]
    events = client.events(str(key), limit=10)
    if output is not Output.TABLE:
        dump({**plain(runtime), "workers": workers, "events": events}, output)
        return
    show(table(["RUNTIME", key.name], runtime_rows(runtime)))
    for columns, rows in ((WORKER_COLUMNS, map(worker_row, workers)), (EVENT_COLUMNS, map(event_row, events))):
        if found := list(rows):
            say()
            show(table(columns, found))


def _version(model: Model, version: dict[str, Any]) -> dict[str, Any]:
    from msm.resources.meta import to_plain

    status = (model.status.versions if model.status else {}).get(version["name"])
    identity = {"namespace": model.metadata.namespace, "model": model.metadata.name}
    return {**identity, **version, "status": to_plain(status) if status else {"phase": "Pending"}}


def _get_of_node(client: MeshClient, kind: str, words: Sequence[str], output: Output) -> None:
    from msm.cli.tables import COPY_COLUMNS, WORKER_COLUMNS, copy_row, node_rows, worker_row

    status = client.node()
    if kind == "node":
        if output is Output.TABLE:
            show(table(["NODE", status.name], node_rows(status)))
        else:
            dump(status, output)
        return
    workers, copies = list(status.workers), list(status.copies)
    if words:
        workers = [worker for worker in workers if worker.id == words[0]]
        copies = [copy for copy in copies if words[0] in (copy.worker, *copy.version.split("/"))]
        if kind == "worker" and not workers:
            known = ", ".join(worker.id for worker in status.workers)
            raise NotFound(f"there is no worker '{words[0]}'; there are {known}")
    if output is not Output.TABLE:
        dump(workers if kind == "worker" else copies, output)
    elif kind == "worker":
        show(table(WORKER_COLUMNS, [worker_row(worker) for worker in workers]))
    else:
        show(table(COPY_COLUMNS, [copy_row(copy) for copy in copies]))


def describe(
    target: KindAndName,
    namespace: Namespace = "default",
    data_dir: DataDir = None,
    output: Form = Output.TABLE,
) -> None:
    """Tell everything about a model or a runtime.

    That is what is declared, versions, traffic, copies and the latest events.
    """
    from msm.cli.tables import (
        ACCELERATION_COLUMNS,
        COPY_COLUMNS,
        EVENT_COLUMNS,
        VERSION_COLUMNS,
        acceleration_rows,
        copy_row,
        describe_rows,
        event_row,
        version_rows,
    )
    from msm.resources.manifest import plain

    with connect(data_dir) as client:
        key = object_key(target, namespace)
        if key.kind != "Model":
            _describe_runtime(client, key, output)
            return
        model = client.model(key)
        prefix = f"{key.namespace}/{key.name}/"
        copies = [copy for copy in client.node().copies if copy.version.startswith(prefix)]
        events = client.events(str(key), limit=10)
    if output is not Output.TABLE:
        dump({**plain(model), "copies": copies, "events": events}, output)
        return
    show(table(["MODEL", key.name], describe_rows(model)))
    say()
    show(table(VERSION_COLUMNS, version_rows(model, copies)))
    for version, status in (model.status.versions if model.status else {}).items():
        if status.message:
            say(f"{version}: {status.message}")
    accelerated = acceleration_rows(model)
    if accelerated:
        say()
        show(table(ACCELERATION_COLUMNS, accelerated))
    if copies:
        say()
        show(table(COPY_COLUMNS, [copy_row(copy) for copy in copies]))
    for copy in copies:
        if copy.execution:
            say(f"{copy.version.removeprefix(prefix)} in {copy.worker} runs {copy.execution}")
    if events:
        say()
        show(table(EVENT_COLUMNS, [event_row(event) for event in events]))


def explain(
    target: KindAndName,
    namespace: Namespace = "default",
    data_dir: DataDir = None,
    output: Form = Output.TABLE,
) -> None:
    """Tell why a model is as it is.

    That is what was decided about it, and what was rejected and why.
    """
    with connect(data_dir) as client:
        explanation = client.explain(model_key(target, namespace))
    if output is not Output.TABLE:
        dump(explanation, output)
        return
    say(f"{explanation.subject}: {explanation.state}")
    for title, reasons in (("decided", explanation.reasons), ("rejected", explanation.rejected)):
        if reasons:
            say(f"\n{title}")
        for reason in reasons:
            numbers = ", ".join(f"{name} {value}" for name, value in reason.data.items())
            say(f"  {reason.about}: {reason.message}" + (f" ({numbers})" if numbers else ""))


def history(
    target: KindAndName,
    namespace: Namespace = "default",
    data_dir: DataDir = None,
    output: Form = Output.TABLE,
) -> None:
    """List the generations of a model.

    Each is an accepted change; those of a deleted model are kept.
    """
    with connect(data_dir) as client:
        entries = client.history(model_key(target, namespace))
    if output is not Output.TABLE:
        dump(entries, output)
        return
    rows = []
    for entry in entries:
        action = entry.action.replace("_", " ") + (f" to {entry.restored}" if entry.restored else "")
        rows.append((entry.generation, _local(entry.at), action, entry.who))
    show(table([">GENERATION", "AT", "ACTION", "BY"], rows))


def diff(
    target: KindAndName,
    first: Annotated[int | None, typer.Option("--from", help="Generation.  [default: the one before --to]")] = None,
    last: Annotated[int | None, typer.Option("--to", help="Generation.  [default: the newest]")] = None,
    namespace: Namespace = "default",
    data_dir: DataDir = None,
) -> None:
    """Compare two generations of a model."""
    key = model_key(target, namespace)
    with connect(data_dir) as client:
        declared = [entry.generation for entry in client.history(key) if entry.action != "deleted"]
        newest = declared[-1] if last is None else last
        before = max((number for number in declared if number < newest), default=None) if first is None else first
        old = [] if before is None else _lines(client.at_generation(key, before))
        new = _lines(client.at_generation(key, newest))
    _show_diff(difflib.unified_diff(old, new, f"generation {before or 0}", f"generation {newest}", lineterm=""))


def _lines(model: Model) -> list[str]:
    """What a person declared, without what the mesh adds to it."""
    from msm.resources.manifest import dump_plain_yaml, plain

    manifest = plain(model)
    kept = {"labels", "annotations", "name", "namespace"}
    metadata = {name: value for name, value in manifest["metadata"].items() if name in kept}
    return dump_plain_yaml({"metadata": metadata, "spec": manifest["spec"]}).splitlines()


def _show_diff(lines: Any) -> None:
    from rich.text import Text

    styles = {"+": "green", "-": "red", "@": "cyan"}
    for line in lines:
        bold = line.startswith(("+++", "---"))
        show(Text(one_line_kept(line), style="bold" if bold else styles.get(line[:1], "")))


def one_line_kept(line: str) -> str:
    """The line without terminal control, its indentation kept."""
    from msm.cli.text import clean

    return clean(line).replace("\n", " ")


def _local(at: float) -> str:
    return datetime.fromtimestamp(at).astimezone().strftime("%Y-%m-%d %H:%M:%S")
