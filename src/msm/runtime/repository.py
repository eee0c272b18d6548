"""The versions this worker holds: load, unload, find, index.

Stands between the control API and the engines. Loads are single flight for each version and run in a thread, so that
serving goes on. It does not decide what is held: the node does.
"""

from __future__ import annotations

import asyncio
import logging
import weakref
from pathlib import Path
from time import perf_counter
from typing import Any

import msgspec

from msm.kit.errors import Conflict, InvalidInput, MsmError, Unavailable
from msm.kit.tasks import Tasks
from msm.runtime import formats, memory, warmup
from msm.runtime.acceleration import model as acceleration
from msm.runtime.batching import Limits
from msm.runtime.engine import TIMEOUT_S, Engine, Settings, Shell
from msm.runtime.formats.base import LoadedModel, LoadOptions, tasks_of
from msm.runtime.generation import MAX_STREAM_S, MAX_STREAMS, Generation, StreamShell
from msm.runtime.generation import Limits as StreamLimits
from msm.runtime.signature import Signature
from msm.runtime.solo import SoloModel, SoloSpec
from msm.runtime.threads import Threads

log = logging.getLogger(__name__)

_WORTH_TRIMMING = 1024 * 1024
_TRIM_EVERY = 32
_STREAM_THREADS = 64  # streams of plain generators that may be open at once, over all versions


class LoadSpec(msgspec.Struct, frozen=True, kw_only=True):
    """What the node says to have a version loaded. `timeout_s` bounds a request, `predict_s` is what one takes.
    `accelerated` is the file of the converted model that is loaded in place of the artifact."""

    path: str
    format: str | None = None
    digest: str | None = None
    trusted: bool = False
    parameters: dict[str, Any] = {}
    signature: Signature | None = None
    timeout_s: float | None = None
    predict_s: float | None = None
    accelerated: str | None = None


