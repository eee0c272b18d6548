"""Takes requests whose copies all died: waits until their version is ready again somewhere and relays them there.

Envoy sends a request here only when every copy is gone or two attempts on copies have failed. The whole request is read
first, because it is needed again; the answer is passed on as it comes. When a worker dies over it again, the activator
says whether it may be sent once more: it knows whom the death is blamed on.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

from msm.gateway.activation import Activator
from msm.gateway.answers import error_answer
from msm.gateway.messages import AnswerReader, Request, RequestReader, raw_answer
from msm.kit.errors import DeadlineExceeded, Internal, MsmError, Unavailable
from msm.kit.tasks import backoff_s
from msm.observe.logs import get_logger
from msm.xds.names import TARGET_HEADER

CHUNK = 256 * 1024
CONNECT_ATTEMPTS = 12  # 3.5 s in all: longer than it takes to see that a worker is gone
log = get_logger("rescue")


class RescueProxy:
    """An HTTP/1.1 server on the unix socket `path`.

    `rescued` counts requests that a worker answered in the end, `failed` those that were refused or given up. A request
    larger than `limit_bytes` is refused; a wait ends after `hold_s` seconds.
    """

    def __init__(self, path: Path, activator: Activator, *, limit_bytes: int, hold_s: float) -> None:
        self._path = path
        self._activator = activator
        self._limit = limit_bytes
        self._hold_s = hold_s
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()
        self.rescued = 0
        self.failed = 0

    async def start(self) -> None:
        """Begin to serve. A socket file that a dead process left behind is replaced."""
        self._path.unlink(missing_ok=True)
        self._server = await asyncio.start_unix_server(self._accept, self._path, limit=CHUNK, backlog=4096)
        self._path.chmod(0o600)

    async def stop(self) -> None:
        """End all waits and relays; Envoy answers their callers."""
        if self._server is not None:
            self._server.close()
            self._server = None
        for task in self._connections:
            task.cancel()
        if self._connections:
            await asyncio.wait(self._connections)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.get_running_loop().create_task(self._serve(reader, writer))
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One request; the connection ends with it."""
        try:
            parser = RequestReader(self._limit)
            try:
                while not parser.complete:
                    if not (data := await reader.read(CHUNK)):
                        return
                    parser.feed(data)
                await self._while_wanted(reader, writer, parser.request)
            except MsmError as error:
                self.failed += 1
                writer.write(
                    raw_answer(error_answer(error, openai=parser.request.openai), grpc_caller=parser.request.grpc)
                )
                await writer.drain()
        except OSError as error:
            log.debug("the connection of a rescued request broke", error=repr(error))
        finally:
            writer.close()

    async def _while_wanted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: Request) -> None:
        """Work on the request until it is answered or Envoy hangs up, because its client did or its time is over."""
        work = asyncio.ensure_future(self._answer(request, writer))
        gone = asyncio.ensure_future(reader.read())
        try:
            await asyncio.wait((work, gone), return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                work.result()
        finally:
            for task in (work, gone):
                task.cancel()
            await asyncio.wait((work, gone))

    async def _answer(self, request: Request, writer: asyncio.StreamWriter) -> None:
        target = request.headers.get(TARGET_HEADER)
        if target is None:
            raise Unavailable("no worker of this node is ready")
        answered, deaths = False, 0
        while not answered:
            try:
                async with asyncio.timeout(self._hold_s):
                    worker = await self._reach(target, deaths)
            except TimeoutError as error:
                raise DeadlineExceeded(f"{target} was not ready again within {self._hold_s:g} s") from error
            try:
                answered = await self._relay(target, request, worker, writer)
            finally:
                worker[1].close()
            deaths += 1

    async def _reach(self, target: str, deaths: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A connection to a worker that holds `target`. One that cannot be connected to has just died: ask again."""
        for attempt in range(CONNECT_ATTEMPTS):
            socket = await self._ask(target, deaths)
            try:
                return await asyncio.open_unix_connection(socket, limit=CHUNK)
            except OSError as error:
                log.info("a worker named for a rescue cannot be reached", target=target, error=repr(error))
                await asyncio.sleep(backoff_s(attempt, base_s=0.02, most_s=0.5))
        raise Unavailable(f"the workers that hold {target} cannot be reached")

    async def _ask(self, target: str, deaths: int) -> str:
        try:
            return await self._activator.rescue(target, deaths)
        except MsmError:
            raise
        except Exception as error:
            log.exception("a rescue failed", target=target)
            raise Internal(f"finding a worker for {target} failed; the log of the node says why") from error

    async def _relay(
        self,
        target: str,
        request: Request,
        worker: tuple[asyncio.StreamReader, asyncio.StreamWriter],
        writer: asyncio.StreamWriter,
    ) -> bool:
        """Pass the request and its answer on; False when the worker died before the answer began."""
        answers, requests = worker
        answer = AnswerReader(request.method)
        begun = False
        try:
            requests.write(request.raw)
            await requests.drain()
            while not answer.complete and (data := await answers.read(CHUNK)):
                if out := answer.feed(data):
                    begun = True
                    writer.write(out)
                    await writer.drain()
        except OSError as error:
            log.info("a worker died over a rescued request", target=target, error=repr(error))
        if answer.complete:
            self.rescued += 1
        elif begun:
            self.failed += 1  # the answer had begun: closing the connection tells that it is not whole
        return begun
