"""The node's state in Prometheus' text format. The number of series is bounded whatever people declare."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from msm.resources.observed import CopyStatus, NodeStatus

MOST_VERSIONS = 500  # versions with series of their own; the rest is summed up under version="other"
_ESCAPES = str.maketrans({"\\": "\\\\", '"': '\\"', "\n": "\\n"})
Sample = tuple[Mapping[str, str], float]


def render(node: NodeStatus, *, dropped_events: int) -> str:
    """The text of a scrape."""
    requests, failures = _by_version(node.copies)
    families: list[tuple[str, str, str, Iterable[Sample]]] = [
        ("msm_info", "gauge", "Version of the node.", [({"node": node.name, "version": node.version}, 1)]),
        ("msm_gateway_connected", "gauge", "Whether the node's Envoy follows it.", [({}, node.gateway.connected)]),
        ("msm_workers", "gauge", "Workers by state.", _count("state", (worker.state for worker in node.workers))),
        ("msm_copies", "gauge", "Copies by state.", _count("state", (copy.state for copy in node.copies))),
        ("msm_load_queue", "gauge", "Loads that wait.", [({}, node.queued)]),
        ("msm_capacity_bytes", "gauge", "Memory for models.", [({}, node.capacity_bytes)]),
        ("msm_used_bytes", "gauge", "Memory of models.", [({}, node.used_bytes)]),
        (
            "msm_worker_rss_bytes",
            "gauge",
            "Resident memory of a worker.",
            [({"worker": worker.id}, worker.rss_bytes) for worker in node.workers],
        ),
        (
            "msm_worker_restarts_total",
            "counter",
            "Restarts of a worker.",
            [({"worker": worker.id}, worker.restarts) for worker in node.workers],
        ),
        ("msm_requests_total", "counter", "Requests answered by copies that are loaded.", requests),
        ("msm_failures_total", "counter", "Requests that failed in copies that are loaded.", failures),
        ("msm_events_dropped_total", "counter", "Events that were not kept.", [({}, dropped_events)]),
    ]
    return "".join(_family(*family) for family in families)


def _by_version(copies: Iterable[CopyStatus]) -> tuple[list[Sample], list[Sample]]:
    requests: Counter[str] = Counter()
    failures: Counter[str] = Counter()
    for copy in copies:
        requests[copy.version] += copy.requests
        failures[copy.version] += copy.failures
    own = {version for version, _ in requests.most_common(MOST_VERSIONS)}
    return _bounded(requests, own), _bounded(failures, own)


def _bounded(counts: Mapping[str, int], own: set[str]) -> list[Sample]:
    samples: list[Sample] = [({"version": version}, counts[version]) for version in sorted(own)]
    rest = sum(count for version, count in counts.items() if version not in own)
    return [*samples, ({"version": "other"}, rest)] if len(counts) > len(own) else samples


def _count(label: str, values: Iterable[str]) -> list[Sample]:
    return [({label: value}, count) for value, count in sorted(Counter(values).items())]


def _family(name: str, kind: str, text: str, samples: Iterable[Sample]) -> str:
    lines = [f"# HELP {name} {text}", f"# TYPE {name} {kind}"]
    lines += [f"{name}{_labels(labels)} {float(value):.17g}" for labels, value in samples]
    return "\n".join(lines) + "\n"


def _labels(labels: Mapping[str, str]) -> str:
    inner = ",".join(f'{name}="{value.translate(_ESCAPES)}"' for name, value in labels.items())
    return f"{{{inner}}}" if inner else ""
