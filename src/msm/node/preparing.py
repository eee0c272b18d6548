"""Has the workers import the libraries of the formats in use, before a request has to wait for that."""

from __future__ import annotations

from msm.kit.errors import MsmError
from msm.kit.tasks import Tasks
from msm.node.journal import Journal
from msm.node.workers import Worker, Workers


class Preparer:
    """Tells each worker process once of each format that a valid version has."""

    def __init__(self, workers: Workers, journal: Journal, tasks: Tasks) -> None:
        self._workers = workers
        self._journal = journal
        self._tasks = tasks
        self._formats: set[str] = set()
        self._told: dict[str, tuple[int, set[str]]] = {}  # by worker: the life it was told in, and of what

    def use(self, name: str | None) -> None:
        """A version of this format is valid: its loads must not begin with an import."""
        if name is not None and name not in self._formats:
            self._formats.add(name)
            for worker in self._workers.all():
                self.ready(worker)

    def ready(self, worker: Worker) -> None:
        """Tell a worker what it has not heard of in this life."""
        life, told = self._told.get(worker.id, (0, set()))
        if life != worker.life:
            told = set()
        new = self._formats - told
        if worker.ready and new and not worker.runtime:
            self._told[worker.id] = (worker.life, told | new)
            self._tasks.start(f"prepare {worker.id}", self._prepare(worker, sorted(new)))

    async def _prepare(self, worker: Worker, names: list[str]) -> None:
        for name in names:
            try:
                await worker.client.prepare(name)
            except MsmError as error:
                message = f"worker {worker.id} could not prepare for {name}: {error.message}"
                self._journal.note(f"worker/{worker.id}", "NotPrepared", message, severity="warning")
