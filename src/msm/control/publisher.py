"""Brings the plan of a service into the proxy, make before break.

Clusters and endpoints first; when the proxy has accepted them, the scope that names them. Clusters that nothing names
any more lose their copies and are removed a while later, because requests may still be replayed in them. So there is no
moment in which a route, or a request that found its route before, names what isn't there.
Knows nothing of why a plan is as it is.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Callable, Collection, Iterable
from dataclasses import dataclass, field

from msm.kit.clock import Clock
from msm.kit.errors import Internal
from msm.observe.logs import get_logger
from msm.planning.routing import Endpoint, ServicePlan
from msm.xds.names import CDS, EDS, RDS, SRDS, WORKERS_CLUSTER
from msm.xds.server import AdsServer
from msm.xds.snapshot import Change, Key, Resource, problems, versioned
from msm.xds.translate import Translator

DEADLINE_S = 2.0
LINGER_S = 30.0  # longer than a replayed request waits for a copy
BATCH = 500
Report = Callable[[str, str, str], None]  # subject, reason, message of an event
log = get_logger("publisher")


@dataclass(slots=True)
class _Turn:
    """The lock of one service, alive while somebody holds or awaits it."""

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    users: int = 0


class Publisher:
    """Owns the proxy's world. Calls for one service run one after the other, different services run in parallel.

    No call waits longer than `deadline_s` for each of its steps when the proxy is silent; it then goes on and says so
    through `report`. With no proxy connected nothing is waited for: it gets the whole world when it comes.
    """

    def __init__(
        self,
        ads: AdsServer,
        translator: Translator,
        report: Report,
        clock: Clock,
        *,
        deadline_s: float = DEADLINE_S,
        linger_s: float = LINGER_S,
    ) -> None:
        self._ads = ads
        self._translator = translator
        self._report = report
        self._clock = clock
        self._deadline_s = deadline_s
        self._linger_s = linger_s
        self._leaving: dict[str, float] = {}  # clusters that nothing names, and when they go
        self._owned: dict[str, frozenset[Key]] = {}
        self._turns: dict[str, _Turn] = {}
        ads.apply(Change(versioned(translator.internal())))
        ads.apply(Change(versioned(translator.workers(()))))

    def services(self) -> Collection[str]:
        """The services that the proxy knows."""
        return self._owned.keys()

    async def publish(self, plan: ServicePlan) -> None:
        """Make the proxy follow `plan`; returns when it does. Publishing the same plan again does nothing."""
        async with self._turn(plan.service):
            await self._publish((plan,))

    async def publish_many(self, plans: Iterable[ServicePlan]) -> None:
        """The same for many services as one batch: every step waits once for all of them."""
        by_service = {plan.service: plan for plan in plans}
        async with contextlib.AsyncExitStack() as turns:
            for service in sorted(by_service):  # a fixed order: two batches can't wait for each other
                await turns.enter_async_context(self._turn(service))
            await self._publish(tuple(by_service.values()))

    async def remove(self, service: str) -> None:
        """Make the proxy forget the service: requests for it get 404. Removing an unknown service does nothing."""
        async with self._turn(service):
            owned = self._owned.get(service, frozenset())
            await self._step(service, Change(removes=_of(owned, SRDS)))
            await self._let_go(service, owned)
            self._owned.pop(service, None)

    async def set_workers(self, endpoints: Iterable[Endpoint]) -> None:
        """The node's workers: where cold requests and calls to the server as a whole go. Returns when it is live."""
        async with self._turn("~workers"):
            wanted = versioned(self._translator.workers(endpoints))
            await self._step(WORKERS_CLUSTER, self._ads.world.difference(wanted, ()))

    async def _publish(self, plans: Collection[ServicePlan]) -> None:
        wanted: dict[str, tuple[Resource, ...]] = {}
        for count, plan in enumerate(plans, start=1):
            wanted[plan.service] = self._resources(plan)
            if count % BATCH == 0:
                await asyncio.sleep(0)  # thousands at once must not stop the event loop
        keys = {service: frozenset(r.key for r in resources) for service, resources in wanted.items()}
        for service, new in keys.items():  # both old and new until the end: whoever is interrupted leaves no orphan
            self._owned[service] = self._owned.get(service, frozenset()) | new
        owned = [key for service in keys for key in self._owned[service]]
        for resource in itertools.chain.from_iterable(wanted.values()):
            if resource.type_url == CDS:
                self._leaving.pop(resource.name, None)
        change = self._ads.world.difference(itertools.chain.from_iterable(wanted.values()), owned)
        about = next(iter(plans)).service if len(plans) == 1 else f"{len(plans)} services"
        await self._step(about, change.only(CDS, EDS))
        await self._step(about, change.only(SRDS, RDS))
        await self._let_go(about, change.removes)
        self._owned.update(keys)

    async def run(self) -> None:
        """Remove clusters whose time has come, for ever."""
        while True:
            await self._clock.sleep(self._linger_s / 6)
            await self.sweep()

    async def sweep(self) -> None:
        """Remove the clusters that have lingered long enough."""
        now = self._clock.monotonic()
        due = [name for name, at in self._leaving.items() if at <= now]
        for name in due:
            del self._leaving[name]
        await self._step(
            "clusters without copies", Change(removes=tuple((kind, n) for kind in (CDS, EDS) for n in due))
        )

    async def _let_go(self, about: str, gone: Iterable[Key]) -> None:
        """Take the copies from clusters that nothing names any more; the rescue endpoint is left to them."""
        names = [name for kind, name in gone if kind == CDS]
        at = self._clock.monotonic() + self._linger_s
        self._leaving.update((name, at) for name in names)
        emptied = versioned({EDS: {name: self._translator.emptied(name) for name in names}})
        await self._step(about, self._ads.world.difference(emptied, ()))

    def _resources(self, plan: ServicePlan) -> tuple[Resource, ...]:
        resources = versioned(self._translator.service(plan))
        if found := problems(resources, self._ads.world):
            raise Internal(f"the routes of {plan.service} are inconsistent: {'; '.join(found)}")
        return resources

    async def _step(self, about: str, change: Change) -> None:
        if not change:
            return
        self._ads.apply(change)
        outcome = await self._ads.wait_acked(change.keys, self._deadline_s)
        for key, reason in outcome.refused:
            self._report(f"route/{key[1]}", "RouteRefused", f"the proxy refused {key[1]}: {reason}")
        if outcome.missing:
            self._report(
                f"route/{about}",
                "RouteLate",
                f"the proxy has not confirmed {len(outcome.missing)} resources of {about} "
                f"within {self._deadline_s:g} s; going on",
            )

    @contextlib.asynccontextmanager
    async def _turn(self, service: str) -> AsyncIterator[None]:
        turn = self._turns.setdefault(service, _Turn())
        turn.users += 1
        try:
            async with turn.lock:
                yield
        finally:
            turn.users -= 1
            if not turn.users:
                del self._turns[service]


def _of(keys: Iterable[Key], *types: str) -> tuple[Key, ...]:
    return tuple(sorted(key for key in keys if key[0] in types))
