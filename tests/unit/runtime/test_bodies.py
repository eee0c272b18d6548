"""The forms of bodies beside the Open Inference Protocol's own: what each takes, gives back and refuses."""

from __future__ import annotations

import base64
import io
import json
import math
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from msm.kit.errors import DeadlineExceeded, InputTooLarge, InvalidInput, MsmError, Unsupported
from msm.runtime.protocols import csv_body, deadlines, image_body, raw_body, rest_bodies, rest_v1, tensors
from msm.runtime.signature import Signature, Tensor
from tests.unit.runtime.test_codecs import NUMERIC, numeric, same, text


def takes(*inputs: tuple[str, str, tuple[int, ...]]) -> Signature:
    return Signature(tuple(Tensor(*item) for item in inputs))


IRIS = takes(("x", "FP32", (-1, 4)))
MIXED = takes(("age", "INT64", (-1, 1)), ("name", "BYTES", (-1,)), ("ok", "BOOL", (-1,)))


def refused(reason: str, kind: type[MsmError] = InvalidInput):
    return pytest.raises(kind, check=lambda error: error.reason == reason)


# ---- raw


@given(numeric(finite=False))
def test_a_raw_body_is_the_tensor_and_its_rows_are_counted(case):
    datatype, array = case
    if array.ndim and array.size:
        signature = takes(("x", datatype, (-1, *array.shape[1:])))
        same(raw_body.decode(array.tobytes(), signature)["x"].array, array)
        assert raw_body.encode({"x": (datatype, array)}) == array.tobytes()


def test_a_raw_body_of_bytes_is_one_element():
    sent = raw_body.decode(b"\xffany", takes(("x", "BYTES", (-1, 1))))["x"]
    assert sent.array.tolist() == [[b"\xffany"]]
    assert raw_body.encode({"x": ("BYTES", sent.array)}) == b"\xffany"


@pytest.mark.parametrize(
    ("body", "signature", "reason"),
    [
        (bytes(15), IRIS, "shape_mismatch"),
        (bytes(16), takes(("x", "FP32", (-1, -1))), "shape_mismatch"),
        (bytes(12), takes(("x", "FP32", (1, 4))), "shape_mismatch"),
        (b"\2", takes(("x", "BOOL", (1,))), "value_out_of_range"),
        (b"a", takes(("x", "BYTES", (-1, 2))), "shape_mismatch"),
        (bytes(8), takes(("x", "FP32", (-1, 0))), "shape_mismatch"),
        (bytes(8), takes(("x", "FP32", (1,)), ("y", "FP32", (1,))), "form_not_offered"),
        (bytes(8), Signature(), "form_not_offered"),
    ],
)
def test_a_raw_body_that_fits_no_shape_is_refused(body, signature, reason):
    with refused(reason, MsmError):
        raw_body.decode(body, signature)


# ---- CSV


def test_columns_are_those_of_the_only_input_or_inputs_by_name():
    table = csv_body.decode(b"a,b,c,d\n1,2.5,-3,4e0\r\n5,6,7,8\n", IRIS)["x"].array
    assert table.tolist() == [[1, 2.5, -3, 4], [5, 6, 7, 8]]
    assert table.dtype == np.float32
    mixed = csv_body.decode('name,ok,age\n"a,""b""",true,7\nü,0,-8\n'.encode(), MIXED)
    assert {name: sent.array.tolist() for name, sent in mixed.items()} == {
        "age": [[7], [-8]], "name": [b'a,"b"', "ü".encode()], "ok": [True, False],
    }  # fmt: skip
    assert csv_body.decode(b"x\n1\n2\n", takes(("x", "INT8", (-1, 1))))["x"].array.tolist() == [[1], [2]]
    assert csv_body.decode(b"a,b\n", takes(("x", "INT8", (-1, 2))))["x"].array.shape == (0, 2)
    assert math.isnan(csv_body.decode(b"a\nnan\n", takes(("x", "FP32", (-1, 1))))["x"].array[0, 0])
    assert csv_body.decode(b'"a\nb"\n"1"\n', takes(("x", "FP32", (-1, 1))))["x"].array.tolist() == [[1]]


@given(st.lists(st.tuples(*[st.floats(width=32, allow_nan=False)] * 3), min_size=1, max_size=5))
def test_numbers_in_any_spelling_are_the_same(rows):
    signature = takes(("x", "FP32", (-1, 3)))
    plain = "a,b,c\n" + "\n".join(",".join(map(repr, row)) for row in rows)
    quoted = "a,b,c\r\n" + "\r\n".join(",".join(f'" {cell!r}"' for cell in row) for row in rows) + "\r\n"
    wanted = np.array(rows, np.float32)
    for body in (plain, quoted):
        np.testing.assert_array_equal(csv_body.decode(body.encode(), signature)["x"].array, wanted)


