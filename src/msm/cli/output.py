"""How answers are printed: tables for people, JSON and YAML for programs; errors on standard error.

Everything a server said passes `clean` on its way to the terminal.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, Any, TextIO

from msm.cli.text import clean, one_line

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

WIDE = 10_000  # of a table that no terminal shows: programs that read it cut by columns, not by lines


class Output(StrEnum):
    """The forms in which objects are printed."""

    TABLE = "table"
    JSON = "json"
    YAML = "yaml"


def console(stream: TextIO | None = None) -> Console:
    """A console on standard output. A reader that went away ends the program, quietly."""
    from rich.console import Console

    class PipedConsole(Console):
        def on_broken_pipe(self) -> None:
            raise BrokenPipeError

    target = stream or sys.stdout
    width = None if target.isatty() else WIDE
    return PipedConsole(
        file=target, width=width, highlight=False, markup=False, emoji=False, soft_wrap=width is not None
    )


def say(text: str = "") -> None:
    """One line for people on standard output."""
    sys.stdout.write(clean(text) + "\n")


def note(text: str) -> None:
    """One line for people on standard error, where it does not mix with what programs read."""
    sys.stderr.write(clean(text) + "\n")


def show(renderable: RenderableType) -> None:
    """Print something of Rich's."""
    console().print(renderable)


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> RenderableType:
    """A plain table; columns named ">NAME" are aligned to the right."""
    from rich.table import Table
    from rich.text import Text

    made = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for column in columns:
        right = column.startswith(">")
        made.add_column(column.lstrip(">"), justify="right" if right else "left", no_wrap=not sys.stdout.isatty())
    for row in rows:
        made.add_row(*(cell if isinstance(cell, Text) else Text(one_line(str(cell))) for cell in row))
    return made


_MOODS = {
    "Valid": "green", "Ready": "green", "ok": "green", "created": "green", "updated": "yellow", "deleted": "red",
    "Failed": "red", "Backoff": "red", "fail": "red", "error": "red", "warning": "yellow", "warn": "yellow",
    "Pending": "yellow", "Fetching": "yellow", "Probing": "yellow", "Loading": "yellow", "Starting": "yellow",
}  # fmt: skip


def mood(word: str) -> Any:
    """A word of state in its colour."""
    from rich.text import Text

    return Text(one_line(word), style=_MOODS.get(word, ""))


def dump(value: Any, form: Output) -> None:
    """Print plain values or Structs as JSON or YAML."""
    import msgspec

    if form is Output.YAML:
        from msm.resources.manifest import dump_plain_yaml

        sys.stdout.write(dump_plain_yaml(msgspec.to_builtins(value)))
        return
    # What is not ASCII is escaped: terminals obey some of it, and every JSON reader reads it back.
    sys.stdout.write(_ascii(msgspec.json.format(msgspec.json.encode(value), indent=2).decode()) + "\n")


def dump_line(value: Any) -> None:
    """Print one value as JSON on one line, at once: a member of a stream."""
    import msgspec

    sys.stdout.write(_ascii(msgspec.json.encode(value).decode()) + "\n")
    sys.stdout.flush()


def _ascii(json_text: str) -> str:
    """Only control characters beyond ASCII and what reorders text; JSON escapes the rest itself."""
    if json_text.isascii():
        return json_text.replace("\x7f", "\\u007f")
    from msm.cli.text import clean as keep

    return "".join(char if keep(char) else _escaped(char) for char in json_text)


def _escaped(char: str) -> str:
    code = ord(char)
    if code < 0x10000:
        return f"\\u{code:04x}"
    high, low = divmod(code - 0x10000, 0x400)
    return f"\\u{0xD800 + high:04x}\\u{0xDC00 + low:04x}"
