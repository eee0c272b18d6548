"""The tasks of Hugging Face pipelines as tensors: signature, what goes into the pipeline, what its answers become."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from msm.kit.errors import InvalidInput, Unsupported
from msm.runtime.formats.base import Array, LoadOptions, parameter
from msm.runtime.formats.frames import strings
from msm.runtime.protocols.tensors import objects
from msm.runtime.signature import Signature, Tensor

_TEXT: Final = Tensor("text", "BYTES", (-1,))
_ROWS_AT_ONCE: Final = 32
_MAX_NEW_TOKENS: Final = 64


@dataclass(frozen=True, slots=True)
class Task:
    """A task's tensors, and how its pipeline is run on them."""

    signature: Signature
    run: Callable[[Any, dict[str, Array]], Mapping[str, Any]]


def build(name: str, pipeline: Any, options: LoadOptions) -> Task:
    """The task `name` with the parameters of the version. Raises InvalidInput for a wrong one."""
    builders: dict[str, Callable[[Any, LoadOptions], Task]] = {
        "text-classification": _text_classification,
        "zero-shot-classification": _zero_shot,
        "token-classification": _token_classification,
        "fill-mask": _fill_mask,
        "feature-extraction": _feature_extraction,
        "text-generation": _text_generation,
    }
    if name not in builders:
        raise Unsupported(f"the task {name[:50]!r} is not offered", reason="unknown_task")
    return builders[name](pipeline, options)


def _text_classification(pipeline: Any, options: LoadOptions) -> Task:
    top = _top_k(options, pipeline.model.config.num_labels, None)
    shape = (-1,) if top is None else (-1, top)
    signature = Signature((_TEXT,), (Tensor("label", "BYTES", shape), Tensor("score", "FP32", shape)))

    def run(pipe: Any, inputs: dict[str, Array]) -> Mapping[str, Any]:
        answers = pipe(strings("text", inputs["text"]), truncation=True, top_k=top or 1, batch_size=_ROWS_AT_ONCE)
        return {key: column.reshape(len(answers), *shape[1:]) for key, column in _ranked(answers).items()}

    return Task(signature, run)


def _ranked(answers: Sequence[Any], names: Mapping[str, str] | None = None) -> dict[str, Array]:
    """Lists of {"label", "score"} as columns [rows × k]; `names`: output → key of the answers."""
    flat = [entry for answer in answers for entry in (answer if isinstance(answer, list) else [answer])]
    columns = {
        name: objects([str(entry[key]).encode() for entry in flat])
        for name, key in (names or {"label": "label"}).items()
    }
    return columns | {"score": np.array([entry["score"] for entry in flat], np.float32)}


def _zero_shot(pipeline: Any, options: LoadOptions) -> Task:
    fixed = parameter(options, "candidate_labels", list, None)
    settings: dict[str, Any] = {"multi_label": bool(parameter(options, "multi_label", bool, False))}
    template = parameter(options, "hypothesis_template", str, None)
    if template is not None:
        settings["hypothesis_template"] = template
    width = len(fixed) if fixed else -1
    outputs = (Tensor("label", "BYTES", (-1, width)), Tensor("score", "FP32", (-1, width)))
    asked = () if fixed else (Tensor("candidate_labels", "BYTES", (-1, -1)),)

    def run(pipe: Any, inputs: dict[str, Array]) -> Mapping[str, Any]:
        texts = strings("text", inputs["text"])
        if fixed:
            labels = [[str(label) for label in fixed]] * len(texts)
        else:
            given = inputs["candidate_labels"]
            if given.shape[0] != len(texts) or not given.shape[1]:
                raise InvalidInput(
                    f"input 'candidate_labels' must have shape [{len(texts)}, labels], got {list(given.shape)}",
                    reason="shape_mismatch",
                )
            labels = [strings("candidate_labels", row) for row in given]
        answers = [pipe(text, own, **settings) for text, own in zip(texts, labels, strict=True)]
        rows = len(texts), len(labels[0]) if labels else 0
        words = [label.encode() for answer in answers for label in answer["labels"]]
        scores = np.array([answer["scores"] for answer in answers], np.float32)
        return {"label": objects(words).reshape(rows), "score": scores.reshape(rows)}

    return Task(Signature((_TEXT, *asked), outputs), run)


