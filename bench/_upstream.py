"""An HTTP/1.1 server on a unix socket that reads each request whole and answers the same at once.

python -m bench._upstream SOCKET
"""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import uvloop

BODY = b'{"model_name":"iris","outputs":[{"name":"y","shape":[1,3],"datatype":"FP32","data":[0.1,0.2,0.7]}]}'
ANSWER = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%s" % (len(BODY), BODY)
LENGTH = b"\r\ncontent-length: "


class Connection(asyncio.Protocol):
    """Envoy sends one request a connection at a time, with a lower-case content length."""

    def connection_made(self, transport: Any) -> None:  # uvloop's transports are no asyncio.Transport
        self._transport = transport
        self._data = b""

    def data_received(self, data: bytes) -> None:
        data = self._data + data if self._data else data
        head = data.find(b"\r\n\r\n")
        at = data.find(LENGTH, 0, head)
        length = int(data[at + len(LENGTH) : data.index(b"\r", at + len(LENGTH))]) if 0 <= at < head else 0
        if head < 0 or len(data) < head + 4 + length:
            self._data = data
            return
        self._data = b""
        self._transport.write(ANSWER)


async def main() -> None:
    server = await asyncio.get_running_loop().create_unix_server(Connection, sys.argv[1], backlog=4096)
    print("ready", flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main())
