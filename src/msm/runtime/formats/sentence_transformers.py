"""Sentence embeddings from a folder of the sentence-transformers library, which itself is not needed.

The folder's `modules.json` names the steps: a transformer (config.json, model.safetensors, tokenizer.json), then
pooling, then possibly dense layers and normalisation. Text is cut at the folder's own length. Weights must be
safetensors unless the version is trusted; nothing is ever fetched from the network, no code of the folder runs.

Input: `text`, BYTES [-1] (UTF-8). Output: `embedding`, FP32 [-1, dimension]. Parameter `prompt` names one of the
prompts in `config_sentence_transformers.json` to be put before each text; else its default one, if any.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Final

import numpy as np

from msm.kit.errors import InvalidInput, LoadFailed, Unsupported
from msm.runtime.formats import transformer
from msm.runtime.formats.base import Array, LoadOptions, is_python, missing_library, parameter, read_json
from msm.runtime.formats.frames import strings
from msm.runtime.signature import Signature, Tensor

_ROWS_AT_ONCE: Final = 32
_UNBOUNDED: Final = 1_000_000  # tokenizers without a limit say a number far above
_POOLINGS: Final = ("cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")
_NO_TYPES: Final[frozenset[str]] = frozenset()

Step = Callable[[Any], Any]


@dataclass(frozen=True, slots=True)
class Plan:
    """The steps of a folder: where the transformer is, how it is pooled, and the steps after that."""

    transformer: Path
    poolings: tuple[str, ...]
    after: tuple[tuple[str, Path], ...]


class EmbeddingModel:
    """A transformer with pooling. `predict` is what a handler of OpenAI's `/v1/embeddings` needs: text → embedding."""

    tasks: frozenset[str] = frozenset({"embed"})
    accepts = _NO_TYPES
    exact_outputs = True
    may_block = False

    def __init__(self, tokenizer: Any, encode: Callable[[Any, Any], Any], padding: int, prompt: str) -> None:
        dimension = _dimension(encode)
        self.signature = Signature((Tensor("text", "BYTES", (-1,)),), (Tensor("embedding", "FP32", (-1, dimension)),))
        self._tokenizer = tokenizer
        self._encode = encode
        self._dimension = dimension
        self._padding = padding
        self._prompt = prompt

    def predict(self, inputs: dict[str, Array]) -> dict[str, Array]:
        """Embed the texts: those of similar length together, so that little is padded."""
        import torch

        texts = [self._prompt + text for text in strings("text", inputs["text"])]
        tokens = [self._tokenizer.encode(text) for text in texts]
        order = sorted(range(len(texts)), key=lambda index: len(tokens[index].ids))
        embeddings = np.empty((len(texts), self._dimension), np.float32)
        with torch.inference_mode():
            for start in range(0, len(order), _ROWS_AT_ONCE):
                rows = order[start : start + _ROWS_AT_ONCE]
                longest = len(tokens[rows[-1]].ids)
                ids = np.full((len(rows), longest), self._padding, np.int64)
                mask = np.zeros((len(rows), longest), np.int64)
                for line, row in enumerate(rows):
                    count = len(tokens[row].ids)
                    ids[line, :count] = tokens[row].ids
                    mask[line, :count] = 1
                embeddings[rows] = self._encode(torch.from_numpy(ids), torch.from_numpy(mask)).numpy()
        return {"embedding": embeddings}

    def count_tokens(self, texts: Sequence[str]) -> int:
        """How many tokens the texts are cut into, special ones counted: the `usage` of an OpenAI answer."""
        return sum(len(self._tokenizer.encode(self._prompt + text).ids) for text in texts)


