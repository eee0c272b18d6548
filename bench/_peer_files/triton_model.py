"""The models for Triton's Python backend; which one, and its file, the parameters of its configuration say."""

import json

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        parameters = json.loads(args["model_config"])["parameters"]
        self.kind, path = parameters["kind"]["string_value"], parameters["path"]["string_value"]
        if self.kind == "tiny":
            import onnxruntime

            settings = onnxruntime.SessionOptions()
            settings.intra_op_num_threads = settings.inter_op_num_threads = 1
            self.session = onnxruntime.InferenceSession(path, settings, providers=["CPUExecutionProvider"])
        elif self.kind == "iris":
            import joblib

            self.classifier = joblib.load(path)

    def run(self, rows):
        if self.kind == "tiny":
            return self.session.run(None, {"x": rows})[0]
        return self.classifier.predict(rows.astype(np.float64)) if self.kind == "iris" else rows

    def execute(self, requests):
        name = "input-0" if self.kind == "iris" else "x"
        came = [pb_utils.get_input_tensor_by_name(request, name).as_numpy() for request in requests]
        if len(came) == 1:
            parts = [self.run(came[0])]
        else:
            ends = np.cumsum([len(rows) for rows in came])[:-1]
            parts = np.split(self.run(np.concatenate(came)), ends)
        return [pb_utils.InferenceResponse([pb_utils.Tensor("y", part)]) for part in parts]
