"""The list of models as OpenAI-style clients ask for it, behind the gateway: all models of a namespace.

`GET /v1/models/{name}` is also how the first version of KServe's protocol asks whether a model is ready, so the answer
has the members of both. A model that is not in memory is ready too: the next request brings it there.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from msm.api.bodies import answer
from msm.api.deps import deps_of
from msm.kit.errors import InvalidInput, NotFound
from msm.resources.meta import DEFAULT_NAMESPACE, NAME_RULE, ObjectKey, is_name
from msm.resources.serving import Model

PREFIX = "/v1/models"


def model_entry(model: Model) -> dict[str, Any]:
    """A model in the list; `created` is in seconds since 1970."""
    created = model.metadata.created_at
    at = datetime.fromisoformat(created.replace("Z", "+00:00")) if created else datetime.fromtimestamp(0, UTC)
    return {
        "id": model.metadata.name,
        "object": "model",
        "created": int(at.timestamp()),
        "owned_by": model.metadata.namespace,
    }


def _namespace(request: Request) -> str:
    namespace = request.headers.get("msm-namespace", DEFAULT_NAMESPACE)
    return _checked(namespace, "namespace")


def _checked(text: str, what: str) -> str:
    if not is_name(text):
        raise InvalidInput(f"the {what} {text[:64]!r} is not allowed: {NAME_RULE}", reason="invalid_name")
    return text


async def list_models(request: Request) -> Response:
    _, models = await deps_of(request).catalog.list("Model", _namespace(request))
    return answer({"object": "list", "data": [model_entry(model) for model in models]})


async def retrieve(request: Request) -> Response:
    name, _, tag = request.path_params["name"].partition(":")
    model = await deps_of(request).catalog.get(ObjectKey("Model", _namespace(request), _checked(name, "model name")))
    if not isinstance(model, Model):
        raise NotFound(f'model "{name}" is not registered', reason="model_not_found")
    versions = {version.name for version in model.spec.versions}
    if tag and tag not in versions and tag not in model.spec.aliases:
        raise NotFound(f'model "{name}" has no version "{tag[:64]}"', reason="version_not_found")
    known = model.status.versions if model.status else {}
    ready = any(status.phase == "Valid" for status in known.values())
    return answer({**model_entry(model), "name": name, "ready": ready})


ROUTES = [
    Route(PREFIX, list_models, methods=["GET"]),
    Route(PREFIX + "/", list_models, methods=["GET"]),
    Route(PREFIX + "/{name}", retrieve, methods=["GET"]),
]
