"""A small model server of its own, started by a runtime once for each model: `own_server.py PROTOCOL PORT MODEL NAME`.

The model is a JSON file {"factor": 2}. `oip` multiplies the inputs, `openai` answers chats; "exit" makes it end as a
crashing server does.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

protocol, port, model, name = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]), sys.argv[4]
factor = json.loads(model.read_text())["factor"]


async def healthy(request: Request) -> Response:
    return Response()


async def metadata(request: Request) -> Response:
    tensor = {"datatype": "FP32", "shape": [-1]}
    return JSONResponse({"name": name, "inputs": [{"name": "x", **tensor}], "outputs": [{"name": "y", **tensor}]})


async def infer(request: Request) -> Response:
    (sent,) = (await request.json())["inputs"]
    if sent["data"] == [666]:
        os._exit(7)
    if sent["data"] == [500]:
        raise RuntimeError("the weights melted in /usr/share/models/secret/weights.bin")
    answer = {**sent, "name": "y", "data": [value * factor for value in sent["data"]]}
    return JSONResponse({"model_name": name, "outputs": [answer]})


async def listed(request: Request) -> Response:
    return JSONResponse({"object": "list", "data": [{"id": "served-by-another-name", "object": "model"}]})


async def chat(request: Request) -> Response:
    asked = await request.json()
    if asked["model"] != "served-by-another-name":
        return JSONResponse({"error": {"message": f"no model {asked['model']}"}}, 404)
    text = " ".join([asked["messages"][-1]["content"]] * factor)
    if asked.get("stream"):
        events = [{"model": asked["model"], "choices": [{"delta": {"content": word}}]} for word in text.split()]
        lines = [f"data: {json.dumps(event)}\n\n" for event in events]
        return Response("".join([*lines, "data: [DONE]\n\n"]), media_type="text/event-stream")
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    return JSONResponse({"id": "1", "object": "chat.completion", "model": asked["model"], "choices": [choice]})


OIP = [
    Route("/v2/health/ready", healthy),
    Route(f"/v2/models/{name}", metadata),
    Route(f"/v2/models/{name}/infer", infer, methods=["POST"]),
]
OPENAI = [
    Route("/health", healthy),
    Route("/v1/models", listed),
    Route("/v1/chat/completions", chat, methods=["POST"]),
]
uvicorn.run(Starlette(routes=OIP if protocol == "oip" else OPENAI), host="127.0.0.1", port=port, log_level="warning")