class SentenceTransformersFormat:
    """Folders of sentence-transformers."""

    name = "sentence_transformers"
    libraries: tuple[str, ...] = ("torch", "transformers.models.auto.modeling_auto", "tokenizers")

    def sniff(self, path: Path) -> bool:
        return path.is_dir() and not is_python(path) and bool(_modules(path))

    def load(self, path: Path, options: LoadOptions) -> EmbeddingModel:
        plan = _plan(path)
        config = transformer.check_folder(plan.transformer, options)
        try:
            transformers = transformer.library()
            from safetensors.torch import load_file
        except ImportError as error:
            raise missing_library(self.name, "embeddings", error) from error
        tokenizer = _tokenizer(plan.transformer, config)
        network = transformer.pretrained(transformers.AutoModel, plan.transformer, options)
        steps = [_step(kind, folder, load_file) for kind, folder in plan.after]

        def encode(ids: Any, mask: Any) -> Any:
            hidden = network(input_ids=ids, attention_mask=mask).last_hidden_state
            result = _pooled(hidden, mask, plan.poolings)
            for step in steps:
                result = step(result)
            return result

        padding = config.get("pad_token_id")
        return EmbeddingModel(tokenizer, encode, padding if isinstance(padding, int) else 0, _prompt(path, options))


def _modules(path: Path) -> list[dict[str, Any]]:
    """The entries of modules.json; none when it is not one of sentence-transformers."""
    try:
        found = json.loads((path / "modules.json").read_bytes())
    except (OSError, ValueError, RecursionError):
        return []
    if not isinstance(found, list) or not all(isinstance(entry, dict) for entry in found):
        return []
    types = [str(entry.get("type", "")) for entry in found]
    return found if types and types[0].startswith("sentence_transformers.") else []


def _plan(path: Path) -> Plan:
    """The steps that modules.json names. Raises LoadFailed, Unsupported for a step that is not known."""
    entries = [(str(entry.get("type", "")).rpartition(".")[2], _inside(path, entry)) for entry in _modules(path)]
    if len(entries) < 2 or entries[0][0] != "Transformer" or entries[1][0] != "Pooling":
        raise LoadFailed(
            "modules.json must name a Transformer and a Pooling first, it names "
            + (", ".join(kind for kind, _ in entries)[:200] or "nothing"),
            reason="wrong_format",
        )
    for kind, _ in entries[2:]:
        if kind not in ("Dense", "Normalize"):
            raise Unsupported(f"modules.json names the step {kind[:50]!r}, which is not offered", reason="unknown_step")
    return Plan(entries[0][1], _poolings(entries[1][1]), tuple(entries[2:]))


def _inside(path: Path, entry: Mapping[str, Any]) -> Path:
    relative = PurePosixPath(str(entry.get("path", "")))
    if relative.is_absolute() or ".." in relative.parts:
        raise LoadFailed(f"modules.json names {str(relative)[:100]!r}, outside of its folder", reason="outside_folder")
    return path / relative


def _poolings(folder: Path) -> tuple[str, ...]:
    """The ways of pooling, whose results are joined in this order."""
    config = read_json(folder / "config.json")
    if not config:
        raise LoadFailed("the configuration of the pooling is missing or broken", reason="corrupt_artifact")
    named = config.get("pooling_mode")
    if named is not None:
        chosen = [named] if isinstance(named, str) else list(named)
    else:
        flags = {
            "cls": "cls_token", "max": "max_tokens", "mean": "mean_tokens",
            "mean_sqrt_len_tokens": "mean_sqrt_len_tokens", "weightedmean": "weightedmean_tokens",
            "lasttoken": "lasttoken",
        }  # fmt: skip
        chosen = [name for name in _POOLINGS if config.get(f"pooling_mode_{flags[name]}")]
    if not chosen or not set(chosen) <= set(_POOLINGS):
        raise Unsupported(f"the pooling {str(chosen)[:100]} is none of {', '.join(_POOLINGS)}", reason="unknown_step")
    return tuple(chosen)