def _token_classification(pipeline: Any, options: LoadOptions) -> Task:
    strategy = parameter(options, "aggregation_strategy", str, "none")
    if strategy not in ("none", "simple", "first", "average", "max"):
        raise InvalidInput(
            f"parameter 'aggregation_strategy' is {strategy[:50]!r}, it must be none, simple, first, average or max",
            reason="invalid_parameter",
        )

    def run(pipe: Any, inputs: dict[str, Array]) -> Mapping[str, Any]:
        texts = strings("text", inputs["text"])
        answers = pipe(texts, aggregation_strategy=strategy, batch_size=_ROWS_AT_ONCE)
        return {"entities": objects([json.dumps(answer, default=_plain).encode() for answer in answers])}

    return Task(Signature((_TEXT,), (Tensor("entities", "BYTES", (-1,)),)), run)


def _plain(value: Any) -> Any:
    """A number of NumPy as one of Python's."""
    return value.item()


def _fill_mask(pipeline: Any, options: LoadOptions) -> Task:
    top = _top_k(options, pipeline.model.config.vocab_size, 5)
    names = {"token": "token_str", "sequence": "sequence"}
    outputs = (
        *(Tensor(name, "BYTES", (-1, int(top or 5))) for name in names),
        Tensor("score", "FP32", (-1, int(top or 5))),
    )
    mask = pipeline.tokenizer.mask_token

    def run(pipe: Any, inputs: dict[str, Array]) -> Mapping[str, Any]:
        texts = strings("text", inputs["text"])
        for text in texts:
            if text.count(mask) != 1:
                raise InvalidInput(
                    f"each text must have {mask} exactly once, got {text.count(mask)} in {text[:60]!r}",
                    reason="mask_missing",
                )
        answers = pipe(texts, top_k=top, batch_size=_ROWS_AT_ONCE, tokenizer_kwargs={"truncation": True})
        if len(texts) == 1 and answers and isinstance(answers[0], dict):
            answers = [answers]
        return {key: column.reshape(len(texts), -1) for key, column in _ranked(answers, names).items()}

    return Task(Signature((_TEXT,), outputs), run)


def _feature_extraction(pipeline: Any, options: LoadOptions) -> Task:
    width = int(pipeline.model.config.hidden_size)
    outputs = (Tensor("last_hidden_state", "FP32", (-1, -1, width)), Tensor("attention_mask", "INT64", (-1, -1)))

    def run(pipe: Any, inputs: dict[str, Array]) -> Mapping[str, Any]:
        tokens = pipe.tokenizer(strings("text", inputs["text"]), return_tensors="pt", padding=True, truncation=True)
        hidden = pipe.model(**tokens).last_hidden_state
        return {"last_hidden_state": hidden.numpy(), "attention_mask": tokens["attention_mask"].numpy()}

    return Task(Signature((_TEXT,), outputs), run)


def _text_generation(pipeline: Any, options: LoadOptions) -> Task:
    full = bool(parameter(options, "return_full_text", bool, True))
    settings: dict[str, Any] = {"do_sample": False, **(parameter(options, "generation", dict, None) or {})}
    wanted = settings.pop("max_new_tokens", _MAX_NEW_TOKENS)
    if type(wanted) is not int or wanted < 1 or "max_length" in settings:
        raise InvalidInput(
            "parameter 'generation' must bound the answer by max_new_tokens, a whole number from 1",
            reason="invalid_parameter",
        )

    def run(pipe: Any, inputs: dict[str, Array]) -> Mapping[str, Any]:
        # One by one: a neighbour's padding must not change what is generated.
        answers = []
        for text in strings("text", inputs["text"]):
            room = min(wanted, _room(pipe, text))
            found = pipe(text, return_full_text=full, max_new_tokens=room, **settings)
            answers.append(found[0]["generated_text"].encode())
        return {"generated_text": objects(answers)}

    return Task(Signature((_TEXT,), (Tensor("generated_text", "BYTES", (-1,)),)), run)


def _room(pipe: Any, text: str) -> int:
    """How many tokens the network can add to a text. Raises InvalidInput when there are none."""
    count = len(pipe.tokenizer(text)["input_ids"])
    longest = pipe.tokenizer.model_max_length
    if not 0 < count < longest:
        raise InvalidInput(
            f"a text to go on from must have from 1 to {longest - 1} tokens, got {count}", reason="text_length"
        )
    return int(longest - count)


def _top_k(options: LoadOptions, most: int, default: int | None) -> int | None:
    """Parameter `top_k`, at most what there is. Raises InvalidInput unless it is positive."""
    top = parameter(options, "top_k", int, default)
    if top is not None and top < 1:
        raise InvalidInput(f"parameter 'top_k' must be at least 1, got {top}", reason="invalid_parameter")
    return None if top is None else min(top, most)
