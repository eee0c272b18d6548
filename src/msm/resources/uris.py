"""The rules for artifact addresses: which schemes, and what an address must not carry.

Whether a host may be reached or a file be read is decided where it is fetched; here only the text is judged.
"""

from __future__ import annotations

from collections.abc import Iterator
from urllib.parse import SplitResult, unquote, urlsplit

from msm.resources.text import has_control, shown

SCHEMES = ("file", "http", "https", "s3")
MAX_URI = 2048


def uri_problems(uri: str) -> tuple[str, ...]:
    """Each rule that `uri` breaks, as a sentence. Credentials in it are not repeated in the sentence."""
    if not uri:
        return (f"is empty; an address with one of the schemes {', '.join(SCHEMES)} is needed",)
    if len(uri) > MAX_URI:
        return (f"is {len(uri)} characters long; at most {MAX_URI} are allowed",)
    if has_control(uri) or "\\" in uri or " " in uri:
        return ("holds a space, a backslash, a line break or another control character; encode it with %",)
    try:
        parts = urlsplit(uri)
        port = parts.port
    except ValueError:
        return ("is not a valid address",)
    if parts.scheme not in SCHEMES:
        scheme = shown(parts.scheme) if parts.scheme else "missing"
        return (f"has the scheme {scheme}; allowed are {', '.join(SCHEMES)}",)
    return tuple(_part_problems(parts, port))


def _part_problems(parts: SplitResult, port: int | None) -> Iterator[str]:
    if "@" in parts.netloc:
        yield "carries a user name or password; credentials do not belong in an address"
    if parts.fragment:
        yield "has a fragment (#); encode the character as %23 when it belongs to the path"
    decoded = unquote(parts.path)
    if has_control(decoded):
        yield "holds an encoded control character"
    if ".." in decoded.replace("\\", "/").split("/"):
        yield "has '..' as a part of its path; name the place directly"
    match parts.scheme:
        case "file":
            yield from _file_problems(parts)
        case "s3":
            yield from _s3_problems(parts, port)
        case _:
            if not parts.hostname:
                yield "names no host"


def _file_problems(parts: SplitResult) -> Iterator[str]:
    if parts.netloc not in ("", "localhost") and "@" not in parts.netloc:
        yield f"names the host {shown(parts.netloc)}; a file address is written file:///path"
    if parts.query:
        yield "has a query (?); encode the character as %3F when it belongs to the path"
    if not parts.path.startswith("/") or parts.path.strip("/") == "":
        yield "names no absolute path; a file address is written file:///path"


def _s3_problems(parts: SplitResult, port: int | None) -> Iterator[str]:
    if not parts.hostname or port is not None:
        yield "names no bucket; an S3 address is written s3://bucket/key"
    if parts.path.strip("/") == "":
        yield "names no key; an S3 address is written s3://bucket/key"
