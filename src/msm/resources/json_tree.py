"""JSON text as parts of a tree (RFC 8259), with the lines that Python's own parser does not tell."""

from __future__ import annotations

import json
import math
import re
from bisect import bisect_right
from collections.abc import Iterator

from msm.resources.text import shown
from msm.resources.tree import MAX_DEPTH, Builder, Close, Leaf, LimitFault, Open, Part, SyntaxFault, Tree

_SPACE = re.compile(r"[ \t\n\r]*")
_STRING = re.compile(r'"(?:[^"\\\x00-\x1f]|\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4}))*"')
_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?")
_WORD = re.compile(r"[A-Za-z]{1,20}")
_WORDS: dict[str, bool | None] = {"true": True, "false": False, "null": None}
_MAX_DIGITS = 400


def read_json(text: str) -> list[Tree]:
    """The one document of `text`. Raises SyntaxFault when it cannot be read."""
    reader = _Reader(text)
    builder = Builder()
    builder.begin(reader.line())
    for part in reader.value(0):
        builder.add(part)
    reader.end()
    return builder.trees


class _Reader:
    """Walks through the text; `value` yields the parts of one value."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._breaks = [match.start() for match in re.finditer("\n", text)]
        self._skip()

    def line(self) -> int:
        return bisect_right(self._breaks, self._at - 1) + 1

    def value(self, depth: int) -> Iterator[Part]:
        if depth > MAX_DEPTH:
            raise LimitFault(self.line(), f"the nesting is deeper than {MAX_DEPTH}")
        char = self._peek()
        if char in ("{", "["):
            yield from self._container(char == "{", depth)
        else:
            yield Leaf(self.line(), self._string() if char == '"' else self._bare())
            self._skip()

    def end(self) -> None:
        if self._at < len(self._text):
            raise SyntaxFault(self.line(), "the text is not JSON: something follows the value")

    def _container(self, mapping: bool, depth: int) -> Iterator[Part]:
        closing = "}" if mapping else "]"
        yield Open(self.line(), mapping)
        self._step()
        if self._peek() != closing:
            yield from self._item(mapping, depth)
            while self._peek() == ",":
                self._step()
                yield from self._item(mapping, depth)
        self._expect(closing)
        yield Close()

    def _item(self, mapping: bool, depth: int) -> Iterator[Part]:
        if mapping:
            if self._peek() != '"':
                raise self._fault("a key in double quotes")
            yield Leaf(self.line(), self._string())
            self._skip()
            self._expect(":")
        yield from self.value(depth + 1)

    def _string(self) -> str:
        token = _STRING.match(self._text, self._at)
        if token is None:
            raise self._fault("a string in double quotes without line breaks")
        text: str = json.loads(token.group())
        if any("\ud800" <= char <= "\udfff" for char in text):
            raise SyntaxFault(self.line(), f"the string {shown(text)} holds half of a surrogate pair")
        self._at = token.end()
        return text

    def _bare(self) -> float | bool | None:
        if number := _NUMBER.match(self._text, self._at):
            value = self._number(number.group())
            self._at = number.end()
            return value
        word = _WORD.match(self._text, self._at)
        if word is None or word.group() not in _WORDS:
            raise self._fault("a value")
        self._at = word.end()
        return _WORDS[word.group()]

    def _number(self, digits: str) -> int | float:
        if len(digits) <= _MAX_DIGITS:
            whole = digits.lstrip("-").isdigit()
            number = int(digits) if whole else float(digits)
            if -(2**63) <= number < 2**64 if whole else math.isfinite(number):
                return number
        raise SyntaxFault(self.line(), f"the number {shown(digits)[1:-1]} is too large")

    def _peek(self) -> str:
        return self._text[self._at : self._at + 1]

    def _step(self) -> None:
        self._at += 1
        self._skip()

    def _skip(self) -> None:
        space = _SPACE.match(self._text, self._at)
        self._at = space.end() if space else self._at

    def _expect(self, char: str) -> None:
        if self._peek() != char:
            raise self._fault(f"'{char}'")
        self._step()

    def _fault(self, wanted: str) -> SyntaxFault:
        found = shown(self._text[self._at : self._at + 20]) if self._at < len(self._text) else "the end"
        return SyntaxFault(self.line(), f"the text is not JSON: expected {wanted}, found {found}")
