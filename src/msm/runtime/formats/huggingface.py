"""Transformers from a local folder (config.json, model.safetensors, tokenizer), run as a `transformers.pipeline`.

The task is the parameter `task`, or what `architectures` in config.json says. Code of the folder (`auto_map`) is never
run, weights that are pickles need `trusted: true`, and nothing is fetched from the network.

| task | inputs | outputs | parameters |
|---|---|---|---|
| text-classification | text | label BYTES, score FP32 (with `top_k`: [-1, k], best first) | top_k |
| zero-shot-classification | text, candidate_labels BYTES [-1, k] (or the parameter) | label, score [-1, k], best first | candidate_labels, hypothesis_template, multi_label |
| token-classification | text | entities: JSON in BYTES | aggregation_strategy |
| fill-mask | text with one mask | token, sequence BYTES, score FP32, each [-1, k], best first | top_k |
| feature-extraction | text | last_hidden_state FP32 [-1, tokens, width], attention_mask INT64 [-1, tokens] | |
| text-generation | text | generated_text BYTES | return_full_text, generation |

`text` is BYTES [-1], UTF-8; outputs without a shape are [-1]. Longer text than the network takes is cut.
"""  # noqa: E501 - a table

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from threading import Lock
from typing import Any, Final

from msm.kit.errors import InvalidInput, LoadFailed, Unsupported
from msm.runtime.formats import hf_tasks, transformer
from msm.runtime.formats.base import (
    Array,
    LoadOptions,
    first_line,
    is_python,
    is_transformer,
    missing_library,
    parameter,
)
from msm.runtime.formats.hf_tasks import Task

_TOKENIZERS: Final = ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "vocab.json", "spiece.model")
_TASKS: Final[dict[str, tuple[str, ...]]] = {  # by the end of the architecture's name
    "ForSequenceClassification": ("text-classification", "zero-shot-classification"),
    "ForTokenClassification": ("token-classification",),
    "ForMaskedLM": ("fill-mask",),
    "ForCausalLM": ("text-generation",),
    "LMHeadModel": ("text-generation",),
    "Model": ("feature-extraction",),
}
_LOADERS: Final = {
    "text-classification": "AutoModelForSequenceClassification",
    "zero-shot-classification": "AutoModelForSequenceClassification",
    "token-classification": "AutoModelForTokenClassification",
    "fill-mask": "AutoModelForMaskedLM",
    "text-generation": "AutoModelForCausalLM",
    "feature-extraction": "AutoModel",
}
_NO_TYPES: Final[frozenset[str]] = frozenset()
_KINDS: Final[dict[str, frozenset[str]]] = {"text-generation": frozenset({"generate"})}


class HuggingFaceModel:
    """A pipeline and how its task's tensors go in and out. Public: `pipeline`, for handlers that stream."""

    accepts = _NO_TYPES
    exact_outputs = True
    may_block = False

    def __init__(self, pipeline: Any, task: Task) -> None:
        self.pipeline = pipeline
        self.signature = task.signature
        self.tasks = _KINDS.get(pipeline.task, _NO_TYPES)
        self._task = task
        self._one_at_a_time = Lock()  # tokenizers of the library keep settings of a call in themselves

    def predict(self, inputs: dict[str, Array]) -> Mapping[str, Any]:
        """Run the pipeline."""
        import torch

        with self._one_at_a_time, torch.inference_mode():
            return self._task.run(self.pipeline, inputs)


class HuggingFaceFormat:
    """Folders of Hugging Face transformers."""

    name = "huggingface"
    libraries: tuple[str, ...] = ("torch", "transformers.pipelines")

    def sniff(self, path: Path) -> bool:
        return (
            path.is_dir()
            and not (path / "modules.json").exists()
            and not is_python(path)
            and is_transformer(path)
            and any((path / name).is_file() for name in _TOKENIZERS)
        )

    def load(self, path: Path, options: LoadOptions) -> HuggingFaceModel:
        config = transformer.check_folder(path, options)
        name = chosen_task(config, parameter(options, "task", str, None))
        try:
            transformers = transformer.library()
        except ImportError as error:
            raise missing_library(self.name, "huggingface", error) from error
        try:
            tokenizer = transformers.AutoTokenizer.from_pretrained(
                str(path), local_files_only=True, trust_remote_code=False
            )
        except Exception as error:
            raise LoadFailed(
                f"the tokenizer could not be read: {first_line(error)}", reason="corrupt_artifact"
            ) from error
        network = transformer.pretrained(getattr(transformers, _LOADERS[name]), path, options)
        _fit(tokenizer, config)
        pipeline = transformers.pipeline(name, model=network, tokenizer=tokenizer, device="cpu")
        return HuggingFaceModel(pipeline, hf_tasks.build(name, pipeline, options))


def chosen_task(config: Mapping[str, Any], wanted: str | None) -> str:
    """The task of a folder: the wanted one, if its network is made for it. Raises InvalidInput, Unsupported."""
    if wanted is not None and wanted not in _LOADERS:
        raise InvalidInput(
            f"parameter 'task' is {wanted[:50]!r}, offered are {', '.join(_LOADERS)}", reason="invalid_parameter"
        )
    architectures = [str(name) for name in config.get("architectures") or ()]
    for architecture in architectures:
        for ending, tasks in _TASKS.items():
            if not architecture.endswith(ending):
                continue
            if wanted is None:
                return tasks[0]
            if wanted in tasks or wanted == "feature-extraction":
                return wanted
            raise InvalidInput(
                f"parameter 'task' is {wanted!r}, the network {architecture[:80]} is made for {', '.join(tasks)}",
                reason="invalid_parameter",
            )
    raise Unsupported(
        f"the architecture {', '.join(architectures)[:100] or 'that config.json does not name'} has no task "
        f"that is offered ({', '.join(_LOADERS)})",
        reason="unknown_task",
    )


def _fit(tokenizer: Any, config: Mapping[str, Any]) -> None:
    """Cut at what the network takes, and pad with something."""
    longest = config.get("max_position_embeddings") or config.get("n_positions")
    if isinstance(longest, int) and tokenizer.model_max_length > longest:
        # RoBERTa and its kin count positions from behind their padding token.
        offset = int(config.get("pad_token_id") or 0) + 1 if config.get("model_type") in _OFFSET else 0
        tokenizer.model_max_length = longest - offset
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token


_OFFSET: Final = ("roberta", "xlm-roberta", "camembert", "mpnet", "longformer", "data2vec-text", "esm")
