"""What the worker itself does to a text that a model gives in pieces: stop sequences, the limit, the count. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

FinishReason = Literal["stop", "length"]


class TextCutter:
    """Passes pieces on, up to the first of the `stop` sequences or `max_tokens` pieces.

    A stop sequence may begin in one piece and end in another, so text that could be the beginning of one is held back
    until it is known not to be. The sequence itself is never passed on. `tokens` counts the pieces that were taken.
    """

    def __init__(self, stop: Sequence[str] = (), max_tokens: int | None = None) -> None:
        self._stop = tuple(stop)
        self._longest = max((len(text) for text in self._stop), default=0)
        self._max_tokens = max_tokens
        self._held = ""
        self.tokens = 0
        self.finished: FinishReason | None = None

    def push(self, piece: str) -> str:
        """Take a piece; the text that can be passed on. After `finished` is set nothing may be pushed."""
        self.tokens += 1
        text = self._held + piece
        found = [at for stop in self._stop if (at := text.find(stop)) >= 0]
        if found:
            self.finished, self._held = "stop", ""
            return text[: min(found)]
        if self._max_tokens is not None and self.tokens >= self._max_tokens:
            self.finished, self._held = "length", ""
            return text
        keep = self._could_begin(text)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def end(self) -> str:
        """The model has ended: what was held back."""
        if self.finished is None:
            self.finished = "stop"
        rest, self._held = self._held, ""
        return rest

    def _could_begin(self, text: str) -> int:
        """How many characters at the end of `text` are the beginning of a stop sequence."""
        for length in range(min(self._longest - 1, len(text)), 0, -1):
            tail = text[-length:]
            if any(stop.startswith(tail) for stop in self._stop):
                return length
        return 0