def _pooled(hidden: Any, mask: Any, poolings: Sequence[str]) -> Any:
    """[rows, tokens, width] and the mask [rows, tokens] → [rows, width × ways]."""
    import torch

    weight = mask.unsqueeze(-1).to(hidden.dtype)
    parts = []
    for way in poolings:
        if way == "cls":
            parts.append(hidden[:, 0])
        elif way == "max":
            parts.append(hidden.masked_fill(weight == 0, float("-inf")).amax(1))
        elif way == "lasttoken":
            parts.append(hidden[torch.arange(len(hidden)), mask.sum(1) - 1])
        elif way == "weightedmean":
            position = weight * torch.arange(1, hidden.shape[1] + 1).view(1, -1, 1)
            parts.append((hidden * position).sum(1) / position.sum(1).clamp(min=1e-9))
        else:
            count = weight.sum(1).clamp(min=1e-9)
            parts.append((hidden * weight).sum(1) / (count if way == "mean" else count.sqrt()))
    return torch.cat(parts, 1) if len(parts) > 1 else parts[0]


def _step(kind: str, folder: Path, load_file: Callable[[str], dict[str, Any]]) -> Step:
    """A step after the pooling."""
    import torch

    if kind == "Normalize":
        return lambda rows: torch.nn.functional.normalize(rows, p=2, dim=1)
    config = read_json(folder / "config.json")
    name = str(config.get("activation_function", "")).rpartition(".")[2]
    activations: dict[str, Step] = {
        "Identity": lambda rows: rows, "Tanh": torch.tanh, "ReLU": torch.relu, "GELU": torch.nn.functional.gelu,
        "Sigmoid": torch.sigmoid,
    }  # fmt: skip
    if name not in activations:
        raise Unsupported(
            f"a dense layer has the activation {name[:50]!r}, which is not offered", reason="unknown_step"
        )
    file = folder / "model.safetensors"
    if not file.is_file():
        raise LoadFailed("a dense layer has no model.safetensors", reason="unsafe_format")
    weights = {key.rpartition(".")[2]: value.float() for key, value in load_file(str(file)).items()}
    activation = activations[name]
    return lambda rows: activation(torch.nn.functional.linear(rows, weights["weight"], weights.get("bias")))


def _tokenizer(folder: Path, config: Mapping[str, Any]) -> Any:
    """The tokenizer of the folder, cutting at its own length; padding is left to the caller."""
    from tokenizers import Tokenizer, normalizers

    file = folder / "tokenizer.json"
    if not file.is_file():
        raise LoadFailed("the folder holds no tokenizer.json", reason="wrong_format")
    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:
        raise LoadFailed("tokenizer.json is broken or of a newer version", reason="corrupt_artifact") from error
    own = read_json(folder / "sentence_bert_config.json")
    known = [read_json(folder / "tokenizer_config.json").get("model_max_length"), config.get("max_position_embeddings")]
    longest = own.get("max_seq_length") or min((length for length in known if isinstance(length, int)), default=None)
    tokenizer.no_padding()
    if isinstance(longest, int) and longest < _UNBOUNDED:
        tokenizer.enable_truncation(longest)
    if own.get("do_lower_case"):
        before = [tokenizer.normalizer] if tokenizer.normalizer is not None else []
        tokenizer.normalizer = normalizers.Sequence([normalizers.Lowercase(), *before])
    return tokenizer


def _dimension(encode: Callable[[Any, Any], Any]) -> int:
    import torch

    with torch.inference_mode():
        one = torch.ones((1, 1), dtype=torch.int64)
        return int(encode(one, one).shape[1])


def _prompt(path: Path, options: LoadOptions) -> str:
    config = read_json(path / "config_sentence_transformers.json")
    prompts = config.get("prompts") or {}
    name = parameter(options, "prompt", str, None)
    if name is not None and name not in prompts:
        raise InvalidInput(
            f"parameter 'prompt' is {name[:50]!r}, the folder has {', '.join(prompts) or 'no prompts'}",
            reason="invalid_parameter",
        )
    return str(prompts.get(name or config.get("default_prompt_name"), ""))
