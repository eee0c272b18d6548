"""Model formats by name and by content: entry points of the group `msm.formats`, so that a package can add one."""

from __future__ import annotations

import logging
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path

from msm.kit.errors import LoadFailed, MsmError, Unsupported
from msm.runtime.formats.base import Format, LoadedModel, LoadOptions, Prepared, first_line

log = logging.getLogger(__name__)

GROUP = "msm.formats"


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model in memory and the name of its format."""

    format: str
    model: LoadedModel


@cache
def known() -> dict[str, Format]:
    """All formats by name, in alphabetical order.

    Of two with the same name ours stays; one that cannot be imported is left out, so that it harms no other.
    """
    found: dict[str, Format] = {}
    for entry in sorted(entry_points(group=GROUP), key=lambda entry: (not entry.value.startswith("msm."), entry.name)):
        if entry.name in found:
            log.error("a format of this name is there already", extra={"format": entry.name, "entry": entry.value})
            continue
        try:
            found[entry.name] = entry.load()()
        except Exception:
            log.exception("a format cannot be used", extra={"format": entry.name, "entry": entry.value})
    return dict(sorted(found.items()))


def recognise(path: Path) -> Format:
    """The format of an artifact, by its content. Raises Unsupported when none fits."""
    for candidate in known().values():
        if candidate.sniff(path):
            return candidate
    raise Unsupported(
        f"the artifact is of none of the formats {', '.join(known())}, judged by its content", reason="unknown_format"
    )


def prepare(name: str) -> None:
    """Import the libraries of a format, as far as they are installed. Blocks. Raises Unsupported for an unknown one."""
    if name not in known():
        raise Unsupported(f"there is no format {name!r}, there are {', '.join(known())}", reason="unknown_format")
    for library in known()[name].libraries:
        with suppress(ImportError):
            import_module(library)
    chosen = known()[name]
    if isinstance(chosen, Prepared):
        with suppress(ImportError):
            chosen.prepare()


def load(path: Path, name: str | None, options: LoadOptions) -> Loaded:
    """Load the artifact at `path` as format `name`, or as what its content says when that is None.

    Blocks. Raises LoadFailed, Forbidden, Unsupported, InvalidInput; whatever a library raises becomes LoadFailed.
    """
    if not path.exists():
        raise LoadFailed("the artifact is not there", reason="artifact_missing")
    if name is None:
        chosen = recognise(path)
    elif name in known():
        chosen = known()[name]
    else:
        raise Unsupported(f"there is no format {name!r}, there are {', '.join(known())}", reason="unknown_format")
    try:
        return Loaded(chosen.name, chosen.load(path, options))
    except MsmError:
        raise
    except MemoryError as error:
        raise LoadFailed("there is not enough memory to load the model", reason="memory_limit") from error
    except Exception as error:
        raise LoadFailed(f"the {chosen.name} model could not be loaded: {first_line(error)}") from error
