"""Commands that show what happens: events, logs, top."""

from __future__ import annotations

import queue
import re
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from msm.cli.common import DataDir, Form, Namespace, connect, model_key
from msm.cli.output import Output, console, dump, dump_line, say, show, table
from msm.cli.text import one_line, size
from msm.kit.errors import InvalidInput, MsmError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from msm.observe.events import Event
    from msm.resources.observed import CopyStatus, NodeStatus

_SPAN = re.compile(r"([0-9]{1,9})([smhd])")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
TOP_COPIES = 20


def events(
    subject: Annotated[
        str | None, typer.Argument(help="Only about this object, such as model/iris or worker/w0.")
    ] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with events as they come.")] = False,
    since: Annotated[
        str | None, typer.Option(metavar="SPAN", help="Only of the last SPAN, such as 30m, 2h, 1d.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="At most so many of the past.")] = 50,
    data_dir: DataDir = None,
    output: Form = Output.TABLE,
) -> None:
    """Show what the mesh decided and saw."""
    from msm.cli.tables import EVENT_COLUMNS, event_row

    about = subject or ""
    after = None if since is None else time.time() - span(since)
    with connect(data_dir) as client:
        if follow:
            for event in client.follow_events(about, since=after, limit=limit):
                _tell(event, output)
            return
        past = client.events(about, since=after, limit=limit)
    if output is Output.TABLE:
        show(table(EVENT_COLUMNS, [event_row(event) for event in past]))
    else:
        dump(past, output)


def _tell(event: Event, output: Output) -> None:
    from msm.cli.tables import event_row

    if output is Output.TABLE:
        say("  ".join(one_line(str(cell)) for cell in event_row(event)))
        sys.stdout.flush()
    else:
        dump_line(event)


def span(text: str) -> float:
    """Seconds of "90s", "30m", "2h", "1d". Raises InvalidInput."""
    found = _SPAN.fullmatch(text)
    if found is None:
        raise InvalidInput(f"'{text}' is not a span of time; write a number and s, m, h or d")
    return int(found[1]) * _SECONDS[found[2]]


def logs(
    target: Annotated[
        str | None, typer.Argument(metavar="[WORKER|MODEL]", help="A worker, or a model.  [default: all]")
    ] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with lines as they come.")] = False,
    lines: Annotated[int, typer.Option("--lines", min=0, max=10_000, help="Lines of the past, of each worker.")] = 100,
    namespace: Namespace = "default",
    data_dir: DataDir = None,
) -> None:
    """Show the logs of workers.

    Of a model these are the lines that name it.
    """
    with connect(data_dir) as client:
        workers = [worker.id for worker in client.node().workers]
        model = ""
        if target in workers:
            workers = [target]
        elif target is not None:
            key = client.model(model_key([target], namespace)).key
            model = f"{key.namespace}/{key.name}/"
        if not follow:
            for worker in workers:
                _print_log(worker, client.logs(worker, lines=lines, model=model).splitlines(), len(workers) > 1)
            return
    for worker, line in _followed(data_dir, workers, lines, model):
        _print_log(worker, [line], len(workers) > 1)
        sys.stdout.flush()


def _print_log(worker: str, lines: Sequence[str], several: bool) -> None:
    for line in lines:
        say(f"{worker}  {line}" if several else line)


def _followed(data_dir: str | None, workers: Sequence[str], lines: int, model: str) -> Iterator[tuple[str, str]]:
    """Lines of all workers as they come. The readers are daemon threads, which end with the command."""
    arrived: queue.Queue[tuple[str, str] | MsmError] = queue.Queue(maxsize=1000)

    def read(worker: str) -> None:
        try:
            with connect(data_dir) as client:
                for line in client.follow_logs(worker, lines=lines, model=model):
                    arrived.put((worker, line))
        except MsmError as error:
            arrived.put(error)

    for worker in workers:
        threading.Thread(target=read, args=(worker,), name=f"log of {worker}", daemon=True).start()
    while True:
        item = arrived.get()
        if isinstance(item, MsmError):
            raise item
        yield item


def top(
    once: Annotated[bool, typer.Option("--once", help="Print once; so it is without a terminal too.")] = False,
    interval: Annotated[float, typer.Option(min=0.2, help="Seconds between two looks.")] = 1.0,
    data_dir: DataDir = None,
    output: Form = Output.TABLE,
) -> None:
    """Show workers and the busiest copies, live."""
    with connect(data_dir) as client:
        status = client.node()
        if output is not Output.TABLE:
            dump(status, output)
        elif once or not sys.stdout.isatty():
            show(_screen(status, {}))
        else:
            from rich.live import Live

            with Live(_screen(status, {}), console=console(), screen=True, auto_refresh=False) as live:
                while True:
                    before, looked = _requests(status.copies), time.monotonic()
                    time.sleep(interval)
                    status = client.node()
                    rates = _rates(before, _requests(status.copies), time.monotonic() - looked)
                    live.update(_screen(status, rates), refresh=True)


def _requests(copies: Sequence[CopyStatus]) -> dict[tuple[str, str], int]:
    return {(copy.version, copy.worker): copy.requests for copy in copies}


def _rates(
    before: dict[tuple[str, str], int], now: dict[tuple[str, str], int], seconds: float
) -> dict[tuple[str, str], float]:
    return {place: max(0, count - before.get(place, count)) / seconds for place, count in now.items()}


def _screen(status: NodeStatus, rates: dict[tuple[str, str], float]) -> RenderableType:
    from rich.console import Group
    from rich.text import Text

    from msm.cli.tables import WORKER_COLUMNS, copy_row, worker_row

    def busy(copy: CopyStatus) -> tuple[float, int]:
        return rates.get((copy.version, copy.worker), 0.0), copy.requests

    busiest = sorted(status.copies, key=busy, reverse=True)[:TOP_COPIES]
    rows = [(*copy_row(copy)[:5], f"{busy(copy)[0]:.1f}", *copy_row(copy)[5:8]) for copy in busiest]
    columns = ["VERSION", "WORKER", "STATE", ">IN FLIGHT", ">REQUESTS", ">PER SECOND", ">FAILURES", ">MEMORY", ">IDLE"]
    head = (
        f"{status.name}: {size(status.used_bytes)} of {size(status.capacity_bytes)} used, "
        f"{len(status.copies)} copies, {status.queued} loads waiting"
    )
    workers = table(WORKER_COLUMNS, [worker_row(worker) for worker in status.workers])
    return Group(Text(one_line(head)), Text(), workers, Text(), table(columns, rows))
