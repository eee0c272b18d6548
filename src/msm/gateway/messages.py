"""HTTP/1.1 messages as the rescue proxy needs them: where they end, a few headers, the bytes kept as they are."""

from __future__ import annotations

from dataclasses import dataclass, field

import httptools

from msm.gateway.answers import ErrorAnswer, is_grpc
from msm.http.status import PHRASES, percent_encode
from msm.kit.errors import InputTooLarge, InvalidInput, Unavailable
from msm.xds.names import DIALECT_HEADER, OPENAI_DIALECT


@dataclass(slots=True)
class Request:
    """One request, whole: its bytes as they came, and its headers (lower case)."""

    raw: bytearray = field(default_factory=bytearray)
    headers: dict[str, str] = field(default_factory=dict)
    method: str = ""

    @property
    def grpc(self) -> bool:
        return is_grpc(self.headers.get("content-type", ""))

    @property
    def openai(self) -> bool:
        return self.headers.get(DIALECT_HEADER) == OPENAI_DIALECT


class RequestReader:
    """Reads one request to its end."""

    def __init__(self, limit_bytes: int) -> None:
        self.request = Request()
        self.complete = False
        self._limit = limit_bytes
        self._parser = httptools.HttpRequestParser(self)

    def feed(self, data: bytes) -> None:
        """Take bytes in. Raises InputTooLarge past the limit and InvalidInput for what isn't HTTP."""
        self.request.raw += data
        if len(self.request.raw) > self._limit:
            raise InputTooLarge(f"the request is larger than the {self._limit} bytes that can be replayed")
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            raise InvalidInput("the request is not valid HTTP/1.1") from error

    def on_header(self, name: bytes, value: bytes) -> None:
        self.request.headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        self.request.method = self._parser.get_method().decode("ascii")

    def on_message_complete(self) -> None:
        self.complete = True


class AnswerReader:
    """Finds the end of an answer and takes its connection header out of it.

    The proxy serves one request a connection, so it says `connection: close` whatever the worker said.
    """

    def __init__(self, method: str) -> None:
        self.complete = False
        self._bodiless = method == "HEAD"
        self._head = bytearray()
        self._in_body = False
        self._parser = httptools.HttpResponseParser(self)

    def feed(self, data: bytes) -> bytes:
        """Take bytes of the worker in, give those for the client back. Raises Unavailable for what isn't HTTP."""
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            raise Unavailable("the worker answered with something that is not HTTP/1.1") from error
        if self._in_body:
            return data
        self._head += data
        end = self._head.find(b"\r\n\r\n")
        if end < 0:
            return b""
        self._in_body = True
        lines = bytes(self._head[:end]).split(b"\r\n")
        kept = [line for line in lines[1:] if not line.lower().startswith((b"connection:", b"keep-alive:"))]
        return b"\r\n".join((lines[0], b"connection: close", *kept)) + bytes(self._head[end:])

    def on_headers_complete(self) -> None:
        if self._bodiless:
            self.complete = True

    def on_message_complete(self) -> None:
        if self._parser.get_status_code() >= 200:  # not for an interim answer
            self.complete = True


def raw_answer(answer: ErrorAnswer, *, grpc_caller: bool) -> bytes:
    """An error as the bytes of an HTTP/1.1 answer; for gRPC without a body and with the status among the headers."""
    if grpc_caller:
        lines = [
            "HTTP/1.1 200 OK",
            "content-type: application/grpc",
            f"grpc-status: {answer.grpc_status}",
            f"grpc-message: {percent_encode(answer.message).decode()}",
            "content-length: 0",
            "connection: close",
        ]
        return "\r\n".join(lines).encode("ascii") + b"\r\n\r\n"
    status = answer.http_status
    lines = [
        f"HTTP/1.1 {status} {PHRASES.get(status, 'Error')}",
        "content-type: application/json",
        f"content-length: {len(answer.body)}",
        "connection: close",
    ]
    if answer.retry_after is not None:
        lines.append(f"retry-after: {answer.retry_after}")
    return "\r\n".join(lines).encode("ascii") + b"\r\n\r\n" + answer.body
