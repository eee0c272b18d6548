"""How a converted graph stands in for its original: which tensors go in and come out, and what is refused.

The plan travels within the ONNX file, as metadata, so that the file's digest covers it.
"""

from __future__ import annotations

from typing import Final, Literal

import msgspec

from msm.runtime.signature import Datatype, Signature

KEY: Final = "msm.acceleration"
Special = Literal["nan", "infinity", "huge", "large"]


class Feed(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An input of the signature becomes one of the graph, by conversion through these datatypes in turn. `column`: it
    is a column of a table, which the graph takes as [rows, 1]."""

    name: str
    graph: str
    through: tuple[Datatype, ...] = ()
    column: bool = False


class Take(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An output of the signature is one of the graph, or one column of it."""

    name: str
    graph: str
    column: int | None = None


class Plan(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`signature` is exactly the original's. `refuses` names the kinds of numbers that the original raises on: the
    converted model, which would answer something, refuses them too. `way` tells how the graph was made."""

    way: str
    signature: Signature
    feeds: tuple[Feed, ...]
    takes: tuple[Take, ...]
    refuses: tuple[Special, ...] = ()


encode = msgspec.json.Encoder().encode
decode = msgspec.json.Decoder(Plan).decode
