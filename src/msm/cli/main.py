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
    rich_markup_mode=None,  # plain help starts in half the time
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
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


app.command()(node.up)
app.command()(node.down)
app.command()(diagnose.doctor)
app.command()(node.token)
app.command()(deploy.deploy)
app.command()(declare.apply)
app.command()(infer.infer)
app.command()(declare.rollback)
app.command()(declare.delete)
app.command()(read.get)
app.command()(read.describe)
app.command()(read.explain)
app.command()(read.history)
app.command()(read.diff)
app.command()(watching.events)
app.command()(watching.logs)
app.command()(watching.top)


def main() -> None:
    """Run the command that the arguments name, and exit with its code."""
    app()