@pytest.mark.parametrize(
    ("body", "signature", "reason"),
    [
        (b"", IRIS, "empty_body"),
        (b"a,b,c\n1,2,3\n", IRIS, "shape_mismatch"),
        (b"a,b,c,d\n1,2,3\n", IRIS, "ragged"),
        (b"a,b,c,d\n1,2,3,4,5\n", IRIS, "ragged"),
        (b"a,b,c,d\n1,2\n3,4\n5,6,7,8\n", IRIS, "ragged"),
        (b"a,b,c,d\n1,2,x,4\n", IRIS, "invalid_value"),
        (b"a,b,c,d\n1,2,,4\n", IRIS, "invalid_value"),
        (b"a,b,c,d\n1,2,1e39,4\n", IRIS, "value_out_of_range"),
        (b'a,b,c,d\n"1,2,3,4\n', IRIS, "invalid_csv"),
        (b"a,b,c,d\n1,2,\xff,4\n", IRIS, "invalid_csv"),
        (b"\xff,b,c,d\n1,2,3,4\n", IRIS, "invalid_csv"),
        (b"a\n300\n", takes(("x", "INT8", (-1, 1))), "value_out_of_range"),
        (b"a\n-1\n", takes(("x", "UINT8", (-1, 1))), "invalid_value"),
        (b"a\n1.5\n", takes(("x", "INT8", (-1, 1))), "invalid_value"),
        (b"a\n" + b"9" * 5000, takes(("x", "INT64", (-1, 1))), "invalid_value"),
        (b"age,name,ok\n1,a,2\n", MIXED, "invalid_value"),
        (b"age,age\n1,2\n", MIXED, "duplicate_input"),
        (b"age,nme\n1,2\n", MIXED, "unknown_input"),
        (b"a\n1\n", takes(("x", "BF16", (-1, 1))), "binary_only"),
        (b"a\n1\n", Signature(), "form_not_offered"),
        (b"x,y\n1,2\n", takes(("x", "FP32", (-1, 2)), ("y", "FP32", (-1, 1))), "shape_mismatch"),
    ],
)
def test_a_mistake_in_a_table_is_refused(body, signature, reason):
    with refused(reason, MsmError) as error:
        csv_body.decode(body, signature)
    assert len(error.value.message) < 700


def test_answers_as_a_table():
    outputs = {
        "p": ("FP32", np.array([[0.5, np.nan], [1, 2]], np.float32)),
        "label": ("BYTES", tensors.objects([b"a,b", 'c"']).reshape(2)),
    }
    assert csv_body.encode(outputs) == b'p_0,p_1,label\r\n0.5,,"a,b"\r\n1.0,2.0,"c"""\r\n'
    with refused("output_not_text"):
        csv_body.encode({"y": ("BYTES", tensors.objects([b"\xff"]))})
    for array in (np.zeros((1, 1, 1)), np.zeros(())):
        with refused("output_not_tabular"):
            csv_body.encode({"y": ("FP64", array)})


# ---- images


def picture(mode: str, size: tuple[int, int], form: str = "PNG", **options: object) -> bytes:
    from PIL import Image

    out = io.BytesIO()
    Image.effect_noise(size, 50).convert(mode).save(out, form, **options)
    return out.getvalue()


def test_a_picture_is_its_pixels_in_both_layouts():
    from PIL import Image

    pixels = np.random.default_rng(1).integers(0, 255, (5, 7, 3), np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    last = image_body.decode(out.getvalue(), takes(("x", "UINT8", (-1, -1, -1, 3))))["x"].array
    np.testing.assert_array_equal(last, pixels[None])
    first = image_body.decode(out.getvalue(), takes(("x", "FP32", (1, 3, 5, 7))), "png")["x"].array
    np.testing.assert_array_equal(first, pixels.transpose(2, 0, 1)[None].astype(np.float32))
    assert first.flags.c_contiguous
    for array in (last, np.ascontiguousarray(last.transpose(0, 3, 1, 2))):
        again = image_body.encode({"y": ("UINT8", array)})
        np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(again))), pixels)


def test_fewer_colours_are_spread():
    for mode, channels in (("L", 3), ("1", 1), ("P", 3), ("RGB", 4)):
        array = image_body.decode(picture(mode, (4, 4)), takes(("x", "UINT8", (1, 4, 4, channels))))["x"].array
        assert array.shape == (1, 4, 4, channels)


