from __future__ import annotations

from pathlib import Path

import pytest

from msm.kit.errors import Forbidden, InvalidInput, LoadFailed
from msm.runtime.formats import onnx_file
from msm.runtime.formats.base import LoadOptions, files, first_line, need_trust, parameter, single, zeros
from msm.runtime.signature import Signature, Tensor


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (ValueError("one\ntwo"), "ValueError: one"),
        (KeyError(), "KeyError"),
        (OSError(2, "None", "/srv/models/a/weights.bin"), "FileNotFoundError: [Errno 2] None: 'weights.bin'"),
        (TypeError("<msm_model_12.A at 0x7f0123456789>"), "TypeError: <model.A at model>"),
        (ValueError("ratio 1/2 of a/b at http://x/y/z"), "ValueError: ratio 1/2 of a/b at http://x/y/z"),
        (ValueError("x" * 5000), "ValueError: " + "x" * 200),
    ],
)  # fmt: skip
def test_of_a_foreign_error_the_first_line_is_told_without_folders(error: Exception, told: str) -> None:
    assert first_line(error) == told


def test_hidden_files_and_folders_are_no_candidates(tmp_path: Path) -> None:
    for name in ("b.bin", "a.bin", ".hidden"):
        (tmp_path / name).write_text("x")
    (tmp_path / "folder").mkdir()
    assert [file.name for file in files(tmp_path)] == ["a.bin", "b.bin"]
    assert list(files(tmp_path / "a.bin")) == [tmp_path / "a.bin"]
    assert list(files(tmp_path / "absent")) == []


def test_there_must_be_exactly_one_model() -> None:
    assert single(Path("x"), "onnx", [Path("a")]) == Path("a")
    for candidates, reason in (([], "wrong_format"), ([Path("a"), Path("b")], "ambiguous_artifact")):
        with pytest.raises(LoadFailed) as refused:
            single(Path("x"), "onnx", candidates)
        assert refused.value.reason == reason


def test_code_needs_trust() -> None:
    need_trust(LoadOptions(trusted=True), "x")
    with pytest.raises(Forbidden, match="trusted: true"):
        need_trust(LoadOptions(), "x")


def test_parameters_have_their_types() -> None:
    options = LoadOptions(parameters={"outputs": "predict"})
    assert parameter(options, "absent", list, None) is None
    with pytest.raises(InvalidInput, match="'outputs' must be of type list"):
        parameter(options, "outputs", list, None)


def test_zeros_are_the_smallest_input_of_a_signature() -> None:
    found = zeros(Signature((Tensor("x", "FP32", (-1, 3)), Tensor("t", "BYTES", (-1,)))))
    assert found["x"].tolist() == [[0.0, 0.0, 0.0]]
    assert found["t"].tolist() == [b""]


def _field(number: int, value: bytes) -> bytes:
    return bytes((number << 3 | 2, len(value))) + value


def _model(location: bytes, *, swapped: bool = False) -> bytes:
    pair = [_field(1, b"location"), _field(2, location)]
    tensor = _field(13, b"".join(reversed(pair) if swapped else pair))
    return b"\x08\x08" + _field(7, _field(5, tensor)) + _field(8, b"\x10\x0d")


@pytest.mark.parametrize("swapped", [False, True])
@pytest.mark.parametrize("location", [b"/etc/passwd", b"../x", b"a/../../x", b"a\\..\\x", b"a\0b"])
def test_data_outside_of_the_folder_is_refused(tmp_path: Path, location: bytes, swapped: bool) -> None:
    file = tmp_path / "m.onnx"
    file.write_bytes(_model(location, swapped=swapped))
    assert onnx_file.looks_like(file)
    with pytest.raises(LoadFailed) as refused:
        onnx_file.check_external_data(file)
    assert refused.value.reason == "external_data_outside"


def test_data_behind_a_link_to_the_outside_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "m"
    folder.mkdir()
    (tmp_path / "secret").write_text("x")
    (folder / "weights").symlink_to(tmp_path / "secret")
    (folder / "m.onnx").write_bytes(_model(b"weights"))
    with pytest.raises(LoadFailed):
        onnx_file.check_external_data(folder / "m.onnx")


def test_data_inside_of_the_folder_is_allowed(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(_model(b"sub/weights.bin"))
    onnx_file.check_external_data(tmp_path / "m.onnx")


@pytest.mark.parametrize("content", [b"", b"\x08", b"{}", b"tree\n", b"\x08\x08\x3a\xff\xff\xff\xff\x0f", b"\x80\x04."])
def test_other_files_are_not_taken_for_graphs(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x").write_bytes(content)
    assert not onnx_file.looks_like(tmp_path / "x")
