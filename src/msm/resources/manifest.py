"""Manifests: text that people and programs write, as typed resources and back.

    text ──yaml_tree / json_tree──► plain values with lines ──shape──► typed ──validate──► Located

Every fault of a text is told at once, each with its document, line, path, rule and value. The text is a stranger's:
sizes are limited (1 MiB, depth 32, 50,000 values), and nothing in it is expanded, executed or looked up.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import msgspec
import yaml

from msm.kit.errors import InputTooLarge, InvalidInput
from msm.kit.nearest import hint, nearest
from msm.resources.json_tree import read_json
from msm.resources.meta import API_VERSION, ObjectKey, to_plain
from msm.resources.runtimes import ServingRuntime
from msm.resources.serving import KINDS, Model, Resource
from msm.resources.shape import shape_faults
from msm.resources.text import shown
from msm.resources.tree import LimitFault, SyntaxFault, Tree
from msm.resources.validate import check
from msm.resources.yaml_tree import core_scalar, read_yaml

MAX_BYTES = 1024 * 1024
MAX_PROBLEMS = 50

_ITEM = re.compile(r"\$\[(\d+)\]")
_PLACE = re.compile(r"#\d+\Z")


@dataclass(frozen=True, slots=True)
class Located:
    """A resource and where it stands in its text; documents and lines count from 1."""

    resource: Resource
    document: int
    line: int


def load(text: str | bytes, *, source: str = "") -> list[Located]:
    """The resources of a manifest: YAML documents, JSON, or a list of resources in either.

    Raises InvalidInput whose `problems` hold every fault found; `source` (a file's name, say) is told with each.
    """
    name = f"{source}: " if source else ""
    try:
        trees = _documents(_decoded(text))
    except SyntaxFault as fault:
        raise InvalidInput(
            f"{name}line {fault.line}: {fault.message}", problems=[("$", f"{name}line {fault.line}: {fault.message}")]
        ) from fault
    if not trees:
        raise InvalidInput(f"{name}the manifest holds no resource", problems=[("$", f"{name}the text is empty")])
    found: list[Located] = []
    problems: list[tuple[str, str]] = []
    for number, tree in enumerate(trees, 1):
        place = f"{name}document {number}, " if len(trees) > 1 else name
        resource, faults = _resource(tree)
        problems += [(_PLACE.sub("", path), f"{place}line {tree.line_of(path)}: {told}") for path, told in faults]
        if resource is not None:
            found.append(Located(resource, number, tree.line))
    problems += _declared_twice(found, name)
    if problems:
        raise _invalid(problems)
    return found


def _invalid(problems: list[tuple[str, str]]) -> InvalidInput:
    path, first = problems[0]
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    return InvalidInput(f"{first} [{path}]{more}", problems=problems[:MAX_PROBLEMS])


def _decoded(text: str | bytes) -> str:
    try:
        raw = text.encode() if isinstance(text, str) else text
        if len(raw) > MAX_BYTES:
            raise InputTooLarge(f"the manifest has {len(raw)} bytes; at most {MAX_BYTES} are allowed")
        decoded = raw.decode()
    except UnicodeError as error:
        raise SyntaxFault(1, "the text is not valid UTF-8") from error
    return decoded.removeprefix("\ufeff")


def _documents(text: str) -> list[Tree]:
    """The documents that hold something; a list at the top is as many documents as it has items."""
    trees = [tree for tree in _read(text) if tree.value is not None or tree.problems]
    return [part for tree in trees for part in _items(tree)]


def _read(text: str) -> list[Tree]:
    if not text.lstrip().startswith(("{", "[")):
        return read_yaml(text)
    try:
        return read_json(text)
    except LimitFault:
        raise
    except SyntaxFault as fault:
        # YAML's flow style looks like JSON; when it is neither, the fault of the JSON is the one to tell.
        try:
            return read_yaml(text)
        except SyntaxFault:
            raise fault from None


def _items(tree: Tree) -> Iterator[Tree]:
    if not isinstance(tree.value, list) or tree.problems:
        yield tree
        return
    lines: list[dict[str, int]] = [{} for _ in tree.value]
    for path, line in tree.lines.items():
        if item := _ITEM.match(path):
            lines[int(item[1])][f"${path[item.end() :]}"] = line
    for value, own in zip(tree.value, lines, strict=True):
        yield Tree(own["$"], value, own)


def _resource(tree: Tree) -> tuple[Resource | None, list[tuple[str, str]]]:
    """The resource of a document, or what is wrong with it. Never both."""
    faults = list(tree.problems)
    if faults and not isinstance(tree.value, dict):
        return None, faults
    declared, kind_faults = _declared_type(tree.value)
    faults += kind_faults
    if declared is None:
        return None, faults
    faults += shape_faults(tree.value, declared)
    if faults:
        return None, faults
    try:
        resource = msgspec.convert(tree.value, declared)
    except msgspec.ValidationError as error:
        return None, [("$", str(error))]
    faults += check(resource)
    return (None, faults) if faults else (resource, [])


def _declared_type(value: Any) -> tuple[type[Model] | type[ServingRuntime] | None, list[tuple[str, str]]]:
    if not isinstance(value, dict):
        return None, [
            ("$", f"expected a resource (a mapping with apiVersion, kind, metadata, spec), got {shown(value)}")
        ]
    version, kind = value.get("apiVersion"), value.get("kind")
    supported = f"supported are {', '.join(KINDS)} of {API_VERSION}"
    if version != API_VERSION:
        told = "the field apiVersion is missing" if version is None else f"the apiVersion {shown(version)} is unknown"
        return None, [("$.apiVersion", f"{told}; {supported}")]
    if not isinstance(kind, str) or kind not in KINDS:
        told = "the field kind is missing" if kind is None else f"the kind {shown(kind)} is unknown"
        like = hint(nearest(kind, tuple(KINDS), most=1)) if isinstance(kind, str) else ""
        return None, [("$.kind", f"{told}; {supported}{like}")]
    return KINDS[kind], []


def _declared_twice(found: list[Located], name: str) -> Iterator[tuple[str, str]]:
    first: dict[ObjectKey, Located] = {}
    for item in found:
        before = first.setdefault(item.resource.key, item)
        if before is not item:
            yield (
                "$.metadata.name",
                f"{name}document {item.document}, line {item.line}: {item.resource.key} is declared again; "
                f"document {before.document}, line {before.line}, declares it first",
            )


class _Dumper(yaml.SafeDumper):
    """Block style, no aliases, and quotes where a reader of YAML 1.1 or 1.2 would not see a string."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style='"' if _needs_quotes(text) else None)


def _needs_quotes(text: str) -> bool:
    try:
        return not isinstance(core_scalar(text), str)
    except ValueError:
        return True


_Dumper.add_representer(str, _represent_text)


def dump_yaml(resource: Resource) -> str:
    """The resource as a YAML document that `load` reads back as an equal value."""
    return dump_plain_yaml(plain(resource))


def dump_plain_yaml(value: Any) -> str:
    """Plain values as YAML, in the style of manifests."""
    text: str = yaml.dump(
        value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, default_flow_style=False, width=110
    )
    return text


def plain(resource: Resource) -> dict[str, Any]:
    """The resource as its manifest: identity first, nothing that only says "not given"."""
    whole = to_plain(resource)
    metadata = {key: value for key, value in whole["metadata"].items() if value not in (None, {})}
    manifest = {"apiVersion": whole["apiVersion"], "kind": whole["kind"], "metadata": metadata, "spec": whole["spec"]}
    return manifest if whole.get("status") is None else {**manifest, "status": whole["status"]}
