"""First predictions of a version before it counts as ready, so that no caller pays for what a model sets up lazily.

A version's parameter `warmup` lists inference requests in the JSON form of the Open Inference Protocol; a failing one
fails the load. Without it one row of zeros is predicted, if probation found that the model takes that.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, Final

import orjson

from msm.kit.errors import InvalidInput, LoadFailed, MsmError
from msm.runtime.formats.base import Array, LoadedModel, first_line, zeros
from msm.runtime.protocols import oip_json
from msm.runtime.validate import check_inputs, check_outputs

log = logging.getLogger(__name__)

MOST_REQUESTS: Final = 100


def requests_of(parameters: Mapping[str, Any]) -> tuple[bytes, ...]:
    """The declared requests, as the bodies of calls. Raises InvalidInput when they are not a list of objects."""
    declared = parameters.get("warmup", [])
    if not isinstance(declared, list) or not all(isinstance(request, dict) for request in declared):
        raise InvalidInput(
            "parameter 'warmup' must be a list of inference requests, each an object", reason="invalid_parameter"
        )
    if len(declared) > MOST_REQUESTS:
        raise InvalidInput(
            f"parameter 'warmup' has {len(declared)} requests, at most {MOST_REQUESTS} are allowed",
            reason="invalid_parameter",
        )
    return tuple(orjson.dumps(request) for request in declared)


def run(model: LoadedModel, requests: tuple[bytes, ...], *, takes_zeros: bool) -> None:
    """Predict what was declared, or zeros. Blocks. Raises LoadFailed naming the request that failed."""
    if not requests:
        if takes_zeros and model.signature.inputs:
            try:
                model.predict(zeros(model.signature))
            except Exception:  # zeros were our own idea, so the version serves nevertheless
                log.info("the model failed on one row of zeros, which it took in probation", exc_info=True)
        return
    for number, body in enumerate(requests):
        try:
            _predict(model, check_inputs(model.signature, model.accepts, oip_json.decode(body).inputs))
        except MsmError as error:
            raise LoadFailed(f"warm-up request {number} failed: {error.message}", reason="warmup_failed") from error


def _predict(model: LoadedModel, inputs: dict[str, Array]) -> None:
    try:
        given = model.predict(inputs)
    except MsmError:
        raise
    except Exception as error:
        raise LoadFailed(f"the model raised {first_line(error)}") from error
    check_outputs(model.signature, given, exact=model.exact_outputs)
