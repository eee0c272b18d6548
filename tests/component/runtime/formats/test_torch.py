"""PyTorch archives: signatures as exported, answers as the network's own, bad archives refused."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch

from msm.kit.errors import Forbidden, InvalidInput, LoadFailed
from msm.runtime import formats
from msm.runtime.formats.base import LoadedModel, LoadOptions
from msm.runtime.signature import Signature, Tensor
from tests.component.runtime.conftest import WorkerProcess
from tests.support.workers import tensor

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
TRUSTED = LoadOptions(trusted=True)


class Scores(NamedTuple):
    best: torch.Tensor
    all: torch.Tensor


class Named(torch.nn.Module):
    """A network with a dict of outputs."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.layer = torch.nn.Linear(4, 3)
        self.drop = torch.nn.Dropout(0.5)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        logits = self.layer(self.drop(x))
        return {"probabilities": torch.softmax(logits, -1), "label": logits.argmax(-1)}


class Two(torch.nn.Module):
    """Two inputs of equal rows."""

    def forward(self, left: torch.Tensor, right: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return left + right, (left * right).sum(1)


class Half(torch.nn.Module):
    """BF16 in and out, written to in place."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mul_(2)


def _rows() -> np.ndarray:
    return np.random.default_rng(1).normal(size=(5, 4)).astype(np.float32)


def _export(network: torch.nn.Module, path: Path, examples: tuple, **shapes: object) -> None:
    torch.export.save(torch.export.export(network.eval(), examples, dynamic_shapes=shapes or None), path)


def _load(path: Path, options: LoadOptions = TRUSTED) -> LoadedModel:
    loaded = formats.load(path, None, options)
    assert loaded.format == "torch"
    return loaded.model


def _check(model: LoadedModel, network: torch.nn.Module) -> None:
    rows = _rows()
    rows.flags.writeable = False  # as the bytes of a request are
    given = model.predict({model.signature.inputs[0].name if model.signature.inputs else "x": rows})
    with torch.no_grad():
        expected = network.eval()(torch.tensor(rows))
    assert given.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(given[name], value.numpy(), rtol=1e-6)


def test_an_exported_program_brings_its_signature(worker: WorkerProcess, tmp_path: Path) -> None:
    network = Named()
    _export(network, tmp_path / "m.pt2", (torch.zeros(2, 4),), x={0: torch.export.Dim("rows")})
    model = _load(tmp_path / "m.pt2")
    assert model.signature == Signature(
        (Tensor("x", "FP32", (-1, 4)),),
        (Tensor("probabilities", "FP32", (-1, 3)), Tensor("label", "INT64", (-1,))),
    )
    _check(model, network)
    assert worker.load("default/pt2/v1", tmp_path / "m.pt2").json()["reason"] == "unsafe_format"
    assert worker.load("default/pt2/v1", tmp_path / "m.pt2", trusted=True).json()["format"] == "torch"
    rows = _rows()
    answer = worker.infer("default/pt2/v1", tensor("x", "FP32", [5, 4], rows.ravel().tolist())).json()
    expected = network(torch.tensor(rows))["label"].tolist()
    assert next(item["data"] for item in answer["outputs"] if item["name"] == "label") == expected


@pytest.mark.parametrize("way", ["script", "trace"])
def test_torchscript_takes_a_signature_from_whoever_gives_one(tmp_path: Path, way: str) -> None:
    network = Named().eval()
    made = torch.jit.script(network) if way == "script" else torch.jit.trace(network, torch.zeros(2, 4), strict=False)
    (tmp_path / "m").mkdir()
    made.save(tmp_path / "m" / "model.pt")
    _check(_load(tmp_path / "m"), network)
    written = {
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 4]}],
        "outputs": [
            {"name": "probabilities", "datatype": "FP32", "shape": [-1, 3]},
            {"name": "label", "datatype": "INT64", "shape": [-1]},
        ],
    }
    model = _load(tmp_path / "m", LoadOptions(trusted=True, parameters={"signature": written}))
    assert [t.name for t in model.signature.outputs] == ["probabilities", "label"]
    _check(model, network)
    (tmp_path / "m" / "signature.json").write_text(
        '{"inputs": [{"name": "rows", "datatype": "FP32", "shape": [-1, 4]}]}'
    )
    model = _load(tmp_path / "m")
    assert model.signature.inputs[0].name == "rows"
    _check(model, network)
    (tmp_path / "m" / "signature.json").write_text('{"inputs": [{"nam": 1}]}')
    with pytest.raises(LoadFailed, match="signature") as refused:
        _load(tmp_path / "m")
    assert refused.value.reason == "bad_signature"


def test_a_network_saved_in_training_answers_as_in_evaluation(tmp_path: Path) -> None:
    network = Named().train()
    torch.jit.script(network).save(tmp_path / "m.pt")
    _check(_load(tmp_path / "m.pt"), network)


def test_dynamic_dimensions_are_held_to_their_ranges_and_to_each_other(tmp_path: Path) -> None:
    rows = torch.export.Dim("rows", min=2, max=8)
    _export(Two(), tmp_path / "m.pt2", (torch.zeros(3, 4), torch.zeros(3, 4)), left={0: rows}, right={0: rows})
    model = _load(tmp_path / "m.pt2")
    assert [t.name for t in model.signature.outputs] == ["output-0", "output-1"]
    given = model.predict({"left": np.ones((4, 4), np.float32), "right": np.full((4, 4), 2, np.float32)})
    assert given["output-1"].tolist() == [8.0] * 4
    for left, right, told in ((4, 5, "must be 4"), (9, 9, "from 2 to 8"), (1, 1, "from 2 to 8")):
        with pytest.raises(InvalidInput, match=told):
            model.predict({"left": np.ones((left, 4), np.float32), "right": np.ones((right, 4), np.float32)})


def test_bf16_goes_in_as_bits_and_comes_out_as_fp32(tmp_path: Path) -> None:
    _export(Half(), tmp_path / "m.pt2", (torch.zeros(3, dtype=torch.bfloat16),))
    model = _load(tmp_path / "m.pt2")
    assert (model.signature.inputs[0].datatype, model.signature.outputs[0].datatype) == ("BF16", "FP32")
    bits = torch.tensor([1.0, -2.5, 3.0], dtype=torch.bfloat16).view(torch.uint16).numpy()
    bits.flags.writeable = False
    assert model.predict({"x": bits})["output-0"].tolist() == [2.0, -5.0, 6.0]
    assert torch.from_numpy(bits.copy()).view(torch.bfloat16).tolist() == [1.0, -2.5, 3.0]  # not written to


def test_a_declared_signature_may_rename_but_not_contradict(tmp_path: Path) -> None:
    _export(Two(), tmp_path / "m.pt2", (torch.zeros(3, 4), torch.zeros(3, 4)))
    shape = (3, 4)
    names = (Tensor("a", "FP32", shape), Tensor("b", "FP32", shape))
    results = (Tensor("sum", "FP32", shape), Tensor("dot", "FP32", (3,)))
    model = _load(tmp_path / "m.pt2", LoadOptions(trusted=True, signature=Signature(names, results)))
    given = model.predict({"a": np.ones(shape, np.float32), "b": np.ones(shape, np.float32)})
    assert given["dot"].tolist() == [4.0, 4.0, 4.0]
    with pytest.raises(LoadFailed, match="other inputs"):
        _load(tmp_path / "m.pt2", LoadOptions(trusted=True, signature=Signature(names[:1])))


def test_every_archive_needs_trust_and_weights_alone_are_no_network(tmp_path: Path) -> None:
    network = torch.nn.Linear(2, 1)
    torch.save(network, tmp_path / "whole.pt")
    torch.save(network.state_dict(), tmp_path / "weights.pt")
    torch.jit.script(network).save(tmp_path / "script.pt")
    _export(network, tmp_path / "export.pt2", (torch.zeros(3, 2),))
    for name in ("whole.pt", "weights.pt", "script.pt", "export.pt2"):
        with pytest.raises(Forbidden, match="trusted: true"):
            _load(tmp_path / name, LoadOptions())
    given = _load(tmp_path / "whole.pt").predict({"input": np.ones((1, 2), np.float32)})
    np.testing.assert_allclose(given["output-0"], network(torch.ones(1, 2)).detach().numpy())
    with pytest.raises(LoadFailed, match="no network") as refused:
        _load(tmp_path / "weights.pt")
    assert refused.value.reason == "not_a_model"


def test_broken_archives_are_told_apart(tmp_path: Path) -> None:
    _export(Two(), tmp_path / "m.pt2", (torch.zeros(3, 4), torch.zeros(3, 4)))
    torch.jit.script(Two()).save(tmp_path / "m.pt")
    for name in ("m.pt2", "m.pt"):
        whole = (tmp_path / name).read_bytes()
        (tmp_path / "half").write_bytes(whole[: len(whole) // 2])
        with pytest.raises(LoadFailed, match="no torch model"):
            formats.load(tmp_path / "half", "torch", TRUSTED)
        with zipfile.ZipFile(tmp_path / name) as source, zipfile.ZipFile(tmp_path / "odd", "w") as target:
            for entry in source.namelist():  # everything there, the content of the program not
                odd = entry.endswith(("model.json", "torch_.py", "data.pkl"))
                target.writestr(entry, b"\x80\x02garbage" if odd else source.read(entry))
        with pytest.raises(LoadFailed, match="could not be read") as refused:
            _load(tmp_path / "odd")
        assert refused.value.reason == "corrupt_artifact"


def test_text_for_a_network_is_the_clients_mistake(tmp_path: Path) -> None:
    torch.jit.script(Two()).save(tmp_path / "m.pt")
    with pytest.raises(InvalidInput, match="BYTES"):
        _load(tmp_path / "m.pt").predict({"left": np.array([b"a"], object)})
