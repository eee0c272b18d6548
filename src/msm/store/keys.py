"""Where the mesh's records live in the store.

    /msm/res/{kind}/{namespace}/{name}          the declared object
    /msm/rev/{kind}/{namespace}/{name}/{n:08d}  its n-th accepted change, never rewritten
    /msm/gone/{kind}/{namespace}/{name}         the number of its last deletion
    /msm/status/{kind}/{namespace}/{name}       what the mesh found out about it
    /msm/cost/{digest}/{format}                 what an artifact was measured to cost
    /msm/event/{hour}/{id}                      a batch of events

Names hold no '/', so every key reads back without doubt.
"""

from __future__ import annotations

from msm.resources.meta import ObjectKey

ROOT = b"/msm/"
RES = b"/msm/res/"
REV = b"/msm/rev/"
GONE = b"/msm/gone/"
STATUS = b"/msm/status/"
COST = b"/msm/cost/"
EVENT = b"/msm/event/"


def res_key(key: ObjectKey) -> bytes:
    return _object(RES, key)


def status_key(key: ObjectKey) -> bytes:
    return _object(STATUS, key)


def gone_key(key: ObjectKey) -> bytes:
    return _object(GONE, key)


def rev_prefix(key: ObjectKey) -> bytes:
    return _object(REV, key) + b"/"


def rev_key(key: ObjectKey, generation: int) -> bytes:
    return rev_prefix(key) + b"%08d" % generation


def scope(root: bytes, kind: str, namespace: str | None) -> bytes:
    """The prefix of all objects of a kind, of one namespace or of all."""
    return root + f"{kind}/".encode() + (b"" if namespace is None else f"{namespace}/".encode())


def object_of(key: bytes) -> ObjectKey | None:
    """The object that a key under RES or STATUS is about; None for any other key."""
    for root in (RES, STATUS):
        if key.startswith(root):
            parts = key[len(root) :].decode().split("/")
            return ObjectKey(*parts) if len(parts) == 3 else None
    return None


def cost_key(digest: str, fmt: str) -> str:
    """Names a measurement: the same bytes cost differently in another format."""
    return f"{digest}/{fmt}"


def _object(root: bytes, key: ObjectKey) -> bytes:
    return root + f"{key.kind}/{key.namespace}/{key.name}".encode()
