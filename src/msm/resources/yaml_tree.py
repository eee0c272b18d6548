"""YAML text as parts of a tree: the 1.2 core schema without anchors, aliases and tags.

Works on the parser's events, never on its node graph: an alias is refused where it stands, before anything is
expanded, and no recursion depends on the text.
"""

from __future__ import annotations

import math
import re
from typing import Any

import yaml

from msm.resources.text import shown
from msm.resources.tree import Builder, Close, Leaf, Open, SyntaxFault, Tree

_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

# https://yaml.org/spec/1.2.2/#1032-tag-resolution
_NULL = frozenset({"", "~", "null", "Null", "NULL"})
_BOOLS = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
_INT = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?")
_SPECIAL = re.compile(r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)")
_MAX_DIGITS = 400


def core_scalar(text: str) -> str | int | float | bool | None:
    """The value of a plain (unquoted) scalar. Raises ValueError for a number that JSON cannot hold."""
    if text in _NULL:
        return None
    if text in _BOOLS:
        return _BOOLS[text]
    if _SPECIAL.fullmatch(text):
        raise ValueError(text)
    if _INT.fullmatch(text):
        return _whole(text)
    if _FLOAT.fullmatch(text):
        number = float(text)
        if not math.isfinite(number):
            raise ValueError(text)
        return number
    return text


def _whole(text: str) -> int:
    if len(text) > _MAX_DIGITS:
        raise ValueError(text)
    base = {"0o": 8, "0x": 16}.get(text[:2], 10)
    number = int(text[2:] if base != 10 else text, base)
    if not -(2**63) <= number < 2**64:
        raise ValueError(text)
    return number


def read_yaml(text: str) -> list[Tree]:
    """The documents of `text`. Raises SyntaxFault when it cannot be read."""
    builder = Builder()
    try:
        for event in yaml.parse(text, Loader=_LOADER):
            _take(builder, event)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        said = error.problem or error.context or "the text is not YAML"
        raise SyntaxFault(mark.line + 1 if mark else 1, f"the text is not YAML: {said}") from error
    except yaml.YAMLError as error:
        raise SyntaxFault(_reader_line(text, error), "the text holds a character that YAML does not allow") from error
    return builder.trees


def _reader_line(text: str, error: yaml.YAMLError) -> int:
    position = getattr(error, "position", None)
    return text.count("\n", 0, position) + 1 if isinstance(position, int) else 1


def _take(builder: Builder, event: yaml.Event) -> None:
    line = event.start_mark.line + 1 if event.start_mark else 1
    match event:
        case yaml.DocumentStartEvent():
            builder.begin(line)
        case yaml.AliasEvent():
            raise SyntaxFault(line, f"the alias *{_short(event.anchor)} is not allowed: write the value out")
        case yaml.MappingStartEvent() | yaml.SequenceStartEvent():
            _refuse_decoration(builder, event, line)
            builder.add(Open(line, isinstance(event, yaml.MappingStartEvent)))
        case yaml.MappingEndEvent() | yaml.SequenceEndEvent():
            builder.add(Close())
        case yaml.ScalarEvent():
            _refuse_decoration(builder, event, line)
            builder.add(Leaf(line, _scalar(builder, event, line)))


def _refuse_decoration(builder: Builder, event: Any, line: int) -> None:
    if event.anchor is not None:
        builder.problem(line, f"the anchor &{_short(event.anchor)} is not allowed")
    if event.tag is not None:
        builder.problem(line, f"the tag {shown(event.tag)} is not allowed")


def _scalar(builder: Builder, event: yaml.ScalarEvent, line: int) -> str | int | float | bool | None:
    if event.style:
        return str(event.value)
    try:
        return core_scalar(event.value)
    except ValueError:
        builder.problem(line, f"the number {shown(event.value)[1:-1]} is not one that JSON can hold")
        return 0


def _short(anchor: str | None) -> str:
    return shown(anchor or "")[1:-1]
