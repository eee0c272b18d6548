"""Bodies of every form, sent to a real worker: KServe v1, raw tensors, CSV, Arrow, images; how long callers wait."""

from __future__ import annotations

import io
import json

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from msm.kit.errors import InvalidInput, MsmError
from msm.runtime.protocols import arrow_body, tensors
from msm.runtime.signature import Signature, Tensor
from tests.component.runtime.conftest import Models
from tests.support.workers import Answer, WorkerProcess, call
from tests.unit.runtime.test_codecs import numeric, same, text

IRIS = "default/iris/v1"
PHOTO = "default/photo/v1"
ARROW = "application/vnd.apache.arrow.stream"
PHOTO_CODE = """
class Model:
    signature = {"inputs": [{"name": "image", "datatype": "UINT8", "shape": [1, -1, -1, 3]}],
                 "outputs": [{"name": "image", "datatype": "UINT8", "shape": [1, -1, -1, 3]}]}

    def predict(self, inputs):
        return {"image": 255 - inputs["image"]}
"""


@pytest.fixture(autouse=True)
def _models(worker: WorkerProcess, models: Models, tmp_path_factory: pytest.TempPathFactory) -> None:
    assert worker.load(IRIS, models["iris.onnx"], digest="sha256:1").status == 200
    path = tmp_path_factory.getbasetemp() / "photo"
    path.mkdir(exist_ok=True)
    (path / "model.py").write_text(PHOTO_CODE)
    assert worker.load(PHOTO, path, digest="sha256:2", trusted=True).status == 200


def post(worker: WorkerProcess, body: bytes, kind: str, path: str = "/v2/models/iris/infer", **headers: str) -> Answer:
    target = PHOTO if "photo" in path else IRIS
    lines = {name.replace("_", "-"): value for name, value in headers.items()}
    return call(worker.data, "POST", path, body, {"content-type": kind, "x-msm-target": target, **lines})


def stream(batches: list[pa.RecordBatch], **options: object) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batches[0].schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
        for batch in batches:
            writer.write_batch(batch)
    return sink.getvalue().to_pybytes()


def takes(*inputs: tuple[str, str, tuple[int, ...]]) -> Signature:
    return Signature(tuple(Tensor(*item) for item in inputs))


def test_the_same_rows_give_the_same_numbers_in_every_form(worker: WorkerProcess, models: Models) -> None:
    rows = models.rows.astype(np.float32)
    item = {"name": "X", "datatype": "FP32", "shape": list(rows.shape), "data": rows.ravel().tolist()}
    wanted = post(worker, json.dumps({"inputs": [item]}).encode(), "application/json").json()["outputs"]
    table = b"a,b,c,d\n" + b"\n".join(b",".join(repr(float(v)).encode() for v in row) for row in rows)
    columns = [pa.array(np.ascontiguousarray(rows[:, i])) for i in range(4)]
    lists = pa.FixedSizeListArray.from_arrays(pa.array(rows.ravel()), 4)
    bodies = {
        "text/csv": [table],
        "application/octet-stream": [rows.tobytes()],
        ARROW: [
            stream([pa.record_batch(columns, names=list("abcd"))]),
            stream([pa.record_batch([lists[:2]], names=["X"]), pa.record_batch([lists[2:]], names=["X"])]),
        ],
    }
    for kind, forms in bodies.items():
        for body in forms:
            answer = post(worker, body, kind)
            assert (answer.status, answer.headers["content-type"]) == (200, "application/json"), answer.body
            assert answer.json()["outputs"] == wanted
    raw = post(worker, rows.tobytes(), "application/json", inference_header_content_length="0")
    assert raw.json()["outputs"] == wanted
    probabilities = np.array(wanted[1]["data"]).reshape(-1, 3)

    as_csv = post(worker, table, "text/csv", accept="text/csv")
    lines = as_csv.body.decode().split("\r\n")
    assert (as_csv.headers["content-type"], lines[0]) == (
        "text/csv", "label,probabilities_0,probabilities_1,probabilities_2",
    )  # fmt: skip
    np.testing.assert_allclose([[float(v) for v in line.split(",")[1:]] for line in lines[1:-1]], probabilities)

    as_arrow = post(worker, table, "text/csv", accept=f"{ARROW}, application/json;q=0.1")
    got = pa.ipc.open_stream(as_arrow.body).read_all()
    np.testing.assert_allclose(np.array(got["probabilities"].to_pylist()), probabilities)
    assert got.schema.field("label").metadata == {b"datatype": b"INT64"}

    several = post(worker, rows.tobytes(), "application/octet-stream", accept="application/octet-stream")
    assert (several.status, several.json()["code"]) == (400, "output_not_single")


