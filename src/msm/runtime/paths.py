"""What the paths of the data socket mean. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from urllib.parse import unquote_to_bytes

from msm.runtime.openai import OPENAI_PATHS


@dataclass(frozen=True, slots=True)
class Route:
    """What a path means: a call and the model and version it names. `method` is the only one allowed."""

    call: str
    method: bytes
    model: str = ""
    version: str = ""


@lru_cache(maxsize=16384)
def route(path: bytes) -> Route | None:
    """The meaning of a request's path, None when it has none."""
    if path.startswith(b"/inference.GRPCInferenceService/"):
        return Route("grpc." + path.rpartition(b"/")[2].decode("latin-1"), b"POST")
    parts = path.partition(b"?")[0].rstrip(b"/").split(b"/")[1:]
    if parts[:2] == [b"v2", b"models"] and len(parts) > 2:
        return _model_route(parts[2:])
    if parts[:2] == [b"v1", b"models"] and len(parts) == 3:
        return _v1_route(parts[2])
    if parts[:1] == [b"v1"] and (openai := OPENAI_PATHS.get(b"/" + b"/".join(parts))) is not None:
        return Route(openai, b"POST")
    calls = {(b"v2",): "server", (b"v2", b"health", b"live"): "live", (b"v2", b"health", b"ready"): "ready"}
    call = calls.get(tuple(parts))
    return None if call is None else Route(call, b"GET")


def _model_route(parts: list[bytes]) -> Route | None:
    model, version = _text(parts[0]), ""
    rest = parts[1:]
    if rest[:1] == [b"versions"] and len(rest) > 1:
        version = _text(rest[1])
        rest = rest[2:]
        if not version:
            return None
    calls = {
        (): ("metadata", b"GET"),
        (b"ready",): ("model_ready", b"GET"),
        (b"infer",): ("infer", b"POST"),
        (b"generate",): ("generate", b"POST"),
        (b"generate_stream",): ("generate_stream", b"POST"),
    }
    found = calls.get(tuple(rest))
    return None if found is None or not model else Route(*found, model, version)


def _v1_route(part: bytes) -> Route | None:
    name = _text(part)
    if name.endswith(":predict"):
        return Route("v1_predict", b"POST", name[:-8]) if name != ":predict" else None
    return Route("v1_ready", b"GET", name) if name else None


def _text(part: bytes) -> str:
    return unquote_to_bytes(part).decode("utf-8", "replace")
