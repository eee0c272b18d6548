"""Commands that change what is declared: apply, delete, rollback."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from msm.cli.common import DataDir, Form, KindAndName, Namespace, connect, object_key
from msm.cli.output import Output, dump, mood, say, show, table
from msm.kit.errors import InvalidInput

if TYPE_CHECKING:
    from msm.resources.serving import Resource
    from msm.resources.wire import ApplyReport, ChangeReport

SUFFIXES = (".yaml", ".yml", ".json")


def apply(
    file: Annotated[
        list[str],
        typer.Option("--file", "-f", metavar="FILE|DIR|-", help="Manifests, or - for standard input; repeatable."),
    ],
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what would change and what the node would do.")
    ] = False,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Wait until all versions are valid.")] = False,
    timeout: Annotated[float, typer.Option(help="Seconds to wait at most.")] = 600.0,
    data_dir: DataDir = None,
    output: Form = Output.TABLE,
) -> None:
    """Declare the resources of manifests.

    It is one transaction: either all of them are accepted or none.
    """
    resources = read_manifests(file)
    with connect(data_dir) as client:
        report = client.apply(resources, dry_run=dry_run)
        if output is not Output.TABLE:
            dump(report, output)
        else:
            _show(report)
        if wait and not dry_run:
            from msm.cli.progress import wait_for
            from msm.resources.serving import Model

            for resource in resources:
                if not isinstance(resource, Model):
                    continue
                names = [version.name for version in resource.spec.versions]
                wait_for(client, resource.key, names, timeout_s=timeout)


def read_manifests(names: list[str]) -> list[Resource]:
    """The resources of files, of the manifests in folders, and of standard input. Raises InvalidInput with every
    fault of every file."""
    from msm.resources.manifest import load

    found: list[Resource] = []
    problems: list[tuple[str, str]] = []
    for source, text in [pair for name in names for pair in _texts(name)]:
        try:
            found += [item.resource for item in load(text, source=source)]
        except InvalidInput as error:
            problems += error.problems or [("$", f"{source}: {error.message}")]
    if problems:
        path, first = problems[0]
        raise InvalidInput(f"{first} [{path}]", problems=problems)
    return found


def _texts(name: str) -> list[tuple[str, bytes]]:
    if name == "-":
        return [("standard input", sys.stdin.buffer.read())]
    path = Path(name)
    if not path.is_dir():
        return [(name, path.read_bytes())]
    files = sorted(each for each in path.iterdir() if each.suffix in SUFFIXES and each.is_file())
    if not files:
        raise InvalidInput(f"there is no manifest ({', '.join(SUFFIXES)}) in the folder {name}")
    return [(str(each), each.read_bytes()) for each in files]


def delete(
    target: KindAndName,
    namespace: Namespace = "default",
    data_dir: DataDir = None,
    output: Form = Output.TABLE,
) -> None:
    """Delete a model with all its versions, or a runtime that no model names.

    The history stays: `msm rollback` brings it back.
    """
    with connect(data_dir) as client:
        _tell(client.delete(object_key(target, namespace)), output)


def rollback(
    target: KindAndName,
    to: Annotated[
        int | None, typer.Option(help="The generation to go back to.  [default: the last that differs]")
    ] = None,
    namespace: Namespace = "default",
    data_dir: DataDir = None,
    output: Form = Output.TABLE,
) -> None:
    """Make an earlier declaration of a model the newest. Nothing is lost: this too is a new generation."""
    with connect(data_dir) as client:
        _tell(client.rollback(object_key(target, namespace), to=to), output)


def _tell(change: ChangeReport, output: Output) -> None:
    if output is not Output.TABLE:
        dump(change, output)
    else:
        say(f"{change.key} {change.action}, generation {change.generation}")


def _show(report: ApplyReport) -> None:
    rows = [(change.key, mood(change.action), change.generation) for change in report.changes]
    show(table(["OBJECT", "WOULD BE" if report.dry_run else "ACTION", ">GENERATION"], rows))
    if report.plan:
        say()
        show(table(["ABOUT", "WHAT THE NODE WOULD DO"], [(reason.about, reason.message) for reason in report.plan]))
