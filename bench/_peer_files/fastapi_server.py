"""What a user writes without a model server: FastAPI, typed bodies, the models in the process."""

import sys
from typing import Any

import joblib
import numpy as np
import onnxruntime
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel

models, port = sys.argv[1], int(sys.argv[2])
settings = onnxruntime.SessionOptions()
settings.intra_op_num_threads = settings.inter_op_num_threads = 1
network = onnxruntime.InferenceSession(f"{models}/tiny.onnx", settings, providers=["CPUExecutionProvider"])
classifier = joblib.load(f"{models}/iris.joblib")
app = FastAPI()


class Tensor(BaseModel):
    name: str
    shape: list[int]
    datatype: str
    data: list[Any]


class Call(BaseModel):
    inputs: list[Tensor]


def answer(model: str, datatype: str, array: np.ndarray) -> dict[str, Any]:
    output = {"name": "y", "shape": list(array.shape), "datatype": datatype, "data": array.ravel().tolist()}
    return {"model_name": model, "outputs": [output]}


@app.get("/v2/health/ready")
async def ready() -> dict[str, bool]:
    return {"ready": True}


@app.post("/v2/models/tiny/infer")
async def tiny(call: Call) -> dict[str, Any]:
    x = np.asarray(call.inputs[0].data, np.float32).reshape(call.inputs[0].shape)
    return answer("tiny", "FP32", network.run(None, {"x": x})[0])


@app.post("/v2/models/iris/infer")
async def iris(call: Call) -> dict[str, Any]:
    x = np.asarray(call.inputs[0].data, np.float64).reshape(call.inputs[0].shape)
    return answer("iris", "INT64", classifier.predict(x))


@app.post("/v2/models/image/infer")
async def image(call: Call) -> dict[str, Any]:
    x = np.asarray(call.inputs[0].data, np.float32).reshape(call.inputs[0].shape)
    return answer("image", "FP32", x)


uvicorn.run(app, host="127.0.0.1", port=port, log_level="warning", access_log=False, loop="uvloop", http="httptools")
