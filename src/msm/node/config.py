"""Settings of a node's agent. The composition root fills them; nothing here reads files or the environment."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from msm.kit.errors import InvalidInput
from msm.planning.picture import Limits

SOCKET_PATH_LIMIT = 107
LONGEST_SOCKET_NAME = "w123.ctl.sock"


def default_workers() -> int:
    """One worker per core that this process may use."""
    return len(os.sched_getaffinity(0))


def default_capacity() -> int:
    """70 % of the machine's memory: the rest is for Envoy, this process, page cache and the models' peaks."""
    return int(psutil.virtual_memory().total * 0.7)


@dataclass(frozen=True, slots=True)
class S3Settings:
    """How `s3://` is reached.

    `endpoint_url` names a server other than AWS (None: AWS). The credentials are read from the environment
    variables named here at each fetch, so that no secret stands in a configuration; unset ones mean anonymous
    access.
    """

    endpoint_url: str | None = None
    key_env: str = "AWS_ACCESS_KEY_ID"
    secret_env: str = "AWS_SECRET_ACCESS_KEY"  # noqa: S105  (the name of a variable, not a secret)
    token_env: str = "AWS_SESSION_TOKEN"  # noqa: S105
    region: str | None = None


@dataclass(frozen=True, slots=True)
class FetchSettings:
    """What may be fetched, and how much.

    `file_roots`: folders below which `file://` may read; None (a node of one person) allows any path.
    `private_hosts`: "host:port" pairs that may be fetched from although their address is private, loopback or
    link-local; all other such addresses are refused, so that a model's address cannot reach into the network
    behind the node. `max_artifact_bytes` (32 GiB) bounds one artifact, `max_files` (10,000) the files of a
    folder. `timeout_s` (600) bounds a whole fetch, `idle_timeout_s` (20) the silence within it.
    """

    file_roots: tuple[str, ...] | None = None
    private_hosts: frozenset[str] = frozenset()
    max_artifact_bytes: int = 32 << 30
    max_files: int = 10_000
    max_redirects: int = 3
    timeout_s: float = 600.0
    idle_timeout_s: float = 20.0
    s3: S3Settings = S3Settings()


@dataclass(frozen=True, slots=True)
class NodeSettings:
    """Settings of one node.

    data_dir: artifacts and logs; survives restarts.
    run_dir: sockets and the record of the living workers; on one machine until reboot, mode 0700. Short,
    because a socket's path holds at most 107 bytes.
    name: the node's name in status and answers; default the host name.
    workers: model processes that are shared by models; default one per core.
    capacity_bytes: memory that models may take together; default 70 % of the machine's.
    hang_s (2.0): a worker whose event loop is silent for so long is replaced; above the longest pause of a
    healthy one. health_interval_s (0.5): time between questions to a worker's event loop.
    stats_interval_s (1.0): time between readings of a worker's index (in flight, idle, lost copies).
    start_timeout_s (60): a new worker must answer within this time; importing model libraries on a cold disk
    is slow. load_timeout_s (120): one load in a worker.
    drain_s (30): time that requests in flight have to end before an unload goes on without them.
    stop_s (10): time between SIGTERM and SIGKILL when the node stops its workers.
    publish_timeout_s (5): how long the proxy may take to acknowledge a change before activation goes on
    without it. rescue_s (20): how long a rescued request may wait for a copy.
    probe_timeout_s (120): one trial load in probation; the version is Failed after it.
    probe_memory_bytes: limit of a trial's address space; default the capacity, None is no limit.
    parallel_fetches (4), parallel_probes (1): probes measure memory and time, so they do not compete by
    default. cache_bytes: size of the artifact cache beyond which what no version names goes, oldest use
    first; default 50 GiB. log_bytes (16 MiB): size at which a worker's log is rotated; one older file is
    kept. limits: the numbers of residency decisions.
    fetch: what may be fetched.
    """

    data_dir: Path
    run_dir: Path
    name: str = field(default_factory=platform.node)
    workers: int = field(default_factory=default_workers)
    capacity_bytes: int = field(default_factory=default_capacity)
    hang_s: float = 2.0
    health_interval_s: float = 0.5
    stats_interval_s: float = 1.0
    start_timeout_s: float = 60.0
    load_timeout_s: float = 120.0
    drain_s: float = 30.0
    stop_s: float = 10.0
    publish_timeout_s: float = 5.0
    rescue_s: float = 20.0
    probe_timeout_s: float = 120.0
    probe_memory_bytes: int | None = None
    parallel_fetches: int = 4
    parallel_probes: int = 1
    cache_bytes: int = 50 << 30
    log_bytes: int = 16 << 20
    limits: Limits = field(default_factory=Limits)
    fetch: FetchSettings = FetchSettings()

    def check(self) -> None:
        """Raise InvalidInput when the settings cannot work."""
        if self.workers < 1:
            raise InvalidInput(f"workers is {self.workers}; at least 1 is needed")
        if self.capacity_bytes <= 0:
            raise InvalidInput(f"the capacity for models is {self.capacity_bytes} bytes; it must be above 0")
        longest = len(os.fsencode(self.run_dir.absolute() / LONGEST_SOCKET_NAME))
        if longest > SOCKET_PATH_LIMIT:
            raise InvalidInput(
                f"the run folder's path is too long for sockets: {longest} bytes with a socket's name, "
                f"at most {SOCKET_PATH_LIMIT} are possible"
            )
