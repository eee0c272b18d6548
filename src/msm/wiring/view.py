"""The node as the API sees it: the agent, together with what the gateway tells about itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from msm.gateway.envoy import EnvoyProcess, binary_version
from msm.node.agent import Agent
from msm.planning.activation import ActivationRequest
from msm.resources.meta import ObjectKey
from msm.resources.observed import Explanation, GatewayStatus, NodeStatus, Reason
from msm.resources.serving import Model, VersionKey
from msm.xds.server import AdsServer

PATIENCE_S = 120.0  # how long a load that was asked for by the API may take


@dataclass(slots=True)
class RunningNode:
    """Implements `msm.api.NodeView`."""

    agent: Agent
    envoy: EnvoyProcess
    ads: AdsServer
    gateway: str
    adopted: bool = False

    def snapshot(self) -> NodeStatus:
        status = GatewayStatus(
            pid=self.envoy.pid,
            address=self.gateway,
            version=binary_version(),
            connected=self.ads.connected,
            adopted=self.adopted,
        )
        return self.agent.snapshot(status)

    def explain(self, key: ObjectKey) -> Explanation:
        return self.agent.explain(key)

    def preview(self, models: Sequence[Model]) -> tuple[Reason, ...]:
        return self.agent.preview(models)

    async def activate(self, service: str, version: str | None) -> None:
        await self.agent.activate(ActivationRequest(service, version, grpc=False, deadline_s=PATIENCE_S))

    async def deactivate(self, service: str, version: str | None) -> None:
        await self.agent.deactivate(service, version)

    def fetched_bytes(self, key: VersionKey) -> int | None:
        return self.agent.fetched_bytes(key)

    def log_path(self, worker_id: str) -> Path:
        return self.agent.log_path(worker_id)