@pytest.mark.parametrize(
    ("body", "shape", "kind", "reason"),
    [
        (lambda: picture("RGB", (4, 5)), (1, 4, 4, 3), "*", "shape_mismatch"),
        (lambda: picture("RGBA", (4, 4)), (1, 4, 4, 3), "*", "wrong_channels"),
        (lambda: picture("RGB", (4, 4)), (1, 4, 4, 1), "*", "wrong_channels"),
        (lambda: picture("I;16", (4, 4)), (1, 4, 4, 1), "*", "wrong_channels"),
        (lambda: picture("RGB", (4, 4))[:60], (1, 4, 4, 3), "*", "invalid_image"),
        (lambda: picture("RGB", (4, 4)), (1, 4, 4, 3), "jpeg", "invalid_image"),
        (lambda: b"%!PS-Adobe-3.0 EPSF-3.0", (1, 4, 4, 3), "*", "invalid_image"),
        (lambda: b"", (1, 4, 4, 3), "*", "invalid_image"),
        (lambda: picture("RGB", (4, 4)), (1, 4, 4, 3), "svg+xml", "wrong_content_type"),
        (lambda: picture("RGB", (4, 4)), (1, 48), "*", "form_not_offered"),
    ],
)
def test_a_picture_that_does_not_fit_is_refused(body, shape, kind, reason):
    with refused(reason, MsmError):
        image_body.decode(body(), takes(("x", "UINT8", shape)), kind)


def test_a_picture_that_would_fill_the_memory_is_refused_before_it_is_unpacked():
    small = picture("L", (8, 8))
    for width, height in ((8192, 4096), (40_000, 10_000), (2**31 - 1, 2**31 - 1)):
        head = b"IHDR" + struct.pack(">II", width, height) + small[24:29]
        body = small[:12] + head + struct.pack(">I", zlib.crc32(head)) + small[33:]
        with pytest.raises(InputTooLarge):
            image_body.decode(body, takes(("x", "UINT8", (1, -1, -1, 1))))


# ---- KServe v1


def ask(body: object, signature: Signature = IRIS):
    call = rest_v1.decode(json.dumps(body).encode(), signature)
    return {name: sent.array.tolist() for name, sent in call.inputs.items()}


def test_rows_and_columns():
    assert ask({"instances": [[1, 2, 3, 4.5]]}) == {"x": [[1, 2, 3, 4.5]]}
    assert ask({"inputs": [[1, 2, 3, 4]], "signature_name": "serving_default"}) == {"x": [[1, 2, 3, 4]]}
    assert ask({"inputs": {"x": [[1, 2, 3, 4]]}}) == {"x": [[1, 2, 3, 4]]}
    rows = [{"age": [1], "name": "a:b", "ok": True}, {"name": "c", "ok": False, "age": [2]}]
    wanted = {"age": [[1], [2]], "name": [b"a:b", b"c"], "ok": [True, False]}
    assert ask({"instances": rows}, MIXED) == wanted
    columns = {"age": [[1], [2]], "name": ["a:b", {"b64": base64.b64encode(b"c").decode()}], "ok": [True, False]}
    assert ask({"inputs": columns}, MIXED) == wanted
    assert ask({"instances": [{"b64": "/w=="}]}, takes(("x", "BYTES", (-1,)))) == {"x": [b"\xff"]}
    assert rest_v1.decode(b'{"inputs":[],"parameters":{"timeout":5}}', takes(("x", "FP32", (-1,)))).timeout_s == 5e-6


@given(numeric())
def test_rows_are_read_back(case):
    datatype, array = case
    if array.ndim and array.size:
        signature = takes(("x", datatype, (-1,) * array.ndim))
        body = rest_v1.encode({"x": (datatype, array)}).replace(b"predictions", b"instances")
        same(rest_v1.decode(body, signature).inputs["x"].array, array)


def test_large_rows_are_read_as_small_ones():
    values = np.random.default_rng(0).standard_normal((50, 3, 20)).astype(np.float32)
    signature = takes(("x", "FP32", (-1, 3, 20)))
    for separators in ((",", ":"), (", ", ": "), (" ,\n", ":")):
        body = json.dumps({"instances": values.tolist()}, separators=separators).encode()
        np.testing.assert_array_equal(rest_v1.decode(body, signature).inputs["x"].array, values)


