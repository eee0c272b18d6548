"""Requests that wait for a version, the most urgent first."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator

from msm.kit.errors import MsmError
from msm.runtime import batching
from msm.runtime.batching import Outputs
from msm.runtime.protocols.call import DEFAULT_PRIORITY
from msm.runtime.protocols.tensors import Array

Outcome = Outputs | MsmError


class Job(ABC):
    """One request that waits for a version. The protocol's subclass turns the outcome into an answer.

    The one with the smallest `priority` is run first, among equals the one that came first.
    """

    __slots__ = ("deadline", "inputs", "priority", "settled", "shape")

    def __init__(self, inputs: dict[str, Array], priority: int = DEFAULT_PRIORITY) -> None:
        self.inputs = inputs
        self.priority = priority
        self.shape = batching.ALONE
        self.deadline = 0.0
        self.settled = False

    @property
    @abstractmethod
    def abandoned(self) -> bool:
        """Whether nobody waits for the outcome any more."""

    @abstractmethod
    def succeed(self, outputs: Outputs) -> None:
        """Answer with `outputs`. May raise MsmError when they can't be told in the form that was asked for."""

    @abstractmethod
    def fail(self, error: MsmError) -> None:
        """Answer with an error."""


class Waiting:
    """Jobs by priority, equals in the order they came."""

    def __init__(self) -> None:
        self._jobs: deque[Job] = deque()

    def __len__(self) -> int:
        return len(self._jobs)

    def __iter__(self) -> Iterator[Job]:
        return iter(self._jobs)

    def put(self, job: Job) -> None:
        """Take a job in behind all that are as urgent."""
        jobs = self._jobs
        if not jobs or jobs[-1].priority <= job.priority:
            jobs.append(job)
            return
        jobs.insert(next(at for at, waiting in enumerate(jobs) if waiting.priority > job.priority), job)

    def take(self) -> Job:
        """The one to run next. Raises IndexError when none waits."""
        return self._jobs.popleft()

    def give_up_for(self, job: Job) -> Job | None:
        """The youngest of the least urgent, taken out, if it is less urgent than `job`."""
        if not self._jobs or self._jobs[-1].priority <= job.priority:
            return None
        return self._jobs.pop()

    def remove(self, job: Job) -> None:
        """Take a certain job out. Raises ValueError when it does not wait."""
        self._jobs.remove(job)