def test_kserve_v1_predictions_and_readiness(worker: WorkerProcess, models: Models) -> None:
    rows = models.rows.tolist()
    for body in (
        {"instances": rows},
        {"inputs": rows},
        {"inputs": {"X": rows}},
        {"instances": [{"X": r} for r in rows]},
    ):
        answer = post(worker, json.dumps(body).encode(), "application/json", "/v1/models/iris:predict")
        predictions = answer.json()["predictions"]
        assert [row["label"] for row in predictions] == models.labels.tolist()
        np.testing.assert_allclose([row["probabilities"] for row in predictions], models.probabilities, rtol=1e-4)
        assert answer.headers["x-msm-version"] == "v1"
    ready = call(worker.data, "GET", "/v1/models/iris")
    assert (ready.status, ready.json()) == (200, {"name": "iris", "ready": True})
    bad = post(worker, b'{"instances":[[1]]}', "application/json", "/v1/models/iris:predict")
    assert (bad.status, bad.json()["code"]) == (400, "shape_mismatch")
    assert post(worker, b"a,b\n", "text/csv", "/v1/models/iris:predict").status == 415
    assert call(worker.data, "GET", "/v1/models/iris:predict").status == 405
    assert call(worker.data, "POST", "/v1/models/iris:explain", b"{}").status == 405
    assert call(worker.data, "GET", "/v1/models/absent").status == 503


def test_a_picture_goes_in_and_comes_back(worker: WorkerProcess) -> None:
    from PIL import Image

    pixels = np.random.default_rng(1).integers(0, 255, (30, 20, 3), np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    path = "/v2/models/photo/infer"
    as_json = post(worker, out.getvalue(), "image/png", path).json()["outputs"][0]
    np.testing.assert_array_equal(np.array(as_json["data"]).reshape(as_json["shape"]), 255 - pixels[None])
    as_png = post(worker, out.getvalue(), "image/png", path, accept="image/png")
    assert as_png.headers["content-type"] == "image/png"
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(as_png.body))), 255 - pixels)
    raw = post(worker, out.getvalue(), "image/png", path, accept="application/octet-stream")
    assert (raw.body, raw.headers["inference-header-content-length"]) == ((255 - pixels).tobytes(), "0")
    broken = post(worker, out.getvalue()[:99], "image/png", path)
    assert (broken.status, broken.json()["code"]) == (400, "invalid_image")
    assert post(worker, out.getvalue(), "image/png").status == 415


def test_a_large_table_does_not_hold_up_the_others(worker: WorkerProcess) -> None:
    body = b"a,b,c,d\n" + b'"5.1",3.5,1.4,0.2\n' * 40_000
    answer = post(worker, body, "text/csv", accept="application/octet-stream;q=0, */*")
    assert answer.json()["outputs"][0]["shape"] == [40_000]


def test_the_header_of_a_deadline(worker: WorkerProcess) -> None:
    body = np.zeros(4, np.float32).tobytes()
    for sent, status, code in (
        ("5", 200, ""),
        ("250ms", 200, ""),
        ("soon", 400, "invalid_timeout"),
        ("0", 504, "deadline_exceeded"),
    ):
        answer = post(worker, body, "application/octet-stream", x_request_timeout=sent)
        assert (answer.status, answer.json().get("code", "")) == (status, code)