@pytest.mark.parametrize(
    ("body", "signature", "reason"),
    [
        (b"", IRIS, "empty_body"),
        (b"[]", IRIS, "expected_object"),
        (b"{}", IRIS, "no_inputs"),
        (b'{"instances":[[1]],"inputs":[[1]]}', IRIS, "no_inputs"),
        (b'{"instances":[[1,2,3,4]],"instances":[[1,2,3,4]]}', IRIS, "duplicate_key"),
        (b'{"instances":[{"x":[1],"x":[1]}]}', IRIS, "duplicate_key"),
        (b'{"instances":[{"age":[1],"name":"a"}]}', MIXED, "missing_input"),
        (b'{"instances":[{"age":[1],"name":"a","ok":true},{"age":[1],"name":"b"}]}', MIXED, "missing_input"),
        (b'{"instances":[{"y":[1]}]}', IRIS, "invalid_request"),
        (b'{"instances":[[1]]}', MIXED, "missing_input"),
        (b'{"instances":[[1,2],[3]]}', IRIS, "ragged"),
        (b'{"instances":[["a"]]}', IRIS, "invalid_request"),
        (b'{"instances":[[NaN]]}', IRIS, "invalid_json"),
        (b'{"instances":[[1e39]]}', IRIS, "value_out_of_range"),
        (b'{"instances":[[[1]]]}', IRIS, "shape_mismatch"),
        (b'{"instances":' + b"[" * 200_000 + b"]" * 200_000 + b"}", IRIS, "json_too_deep"),
        (b'{"instances":5}', IRIS, "invalid_request"),
        (b'{"instances":[[1]],"more":1}', IRIS, "invalid_request"),
        (b'{"instances":[{"b64":"?"}]}', takes(("x", "BYTES", (-1,))), "invalid_base64"),
        (b'{"instances":[["a"],["b","c"]]}', takes(("x", "BYTES", (-1, 2))), "ragged"),
        (b'{"instances":[[1]]}', Signature(), "form_not_offered"),
        (b'{"instances":[1]}', takes(("x", "BF16", (-1,))), "binary_only"),
    ],
)
def test_a_mistake_in_a_prediction_is_refused(body, signature, reason):
    with refused(reason, MsmError) as error:
        rest_v1.decode(body, signature)
    assert len(error.value.message) < 500


def test_predictions_are_values_or_objects():
    one = {"p": ("FP32", np.array([[0.5, np.nan]], np.float32))}
    assert json.loads(rest_v1.encode(one)) == {"predictions": [[0.5, None]]}
    two = {**one, "label": ("BYTES", tensors.objects([b"\xff"]))}
    assert json.loads(rest_v1.encode(two)) == {"predictions": [{"p": [0.5, None], "label": {"b64": "/w=="}}]}
    odd = {**one, "all": ("INT64", np.array(3))}
    assert json.loads(rest_v1.encode(odd)) == {"predictions": {"p": [[0.5, None]], "all": 3}}
    with refused("binary_only"):
        rest_v1.encode({"y": ("BF16", np.zeros(1, np.uint16))})


@given(text())
def test_text_is_read_back(case):
    _, array = case
    if array.ndim and array.size:
        body = rest_v1.encode({"x": ("BYTES", array)}).replace(b"predictions", b"inputs")
        same(rest_v1.decode(body, takes(("x", "BYTES", (-1,) * array.ndim))).inputs["x"].array, array)


# ---- which form, and how long


@pytest.mark.parametrize(
    ("accept", "media_type"),
    [
        (b"application/json", None),
        (b"text/html, */*;q=0.1", None),
        (b"text/csv", "text/csv"),
        (b"Application/Vnd.Apache.Arrow.Stream;q=0.5, application/json;q=0.4", "application/vnd.apache.arrow.stream"),
        (b"text/csv;q=0.2, application/json", None),
        (b"text/csv;q=0", None),
        (b"text/csv;q=x", None),
        (b"", None),
        (b"\xff;;,", None),
    ],
)
def test_the_form_of_an_answer(accept, media_type):
    form = rest_bodies.answer_form(accept)
    assert (None if form is None else form.media_type) == media_type


@pytest.mark.parametrize("kind", [b"text/plain", b"text/csv; charset=latin-1", b"application/json;charset=cp1"])
def test_other_types_are_refused(kind):
    with refused("wrong_content_type", Unsupported):
        rest_bodies.form_of(kind)


@pytest.mark.parametrize(
    ("sent", "seconds"),
    [(b"2", 2), (b"0.25", 0.25), (b"1.5s", 1.5), (b"250ms", 0.25), (b"7us", 7e-6), (b"2m", 120), (b"999h", 86_400)],
)
def test_the_time_a_caller_waits(sent, seconds):
    assert deadlines.seconds(sent) == pytest.approx(seconds)


def test_times_that_are_none_or_over():
    for sent in (b"", b"-1", b"1 s", b"1e3", b"s", b"1d", b"nan", b"1" * 20):
        with refused("invalid_timeout"):
            deadlines.seconds(sent)
    for sent in (b"0", b"0.0ms"):
        with pytest.raises(DeadlineExceeded):
            deadlines.seconds(sent)


def test_all_numeric_types_are_covered():
    assert set(NUMERIC) == set(tensors.DTYPES) - {"BF16", "BYTES"}
