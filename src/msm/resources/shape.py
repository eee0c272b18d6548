"""Whether a plain value has the shape of a declared type: every fault at once, in our words.

`msgspec.convert` stops at the first fault; a person who mends a manifest wants them all. The types are the only
source: this walks the description that `msgspec.inspect` gives of them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any

import msgspec.inspect as kinds

from msm.kit.nearest import hint, nearest
from msm.resources.text import child, shown

Fault = tuple[str, str]


def shape_faults(value: Any, declared: type) -> Iterator[Fault]:
    """Where `value` is not a `declared`, as (path, sentence)."""
    return _faults("$", value, _description(declared))


@lru_cache(maxsize=32)
def _description(declared: type) -> kinds.Type:
    return kinds.type_info(declared)


def _faults(path: str, value: Any, kind: kinds.Type) -> Iterator[Fault]:
    match kind:
        case kinds.AnyType():
            return
        case kinds.UnionType(types=types):
            yield from _union(path, value, types)
        case kinds.StructType():
            yield from _struct(path, value, kind)
        case kinds.DictType(value_type=value_type):
            if not isinstance(value, dict):
                yield path, _expected("a mapping", value)
                return
            for key, item in value.items():
                yield from _faults(child(path, key), item, value_type)
        case kinds.VarTupleType(item_type=item_type) | kinds.ListType(item_type=item_type):
            if not isinstance(value, list):
                yield path, _expected("a list", value)
                return
            for index, item in enumerate(value):
                yield from _faults(f"{path}[{index}]", item, item_type)
        case _:
            if sentence := _scalar_fault(value, kind):
                yield path, sentence


def _union(path: str, value: Any, types: Sequence[kinds.Type]) -> Iterator[Fault]:
    if value is None and any(isinstance(option, kinds.NoneType) for option in types):
        return
    others = [option for option in types if not isinstance(option, kinds.NoneType)]
    each = [list(_faults(path, value, option)) for option in others]
    if all(each):
        yield from each[0]


def _struct(path: str, value: Any, kind: kinds.StructType) -> Iterator[Fault]:
    if not isinstance(value, dict):
        yield path, _expected("a mapping", value)
        return
    fields = {field.encode_name: field for field in kind.fields}
    for key, item in value.items():
        if key in fields:
            yield from _faults(child(path, key), item, fields[key].type)
        elif kind.tag_field is not None and key == kind.tag_field:
            continue  # what tells the type was read before
        else:
            yield child(path, key), f"the field {shown(key)} is unknown{_like(key, fields)}"
    for name, field in fields.items():
        if field.required and name not in value:
            yield child(path, name), f"the field {shown(name)} is missing"


def _like(key: str, fields: dict[str, kinds.Field]) -> str:
    """Case and underscores apart counts as the same word; then likeness."""
    plain = {name.casefold(): name for name in fields}
    same = plain.get(key.casefold().replace("_", "").replace("-", ""))
    names = (same,) if same else nearest(key, tuple(fields), most=1)
    return hint(names) or f"; known are {', '.join(fields)}"


def _scalar_fault(value: Any, kind: kinds.Type) -> str | None:
    match kind:
        case kinds.StrType():
            return _string_fault(value, kind)
        case kinds.BoolType():
            return None if isinstance(value, bool) else _expected("true or false", value)
        case kinds.IntType():
            if isinstance(value, bool) or not isinstance(value, int):
                return _expected("a whole number", value)
            return _bounds_fault(value, kind)
        case kinds.FloatType():
            if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
                return _expected("a number", value)
            return _bounds_fault(value, kind)
        case kinds.LiteralType(values=values):
            known = [str(option) for option in values]
            if value in values and isinstance(value, str):
                return None
            tail = hint(nearest(value, known, most=1)) if isinstance(value, str) else ""
            return f"expected one of {', '.join(known)}, got {shown(value)}{tail}"
        case _:
            return f"a value of this kind is not supported: {type(kind).__name__}"


def _string_fault(value: Any, kind: kinds.StrType) -> str | None:
    if not isinstance(value, str):
        quoted = isinstance(value, bool | int | float)
        return _expected("a string", value) + ("; write it in quotes" if quoted else "")
    if kind.pattern is not None and not re.search(kind.pattern, value):
        return f"{shown(value)} does not match {kind.pattern.removesuffix(chr(92) + 'Z')}"
    return None


def _bounds_fault(value: float, kind: kinds.IntType | kinds.FloatType) -> str | None:
    for broken, rule, bound in (
        (kind.ge is not None and value < kind.ge, "at least", kind.ge),
        (kind.gt is not None and value <= kind.gt, "more than", kind.gt),
        (kind.le is not None and value > kind.le, "at most", kind.le),
        (kind.lt is not None and value >= kind.lt, "less than", kind.lt),
    ):
        if broken:
            return f"{value} is not allowed: it must be {rule} {bound}"
    return None


def _expected(what: str, value: Any) -> str:
    match value:
        case None:
            got = "nothing"
        case bool():
            got = shown(value)
        case str():
            got = f"the string {shown(value)}"
        case int() | float():
            got = f"the number {value}"
        case list():
            got = "a list"
        case _:
            got = "a mapping"
    return f"expected {what}, got {got}"
