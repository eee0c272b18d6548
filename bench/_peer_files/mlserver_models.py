"""Models as users of MLServer write them; loaded by its process."""

import onnxruntime
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse, ResponseOutput


class Onnx(MLModel):
    async def load(self) -> bool:
        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = settings.inter_op_num_threads = 1
        settings.enable_cpu_mem_arena = False
        uri = self.settings.parameters.uri
        self.session = onnxruntime.InferenceSession(uri, settings, providers=["CPUExecutionProvider"])
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        x = NumpyCodec.decode_input(payload.inputs[0])
        y = self.session.run(None, {"x": x})[0]
        return InferenceResponse(model_name=self.name, outputs=[NumpyCodec.encode_output("y", y)])


class Echo(MLModel):
    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        came = payload.inputs[0]
        output = ResponseOutput(name="y", shape=came.shape, datatype=came.datatype, data=came.data)
        return InferenceResponse(model_name=self.name, outputs=[output])
