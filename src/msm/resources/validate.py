"""What the types cannot say: rules between the parts of a resource, and between its old and its new form.

The store calls `check` and `check_change` before it accepts a write, so no other layer has to doubt a model
it reads. Every problem is a pair of a path ("$.spec.traffic.split[1].version") and a sentence that names the
rule and the value. All problems are found at once. Nothing here looks at the world outside the two values.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import msgspec

from msm.kit.nearest import hint, nearest
from msm.resources.meta import MAX_LABELS, NAME_RULE, RESERVED_NAMES, Meta, is_name
from msm.resources.runtime_rules import runtime_problems
from msm.resources.serving import Model, ModelSpec, Resource, Scaling, Signature, Tensor, Traffic, VersionSpec
from msm.resources.text import child, has_control, shown
from msm.resources.uris import uri_problems

Problem = tuple[str, str]
Problems = tuple[Problem, ...]

MAX_VERSIONS = 1000
MAX_ALIASES = 100
MAX_ANNOTATIONS_BYTES = 64 * 1024
MAX_LABEL_VALUE = 253
MAX_PARAMETERS_BYTES = 64 * 1024
MAX_PARAMETERS_DEPTH = 16
MAX_TENSORS = 1024
MAX_TENSOR_NAME = 256
MAX_RANK = 16

_LABEL_KEY = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._/-]{0,126})")
_LABEL_KEY_RULE = "1 to 127 of letters, digits, '.', '_', '-', '/', beginning with a letter or digit"
_HEADER_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,128}")
_INTERNAL_HEADERS = ("x-msm-", "x-envoy-")
_RESERVED_HEADERS = frozenset(
    (
        "authorization", "proxy-authorization", "cookie", "host", "connection", "content-length",
        "transfer-encoding", "te", "trailer", "upgrade", "keep-alive",
    )
)  # fmt: skip

# Fields of a version that never change while the version keeps its name. Some that were left to be found out
# may be declared later.
_FIXED = ("uri", "format", "digest", "trusted", "parameters", "signature", "accelerate", "runtime")
_MAY_BE_ADDED = frozenset({"format", "digest", "signature"})


def check(resource: Resource) -> Problems:
    """All rules that `resource` breaks by itself; empty when it may be accepted."""
    spec = _spec(resource.spec) if isinstance(resource, Model) else runtime_problems(resource)
    return (*_metadata(resource.metadata), *spec)


def check_change(old: Resource, new: Resource) -> Problems:
    """The versions of `new` that keep a name of `old` and differ from it: versions are immutable."""
    if not isinstance(old, Model) or not isinstance(new, Model):
        return ()
    return tuple(
        (f"$.spec.versions[{index}].{field}", sentence)
        for index, version in enumerate(new.spec.versions)
        if (before := old.version(version.name)) is not None
        for field, sentence in _version_differences(before, version)
    )


def _version_differences(before: VersionSpec, after: VersionSpec) -> Iterator[tuple[str, str]]:
    for field in _FIXED:
        was, now = getattr(before, field), getattr(after, field)
        if was == now or (was is None and field in _MAY_BE_ADDED):
            continue
        yield (
            field,
            f"version {shown(after.name)} is immutable: its {field} is {_value(was)} and cannot become "
            f"{_value(now)}; give the change a new version name",
        )


def _value(value: Any) -> str:
    return "not given" if value is None else shown(msgspec.to_builtins(value))


def _metadata(meta: Meta) -> Iterator[Problem]:
    yield from _object_name("$.metadata.name", "name", meta.name)
    yield from _object_name("$.metadata.namespace", "namespace", meta.namespace)
    yield from _labels("$.metadata.labels", meta.labels)
    yield from _annotations("$.metadata.annotations", meta.annotations)
    if meta.resource_version is not None and meta.resource_version < 0:
        yield (
            "$.metadata.resourceVersion",
            f"{meta.resource_version} is negative; it is a revision seen before",
        )


def _object_name(path: str, what: str, name: str) -> Iterator[Problem]:
    if not is_name(name):
        yield path, f"the {what} {shown(name)} is not allowed: {NAME_RULE}"
    elif name in RESERVED_NAMES:
        yield path, f"the {what} {shown(name)} is reserved; reserved are {', '.join(sorted(RESERVED_NAMES))}"


def _labels(path: str, labels: Mapping[str, str]) -> Iterator[Problem]:
    if len(labels) > MAX_LABELS:
        yield path, f"{len(labels)} labels are given; at most {MAX_LABELS} are allowed"
        return
    for key, value in labels.items():
        if not _LABEL_KEY.fullmatch(key):
            yield path, f"the label key {shown(key)} is not allowed: {_LABEL_KEY_RULE}"
        elif len(value) > MAX_LABEL_VALUE:
            yield (
                child(path, key),
                f"the value is {len(value)} characters long; at most {MAX_LABEL_VALUE} are allowed",
            )
        elif has_control(value):
            yield child(path, key), "the value holds a line break or another control character"


def _annotations(path: str, annotations: Mapping[str, str]) -> Iterator[Problem]:
    for key in annotations:
        if not _LABEL_KEY.fullmatch(key):
            yield path, f"the annotation key {shown(key)} is not allowed: {_LABEL_KEY_RULE}"
    size = sum(len(text.encode("utf-8", "surrogatepass")) for pair in annotations.items() for text in pair)
    if size > MAX_ANNOTATIONS_BYTES:
        yield path, f"the annotations have {size} bytes; at most {MAX_ANNOTATIONS_BYTES} are allowed"


def _spec(spec: ModelSpec) -> Iterator[Problem]:
    if not spec.versions:
        yield "$.spec.versions", "the list is empty; a model has at least one version"
    if len(spec.versions) > MAX_VERSIONS:
        yield (
            "$.spec.versions",
            f"{len(spec.versions)} versions are given; at most {MAX_VERSIONS} are allowed",
        )
    yield from _repeated("$.spec.versions", "name", "version", [version.name for version in spec.versions])
    for index, version in enumerate(spec.versions):
        yield from _version(f"$.spec.versions[{index}]", version)
    names = frozenset(version.name for version in spec.versions)
    yield from _aliases(spec.aliases, names)
    yield from _traffic(spec.traffic, names)
    yield from _scaling(spec.scaling)
    yield from _bounded("$.spec.timeoutSeconds", spec.timeout_seconds, 0, 3600)
    if not 1 <= spec.max_queue <= 1_000_000:
        yield "$.spec.maxQueue", f"{spec.max_queue} is not between 1 and 1000000"


def _repeated(path: str, field: str, what: str, names: list[str]) -> Iterator[Problem]:
    seen: Counter[str] = Counter()
    for index, name in enumerate(names):
        seen[name] += 1
        if seen[name] == 2:
            yield (
                f"{path}[{index}].{field}",
                f"{what} {shown(name)} is given {names.count(name)} times; once is enough",
            )


def _version(path: str, version: VersionSpec) -> Iterator[Problem]:
    if not is_name(version.name):
        yield f"{path}.name", f"the version name {shown(version.name)} is not allowed: {NAME_RULE}"
    for sentence in uri_problems(version.uri):
        yield f"{path}.uri", f"the URI of version {shown(version.name)} {sentence}"
    if version.format is not None and not is_name(version.format):
        yield f"{path}.format", f"the format {shown(version.format)} is not allowed: {NAME_RULE}"
    if version.runtime is not None and not is_name(version.runtime):
        yield f"{path}.runtime", f"the runtime {shown(version.runtime)} is not allowed: {NAME_RULE}"
    if version.runtime is not None and version.accelerate != "off":
        yield f"{path}.accelerate", "only the built-in worker converts versions; leave it out beside runtime"
    if version.memory is not None and version.runtime is None:
        yield f"{path}.memory", "memory is measured for the built-in worker; only versions with a runtime declare it"
    yield from _parameters(f"{path}.parameters", version.parameters)
    if version.signature is not None:
        yield from _signature(f"{path}.signature", version.signature)


def _parameters(path: str, parameters: Mapping[str, Any]) -> Iterator[Problem]:
    if problem := _json_problem(parameters, 1):
        yield path, problem
        return
    size = len(msgspec.json.encode(parameters))
    if size > MAX_PARAMETERS_BYTES:
        yield path, f"the parameters have {size} bytes as JSON; at most {MAX_PARAMETERS_BYTES} are allowed"


def _json_problem(value: Any, depth: int) -> str | None:
    """Why `value` is not a plain JSON value, or None. Stops at the depth limit, so it ends on any value."""
    if depth > MAX_PARAMETERS_DEPTH + 1:
        return f"the parameters are nested deeper than {MAX_PARAMETERS_DEPTH}"
    match value:
        case dict():
            if strange := next((key for key in value if not isinstance(key, str)), None):
                return f"the key {shown(strange)} is not a string"
            return _first(_json_problem(item, depth + 1) for item in (*value.values(), *value))
        case list() | tuple():
            return _first(_json_problem(item, depth + 1) for item in value)
        case str():
            return None if _is_text(value) else f"{shown(value)} is not valid Unicode"
        case float() if not math.isfinite(value):
            return f"{value} is not a number that JSON can hold"
        case None | bool() | int() | float():
            return None
        case _:
            return f"a value of type {type(value).__name__} is not plain JSON"


def _first(problems: Iterator[str | None]) -> str | None:
    return next((problem for problem in problems if problem), None)


def _is_text(text: str) -> bool:
    return not any("\ud800" <= char <= "\udfff" for char in text)


def _signature(path: str, signature: Signature) -> Iterator[Problem]:
    for side, tensors in (("inputs", signature.inputs), ("outputs", signature.outputs)):
        if len(tensors) > MAX_TENSORS:
            yield f"{path}.{side}", f"{len(tensors)} tensors are given; at most {MAX_TENSORS} are allowed"
            continue
        yield from _repeated(f"{path}.{side}", "name", "tensor", [tensor.name for tensor in tensors])
        for index, tensor in enumerate(tensors):
            yield from _tensor(f"{path}.{side}[{index}]", tensor)


def _tensor(path: str, tensor: Tensor) -> Iterator[Problem]:
    if not 1 <= len(tensor.name) <= MAX_TENSOR_NAME or has_control(tensor.name):
        yield (
            f"{path}.name",
            f"the tensor name {shown(tensor.name)} is not allowed: "
            f"1 to {MAX_TENSOR_NAME} characters, no control characters",
        )
    if len(tensor.shape) > MAX_RANK:
        yield f"{path}.shape", f"{len(tensor.shape)} dimensions are given; at most {MAX_RANK} are allowed"
    for index, size in enumerate(tensor.shape):
        if not -1 <= size < 2**63:
            yield (
                f"{path}.shape[{index}]",
                f"the dimension {size} is not allowed: 0 or more, or -1 for one that varies",
            )


def _aliases(aliases: Mapping[str, str], versions: frozenset[str]) -> Iterator[Problem]:
    if len(aliases) > MAX_ALIASES:
        yield "$.spec.aliases", f"{len(aliases)} aliases are given; at most {MAX_ALIASES} are allowed"
        return
    for alias, target in aliases.items():
        path = child("$.spec.aliases", alias)
        if not is_name(alias):
            yield path, f"the alias {shown(alias)} is not allowed: {NAME_RULE}"
        elif alias in versions:
            yield path, f"the alias {shown(alias)} has the name of a version; one name cannot mean both"
        if target in versions:
            continue
        if target in aliases:
            yield (
                path,
                f"the alias {shown(alias)} points to the alias {shown(target)}; it must point to a version",
            )
        else:
            yield path, f"the alias {shown(alias)} points to {_unknown_version(target, versions)}"


def _unknown_version(name: str, versions: frozenset[str]) -> str:
    return f"version {shown(name)}, which the model does not have{hint(nearest(name, versions, most=1))}"


def _traffic(traffic: Traffic, versions: frozenset[str]) -> Iterator[Problem]:
    path = "$.spec.traffic"
    if traffic.split:
        total = sum(entry.weight for entry in traffic.split)
        if total != 100:
            yield f"{path}.split", f"the weights sum to {total}; they must sum to exactly 100"
        yield from _repeated(f"{path}.split", "version", "version", [entry.version for entry in traffic.split])
    for index, entry in enumerate(traffic.split):
        if entry.version not in versions:
            where = f"{path}.split[{index}].version"
            yield where, f"the split names {_unknown_version(entry.version, versions)}"
        yield from _percent(f"{path}.split[{index}].weight", "weight", entry.weight)
    if traffic.mirror is not None:
        if traffic.mirror.version not in versions:
            yield (
                f"{path}.mirror.version",
                f"the mirror names {_unknown_version(traffic.mirror.version, versions)}",
            )
        yield from _percent(f"{path}.mirror.percent", "percentage", traffic.mirror.percent)
    if traffic.sticky is not None:
        yield from _sticky_header(f"{path}.sticky.header", traffic.sticky.header)


def _percent(path: str, what: str, value: int) -> Iterator[Problem]:
    if not 0 <= value <= 100:
        yield path, f"the {what} {value} is not between 0 and 100"


def _sticky_header(path: str, header: str) -> Iterator[Problem]:
    lower = header.lower()
    if not _HEADER_NAME.fullmatch(header):
        yield path, f"{shown(header)} is not the name of an HTTP header"
    elif lower.startswith(_INTERNAL_HEADERS):
        yield (
            path,
            f"the header {shown(header)} belongs to the mesh, like all {' and '.join(_INTERNAL_HEADERS)}",
        )
    elif lower in _RESERVED_HEADERS:
        yield path, f"the header {shown(header)} cannot carry the unit of a sticky assignment"


def _scaling(scaling: Scaling) -> Iterator[Problem]:
    path = "$.spec.scaling"
    if scaling.min > scaling.max:
        yield f"{path}.min", f"min {scaling.min} is greater than max {scaling.max}"
    if not 0 <= scaling.min <= 1000:
        yield f"{path}.min", f"{scaling.min} is not between 0 and 1000"
    if not 1 <= scaling.max <= 1000:
        yield f"{path}.max", f"{scaling.max} is not between 1 and 1000"
    yield from _bounded(f"{path}.target", scaling.target, 0, 1_000_000)
    yield from _bounded(f"{path}.idleSeconds", scaling.idle_seconds, 1, 365 * 86_400, least_allowed=True)


def _bounded(path: str, value: float, least: float, most: float, *, least_allowed: bool = False) -> Iterator[Problem]:
    above: Callable[[float], bool] = (
        (lambda number: number >= least) if least_allowed else (lambda number: number > least)
    )
    if not (math.isfinite(value) and above(value) and value <= most):
        rule = f"between {least} and {most}" if least_allowed else f"more than {least} and at most {most}"
        yield path, f"{value} is not a number {rule}"
