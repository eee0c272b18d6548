"""One run of a model: jobs joined, predicted, checked and taken apart; a batch that fails is run one by one."""

from __future__ import annotations

from collections.abc import Sequence

from msm.kit.errors import Internal, MsmError, Unavailable
from msm.runtime import batching
from msm.runtime.batching import Outputs
from msm.runtime.formats.base import LoadedModel, first_line
from msm.runtime.protocols.tensors import Array
from msm.runtime.validate import check_outputs
from msm.runtime.waiting import Job, Outcome


class Compute:
    """The model of a version, None once it is unloaded. `joinable`: several jobs may be one batch. For any thread."""

    def __init__(self, target: str, model: LoadedModel, *, joinable: bool) -> None:
        self._target = target
        self._signature = model.signature
        self.model: LoadedModel | None = model
        self.joinable = joinable

    def outcomes(self, jobs: Sequence[Job]) -> tuple[list[Outcome], bool]:
        """The outcome of each job, and whether the batch failed as a whole and was run one by one."""
        if len(jobs) == 1:
            return [self._predict_one(jobs[0])], False
        try:
            outputs = self._predict(batching.join([job.inputs for job in jobs]))
            return list(batching.scatter(outputs, [job.shape.rows for job in jobs])), False
        except MsmError:
            return [self._predict_one(job) for job in jobs], True

    def _predict_one(self, job: Job) -> Outcome:
        if self.joinable and job.shape.kind is None and _no_rows(job.inputs):
            outputs = batching.empty_outputs(self._signature)
            if outputs is not None:
                return outputs
        try:
            return self._predict(job.inputs)
        except MsmError as error:
            return error

    def _predict(self, inputs: dict[str, Array]) -> Outputs:
        model = self.model
        if model is None:
            raise Unavailable(f"version {self._target} was unloaded", reason="not_loaded")
        try:
            return check_outputs(self._signature, model.predict(inputs), exact=model.exact_outputs)
        except MsmError:
            raise
        except BaseException as error:  # also SystemExit: a model must not end the worker
            raise Internal(f"the model raised {first_line(error)}", reason="model_error") from error


def _no_rows(inputs: dict[str, Array]) -> bool:
    return all(array.shape[:1] == (0,) for array in inputs.values())
