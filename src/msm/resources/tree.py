"""Text of a manifest as plain values that remember their lines.

Readers of YAML and of JSON (`yaml_tree`, `json_tree`) turn text into a flat stream of parts; `Builder` makes values of
the parts and enforces the limits while they come in, so that a hostile text costs no more than its limits.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from msm.resources.text import child, shown

MAX_DEPTH = 32
MAX_NODES = 50_000


class SyntaxFault(Exception):
    """The text cannot be read on from `line`. `message` is a sentence."""

    def __init__(self, line: int, message: str) -> None:
        super().__init__(message)
        self.line = line
        self.message = message


class LimitFault(SyntaxFault):
    """The text is larger than it may be, in whatever language it is written."""


@dataclass(frozen=True, slots=True)
class Open:
    """A mapping or a sequence begins."""

    line: int
    mapping: bool


@dataclass(frozen=True, slots=True)
class Close:
    """The innermost mapping or sequence ends."""


@dataclass(frozen=True, slots=True)
class Leaf:
    """A scalar."""

    line: int
    value: str | int | float | bool | None


Part = Open | Close | Leaf


@dataclass(slots=True)
class Tree:
    """One document: its value, the line of each path, and what was wrong without making it unreadable."""

    line: int = 1
    value: Any = None
    lines: dict[str, int] = field(default_factory=dict)
    problems: list[tuple[str, str]] = field(default_factory=list)

    def line_of(self, path: str) -> int:
        """The line of `path`, or of the nearest thing around it that the text holds."""
        while path and path not in self.lines:
            path = path[: max(path.rfind("."), path.rfind("["), 0)]
        return self.lines.get(path, self.line)


@dataclass(slots=True)
class _Frame:
    container: dict[str, Any] | list[Any]
    path: str
    key: str | None = None
    key_line: int = 0


@dataclass(slots=True)
class Builder:
    """Makes documents of parts. One builder for all documents of a text, since the node limit is the text's."""

    trees: list[Tree] = field(default_factory=list)
    _stack: list[_Frame] = field(default_factory=list)
    _nodes: int = 0

    def begin(self, line: int) -> None:
        """A new document; parts that follow belong to it."""
        self.trees.append(Tree(line))

    def problem(self, line: int, sentence: str) -> None:
        """Note a fault at the place of the next part and go on."""
        tree = self.trees[-1]
        where = f"{self._here()}#{len(tree.problems)}"  # a place of its own: its line is not the value's
        tree.lines[where] = line
        tree.problems.append((where, sentence))

    def add(self, part: Part) -> None:
        """Take the next part. Raises SyntaxFault at a limit."""
        match part:
            case Close():
                self._stack.pop()
            case Leaf(line, value):
                if self._is_key():
                    self._key(line, value)
                else:
                    self._place(line, value)
            case Open(line, mapping):
                if self._is_key():
                    raise SyntaxFault(line, "a key is a mapping or a list; keys are strings")
                if len(self._stack) == MAX_DEPTH:
                    raise LimitFault(line, f"the nesting is deeper than {MAX_DEPTH}")
                container: dict[str, Any] | list[Any] = {} if mapping else []
                path = self._place(line, container)
                self._stack.append(_Frame(container, path))

    def _here(self) -> str:
        if not self._stack:
            return "$"
        frame = self._stack[-1]
        if isinstance(frame.container, list):
            return f"{frame.path}[{len(frame.container)}]"
        return frame.path if frame.key is None else child(frame.path, frame.key)

    def _is_key(self) -> bool:
        return bool(self._stack) and isinstance(self._stack[-1].container, dict) and self._stack[-1].key is None

    def _key(self, line: int, value: str | float | bool | None) -> None:
        frame = self._stack[-1]
        frame.key = value if isinstance(value, str) else shown(value)
        frame.key_line = line
        if not isinstance(value, str):
            self.problem(line, f"the key {shown(value)} is not a string; write it in quotes")
        elif value in frame.container:
            first = self.trees[-1].line_of(child(frame.path, value))
            self.problem(line, f"the key {shown(value)} was given before, on line {first}")

    def _place(self, line: int, value: Any) -> str:
        self._nodes += 1
        if self._nodes > MAX_NODES:
            raise LimitFault(line, f"the manifest has more than {MAX_NODES} values")
        tree = self.trees[-1]
        path = self._here()
        tree.lines[path] = line
        if not self._stack:
            tree.value = value
            return path
        frame = self._stack[-1]
        if isinstance(frame.container, list):
            frame.container.append(value)
        elif frame.key is not None:
            tree.lines[path] = frame.key_line
            frame.container[frame.key] = value
            frame.key = None
        return path