class Tuning(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """The version's parameters that are the worker's own; formats read others from the same mapping.

    `own_process` true gives the model a process of its own from the start, false never, None when that is found better.
    """

    batching: bool = True
    max_batch_size: int = 64
    max_batch_bytes: int = 8 * 1024 * 1024
    max_queue: int = 2048
    max_concurrency: int = 1
    own_process: bool | None = None
    max_streams: int = MAX_STREAMS
    max_stream_seconds: float = MAX_STREAM_S


class LoadResult(msgspec.Struct, frozen=True):
    """What was loaded."""

    format: str
    signature: Signature
    load_seconds: float


class IndexEntry(msgspec.Struct, frozen=True, kw_only=True):
    """One version in the index of the worker."""

    name: str
    state: str
    digest: str | None = None
    in_flight: int = 0
    queued: int = 0
    requests: int = 0
    failures: int = 0
    idle_s: float | None = None
    load_seconds: float | None = None
    execution: str | None = None


class _Held(msgspec.Struct, frozen=True):
    engine: Engine
    streams: Generation | None
    result: LoadResult
    digest: str | None
    size: int
    tasks: frozenset[str]


class Repository:
    """All versions of this worker by target ("namespace/model/version"). Used from the event loop only."""

    def __init__(self, shell: Shell, loaders: Threads, tasks: Tasks) -> None:
        self._shell = shell
        self._loaders = loaders
        self._tasks = tasks
        self._held: dict[str, _Held] = {}
        self._loading: dict[str, asyncio.Task[LoadResult]] = {}
        self._unloading: dict[str, asyncio.Task[None]] = {}
        self._streams = StreamShell(shell, Threads(_STREAM_THREADS, "stream"), tasks)
        self._unloaded = 0
        self._stopping = False

    def find(self, target: str) -> Engine | None:
        """The engine of a version that is held, in whatever state."""
        held = self._held.get(target)
        return None if held is None else held.engine

    def streams(self, target: str) -> Generation | None:
        """What runs the generating calls of a version that is held, None for one that does not generate."""
        held = self._held.get(target)
        return None if held is None else held.streams

    def tasks(self, target: str) -> frozenset[str]:
        """What a version that is held offers beyond `predict`."""
        held = self._held.get(target)
        return frozenset() if held is None else held.tasks

    def result(self, target: str) -> LoadResult | None:
        """What was found out when the version was loaded."""
        held = self._held.get(target)
        return None if held is None else held.result

    def newest_of(self, model: str) -> str | None:
        """The target of the version of `model` ("namespace/name") that was loaded last."""
        return next((target for target in reversed(self._held) if target.rpartition("/")[0] == model), None)

    async def load(self, target: str, spec: LoadSpec) -> LoadResult:
        """Load a version, or wait for the load that runs already, or return at once when it is held.

        Raises LoadFailed and the other errors of `formats.load`; Conflict when it is held with another digest.
        """
        if self._stopping:
            raise Unavailable("this worker is stopping", reason="stopping")
        unloading = self._unloading.get(target)
        if unloading is not None:
            await asyncio.wait([unloading])
        held = self._held.get(target)
        if held is not None:
            if held.digest != spec.digest:
                raise Conflict(f"version {target} is held with digest {held.digest}", reason="other_digest")
            return held.result
        task = self._loading.get(target)
        if task is None:
            tuning = _tuning(spec)
            task = self._tasks.start(f"load {target}", self._load(target, spec, tuning))
            self._loading[target] = task
            task.add_done_callback(lambda _: self._loading.pop(target, None))
        return await asyncio.shield(task)

    async def _load(self, target: str, spec: LoadSpec, tuning: Tuning) -> LoadResult:
        path = Path(spec.accelerated or spec.path)
        box, label = self._shell.blackbox, target
        requests = warmup.requests_of(spec.parameters)

        def work() -> tuple[formats.Loaded, float, int]:
            slot = box.enter_target(label)
            started = perf_counter()
            try:
                loaded = _loaded(spec)
                seconds = perf_counter() - started
                warmup.run(loaded.model, requests, takes_zeros=spec.predict_s is not None)
            finally:
                box.leave(slot)
            return loaded, seconds, _size(path)

        loaded, seconds, size = await self._loaders.call(work)
        settings, streams, tasks = _settings(spec, tuning), None, tasks_of(loaded.model)
        if tasks - {"embed"}:
            limits = StreamLimits(tuning.max_streams, tuning.max_stream_seconds)
            streams = Generation(target, loaded.model, settings, limits, self._streams)
        solo = SoloSpec(
            path=spec.path, format=loaded.format, trusted=spec.trusted,
            parameters=spec.parameters, signature=spec.signature,
        )  # fmt: skip
        engine = Engine(target, loaded.model, settings, self._shell, lambda engine: self._move(engine, solo))
        result = LoadResult(loaded.format, engine.signature, seconds)
        self._held[target] = _Held(engine, streams, result, spec.digest, size, tasks)
        if tuning.own_process:
            await self._moved(engine, SoloModel(solo, loaded.model))
        log.info("loaded", extra={"target": target, "format": loaded.format, "seconds": round(seconds, 4)})
        return result

    def _move(self, engine: Engine, spec: SoloSpec) -> None:
        """Give the model of an engine a process of its own; it serves where it is until that holds the model."""
        original = engine.model
        if original is not None:
            self._tasks.start(f"move {engine.target}", self._moved(engine, SoloModel(spec, original)))

    async def _moved(self, engine: Engine, solo: SoloModel) -> None:
        try:
            await self._loaders.call(solo.start)
        except MsmError as error:
            log.warning("the model stays in the worker: %s", error.message, extra={"target": engine.target})
            return
        model = [engine.move(solo)]
        await self._loaders.call(lambda: _free(model, trim=True))
        log.info("moved into a process of its own", extra={"target": engine.target, "pid": solo.pid})

    async def prepare(self, name: str) -> None:
        """Import what loads of a format will need. Raises Unsupported for an unknown format."""
        await self._loaders.call(lambda: formats.prepare(name))

    async def unload(self, target: str, drain_s: float) -> None:
        """Stop serving a version; return when its last request is answered and its memory is given back.

        A version that is not held is no error. One that is loading is unloaded after its load.
        """
        loading = self._loading.get(target)
        if loading is not None:
            await asyncio.wait([loading])
        task = self._unloading.get(target)
        if task is None:
            held = self._held.get(target)
            if held is None:
                return
            task = self._tasks.start(f"unload {target}", self._unload(target, held, drain_s))
            self._unloading[target] = task
            task.add_done_callback(lambda _: self._unloading.pop(target, None))
        await asyncio.shield(task)

    async def _unload(self, target: str, held: _Held, drain_s: float) -> None:
        await _drain(held, drain_s)
        self._unloaded += 1
        trim = held.size >= _WORTH_TRIMMING or self._unloaded % _TRIM_EVERY == 0
        del self._held[target]
        if held.streams is not None:
            held.streams.close()
        model = [held.engine.close()]
        del held
        await self._loaders.call(lambda: _free(model, trim=trim))
        log.info("unloaded", extra={"target": target})

    def index(self) -> list[IndexEntry]:
        """All versions, also those on their way in or out."""
        now = self._shell.loop.time()
        entries = [_entry(target, held, now) for target, held in self._held.items()]
        entries += [IndexEntry(name=target, state="LOADING") for target in self._loading if target not in self._held]
        return entries

    async def stop(self, drain_s: float) -> None:
        """Take no more requests and loads; return when all that was accepted is answered, at most after `drain_s`."""
        self._stopping = True
        await asyncio.gather(*(_drain(held, drain_s) for held in list(self._held.values())))


async def _drain(held: _Held, drain_s: float) -> None:
    ends = [held.engine.drain(drain_s)]
    if held.streams is not None:
        ends.append(held.streams.drain(drain_s))
    await asyncio.gather(*ends)


def _tuning(spec: LoadSpec) -> Tuning:
    try:
        tuning = msgspec.convert(spec.parameters, Tuning)
    except msgspec.ValidationError as error:
        raise InvalidInput(f"parameters: {str(error).replace('`', chr(39))}", reason="invalid_parameter") from error
    limits = (tuning.max_batch_size, tuning.max_batch_bytes, tuning.max_queue, tuning.max_concurrency)
    if min(*limits, tuning.max_streams) < 1 or not tuning.max_stream_seconds > 0:
        raise InvalidInput(
            "parameters: every limit of batches and queues must be at least 1", reason="invalid_parameter"
        )
    return tuning


def _settings(spec: LoadSpec, tuning: Tuning) -> Settings:
    return Settings(
        timeout_s=spec.timeout_s or TIMEOUT_S,
        max_queue=tuning.max_queue,
        max_concurrency=tuning.max_concurrency,
        batching=tuning.batching,
        limits=Limits(tuning.max_batch_size, tuning.max_batch_bytes),
        predict_s=spec.predict_s,
        may_move=tuning.own_process is not False,
    )


def _loaded(spec: LoadSpec) -> formats.Loaded:
    if spec.accelerated is not None:
        return formats.Loaded(spec.format or "", acceleration.load(Path(spec.accelerated)))
    return formats.load(Path(spec.path), spec.format, LoadOptions(spec.trusted, spec.parameters, spec.signature))


def _entry(target: str, held: _Held, now: float) -> IndexEntry:
    parts = [part for part in (held.engine, held.streams) if part is not None]
    counters = [part.counters for part in parts]
    in_flight = sum(counter.in_flight for counter in counters)
    return IndexEntry(
        name=target,
        state="HUNG" if any(part.state == "HUNG" for part in parts) else held.engine.state,
        digest=held.digest,
        in_flight=in_flight,
        queued=sum(part.queued for part in parts),
        requests=sum(counter.requests for counter in counters),
        failures=sum(counter.failures for counter in counters),
        idle_s=0.0 if in_flight else now - max(counter.last_used for counter in counters),
        load_seconds=held.result.load_seconds,
        execution=str(held.engine.execution),
    )


def _size(path: Path) -> int:
    if path.is_file():
        return path.stat().st_size
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def _free(model: list[LoadedModel | None], *, trim: bool) -> None:
    """Let go of the model and return its memory. Looks for cycles only when it is still there without references."""
    last = model.pop()
    try:
        still = weakref.ref(last) if last is not None else None
    except TypeError:  # a class with slots and without weak references
        still = None
    del last
    if still is not None and still() is not None:
        memory.collect()
    if trim:
        memory.give_back()
