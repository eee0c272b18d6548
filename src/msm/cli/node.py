"""Starting and ending the mesh of a data directory."""

from __future__ import annotations

from typing import Annotated

import typer

from msm.cli.common import DataDir
from msm.cli.output import note, say

Text = str | None


def up(
    data_dir: DataDir = None,
    host: Annotated[Text, typer.Option(help="Address to listen on.  [default: 127.0.0.1]")] = None,
    gateway_port: Annotated[Text, typer.Option(help="Port for inference, 0 for any.  [default: 8080]")] = None,
    api_port: Annotated[Text, typer.Option(help="Port for the API, 0 for any.  [default: 8081]")] = None,
    workers: Annotated[Text, typer.Option(help="Model processes.  [default: one a core]")] = None,
    capacity: Annotated[
        Text, typer.Option(metavar="SIZE", help="Memory for models, such as 4GiB.  [default: 70 % of the machine's]")
    ] = None,
) -> None:
    """Run a node of the mesh until it is interrupted.

    What was declared in the data directory before is there again. Every option has an environment variable: MSM_HOME,
    MSM_HOST, MSM_GATEWAY_PORT, MSM_API_PORT, MSM_WORKERS, MSM_CAPACITY.
    """
    from msm.settings import load_settings
    from msm.wiring import run_node

    flags = {
        "data_dir": data_dir,
        "host": host,
        "gateway_port": gateway_port,
        "api_port": api_port,
        "workers": workers,
        "capacity_bytes": capacity,
    }
    if code := run_node(load_settings(flags)):
        raise typer.Exit(code)


def down(data_dir: DataDir = None) -> None:
    """End the mesh of a data directory.

    The node is stopped, and what a killed node left behind. Models, history and artifacts stay; `msm up` brings
    everything back.
    """
    from msm.settings import data_dir as resolved
    from msm.wiring import stop_leftovers

    ended = stop_leftovers(resolved(data_dir))
    for name in ended:
        say(f"ended {name}")
    if not ended:
        note("nothing was running")


def token(
    data_dir: DataDir = None,
    show: Annotated[bool, typer.Option("--show", help="Print the token itself.")] = False,
) -> None:
    """Print where the admin token is kept, or the token."""
    from msm.kit.errors import NotFound
    from msm.resources.wire import TOKEN_FILE
    from msm.settings import data_dir as resolved

    path = resolved(data_dir) / TOKEN_FILE
    if not path.exists():
        raise NotFound(f"there is no token in {path.parent} yet: the first start writes it; start with: msm up")
    say(path.read_text("ascii").strip() if show else str(path))