def test_a_body_without_its_library_names_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    from msm.runtime.protocols import image_body

    for module, read in (("pyarrow.ipc", arrow_body.decode), ("PIL.Image", image_body.decode)):
        monkeypatch.setitem(__import__("sys").modules, module, None)
        with pytest.raises(MsmError, match=r"install model-service-mesh\[(arrow|image)\]"):
            read(b"", takes(("x", "UINT8", (1, -1, -1, 3))))


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.one_of(numeric(finite=False), text()))
def test_arrow_gives_the_values_that_went_in(case: tuple[str, tensors.Array]) -> None:
    datatype, array = case
    if not array.ndim or (datatype == "BYTES" and array.ndim > 1):
        return
    body = arrow_body.encode({"x": (datatype, array)})
    sent = arrow_body.decode(body, takes(("x", datatype, (-1,) * array.ndim)))["x"]
    assert sent.datatype == datatype
    same(sent.array, array)


def test_one_batch_is_read_without_a_copy() -> None:
    body = stream([pa.record_batch([pa.array(np.arange(1000.0))], names=["x"])])
    array = arrow_body.decode(body, takes(("x", "FP64", (-1,))))["x"].array
    start = np.frombuffer(body, np.uint8).__array_interface__["data"][0]
    assert start <= array.__array_interface__["data"][0] < start + len(body)


def test_tensors_of_the_extension_type() -> None:
    array = np.arange(12, dtype=np.float32).reshape(2, 2, 3)
    column = pa.FixedShapeTensorArray.from_numpy_ndarray(array)
    sent = arrow_body.decode(stream([pa.record_batch([column], names=["x"])]), takes(("x", "FP32", (-1, 2, 3))))
    same(sent["x"].array, array)


def one(column: pa.Array, **options: object) -> bytes:
    return stream([pa.record_batch([column], names=["x"])], **options)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: b"", "invalid_arrow"),
        (lambda: b"ARROW1\0\0", "invalid_arrow"),
        (lambda: one(pa.array([1.0, 2.0]))[:-60], "invalid_arrow"),
        (lambda: one(pa.array([1.0, None])), "null_value"),
        (lambda: one(pa.nulls(10)), "wrong_column_type"),
        (lambda: one(pa.array(["a"]).dictionary_encode()), "wrong_column_type"),
        (lambda: one(pa.array([[1.0], [1.0, 2.0]])), "wrong_column_type"),
        (lambda: one(pa.array([{"a": 1}])), "wrong_column_type"),
        (lambda: one(pa.array([1.0] * 10_000), compression="zstd"), "compressed"),
        (lambda: one(pa.array([1.0] * 10_000), compression="lz4"), "compressed"),
        (lambda: stream([pa.record_batch([pa.array([1.0])], names=["x"])] * 1025), "too_many_batches"),
        (lambda: stream([pa.record_batch([pa.array([1.0])] * 2, names=["x", "x"])]), "duplicate_column"),
        (lambda: stream([pa.record_batch([pa.array([1.0]), pa.array([1])], names=["a", "b"])]), "datatype_mismatch"),
    ],
)  # fmt: skip
def test_a_stream_that_is_none_or_a_bomb_is_refused(make, reason: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        arrow_body.decode(make(), takes(("x", "FP64", (-1,))))
    assert refused.value.reason == reason


def test_outputs_that_are_no_columns() -> None:
    for outputs in (
        {"y": ("FP32", np.zeros((), np.float32))},
        {"y": ("FP32", np.zeros(1)), "z": ("FP32", np.zeros(2))},
    ):
        with pytest.raises(InvalidInput):
            arrow_body.encode(outputs)
