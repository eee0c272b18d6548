"""What all resources have in common: names, metadata, keys."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, Any, Final

import msgspec

API_VERSION: Final = "msm/v1"
DEFAULT_NAMESPACE = "default"

NAME_PATTERN = r"^[a-z0-9]([a-z0-9._-]{0,62})$"
NAME_RULE = "1 to 63 of a-z, 0-9, '.', '_', '-', beginning with a letter or digit, without '..'"
RESERVED_NAMES = frozenset({"v1", "v2", "health", "admin", "repository", "models"})
MAX_LABELS = 64

Name = Annotated[str, msgspec.Meta(min_length=1, max_length=63)]
Digest = Annotated[str, msgspec.Meta(pattern=r"^sha256:[0-9a-fA-F]{64}\Z")]


def is_name(text: str) -> bool:
    """Whether `text` may name an object (see NAME_RULE)."""
    return re.match(NAME_PATTERN, text) is not None and ".." not in text and not text.endswith("\n")


class Meta(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, rename="camel"):
    """Name, namespace and free labels of an object.

    `resource_version` is the store revision the caller saw: given on a write, the write succeeds only if the
    object has not changed since (optimistic concurrency). `generation` counts accepted changes of the spec,
    from 1.
    """

    name: str
    namespace: str = DEFAULT_NAMESPACE
    labels: dict[str, str] = msgspec.field(default_factory=dict)
    annotations: dict[str, str] = msgspec.field(default_factory=dict)
    resource_version: int | None = None
    generation: int | None = None
    uid: str | None = None
    created_at: str | None = None


@dataclass(frozen=True, slots=True, order=True)
class ObjectKey:
    """Names one object: kind, namespace, name."""

    kind: str
    namespace: str
    name: str

    def __str__(self) -> str:
        prefix = "" if self.namespace == DEFAULT_NAMESPACE else f"{self.namespace}/"
        return f"{self.kind.lower()}/{prefix}{self.name}"


class Base(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, rename="camel", omit_defaults=True):
    """Base of all declared and observed types: immutable, strict, camelCase outside, snake_case inside."""


def to_plain(value: Any) -> Any:
    """A declared or observed value as dicts, lists and scalars, with its outside names."""
    return msgspec.to_builtins(value)
