"""The entry point: `msm COMMAND`. The commands' modules import what they need when they run, so that help is quick."""

from __future__ import annotations

from typing import Annotated

import typer

from msm import __version__
from msm.cli import declare, deploy, diagnose, infer, node, read, watching
from msm.cli.common import Group

app = typer.Typer(
    name="msm",
    cls=Group,
    help="Run many machine-learning models as services: deploy, place, route, release and heal them.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit codes: 0 success, 1 failure, 2 wrong usage, 3 not found, 4 conflict, 5 not allowed, 6 not available.",
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def options(
    _version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Run many machine-learning models as services: deploy, place, route, release and heal them."""


MESH, MODELS, LOOK = "The mesh", "Models", "Looking"

app.command(rich_help_panel=MESH)(node.up)
app.command(rich_help_panel=MESH)(node.down)
app.command(rich_help_panel=MESH)(diagnose.doctor)
app.command(rich_help_panel=MESH)(node.token)
app.command(rich_help_panel=MODELS)(deploy.deploy)
app.command(rich_help_panel=MODELS)(declare.apply)
app.command(rich_help_panel=MODELS)(infer.infer)
app.command(rich_help_panel=MODELS)(declare.rollback)
app.command(rich_help_panel=MODELS)(declare.delete)
app.command(rich_help_panel=LOOK)(read.get)
app.command(rich_help_panel=LOOK)(read.describe)
app.command(rich_help_panel=LOOK)(read.explain)
app.command(rich_help_panel=LOOK)(read.history)
app.command(rich_help_panel=LOOK)(read.diff)
app.command(rich_help_panel=LOOK)(watching.events)
app.command(rich_help_panel=LOOK)(watching.logs)
app.command(rich_help_panel=LOOK)(watching.top)


def main() -> None:
    """Run the command that the arguments name, and exit with its code."""
    app()
