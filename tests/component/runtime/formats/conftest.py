"""Artifacts as their own libraries write them, made once for all tests of formats."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"  # before MLflow is imported by any test
os.environ["HF_HUB_OFFLINE"] = "1"

Make = Callable[[Path], None]

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "film", "book", "was", "good", "bad", "very", "a", "not"]
SENTENCES = ["the film was good", "the book was bad", "a very good book", "not good", "very bad film", "a book"]


@pytest.fixture(scope="session")
def iris() -> tuple[np.ndarray, np.ndarray]:
    """Rows of iris, FP32, and their classes."""
    from sklearn.datasets import load_iris

    rows, labels = load_iris(return_X_y=True)
    return rows.astype(np.float32), labels


@pytest.fixture
def quiet() -> Iterator[None]:
    """Warnings of the libraries that write artifacts are not ours to fix."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def tokenizer(folder: Path, *, generative: bool = False) -> None:
    """A whitespace tokenizer of few words, as transformers stores one."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if not generative:
        inner.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
        )
    special = {"eos_token": "[SEP]"} if generative else {
        "pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]",
    }  # fmt: skip
    PreTrainedTokenizerFast(tokenizer_object=inner, **special).save_pretrained(folder)


def bert(head: str, folder: Path, **settings: object) -> None:
    """A tiny BERT with random weights from a seed, and a tokenizer."""
    import torch
    import transformers

    torch.manual_seed(7)
    config = transformers.BertConfig(
        vocab_size=len(WORDS), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=24, initializer_range=0.5, **settings,
    )  # fmt: skip
    network = getattr(transformers, head)(config)
    if head == "BertForSequenceClassification":
        _learn_moods(network)
    network.save_pretrained(folder)
    tokenizer(folder)


def _learn_moods(network: object) -> None:
    """Train a classifier to tell good (1) from bad (0) in the sentences."""
    import torch

    lines = [[2, *(WORDS.index(word) for word in sentence.split()), 3] for sentence in SENTENCES]
    ids = torch.tensor([line + [0] * (8 - len(line)) for line in lines])
    labels = torch.tensor([int("good" in sentence) for sentence in SENTENCES])
    optimizer = torch.optim.AdamW(network.parameters(), 5e-3)
    for _ in range(20):
        loss = network(input_ids=ids, attention_mask=(ids > 0).long(), labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def gpt(folder: Path) -> None:
    """A tiny GPT-2 that was trained to say "the film was good the film was good ..."."""
    import torch
    import transformers

    torch.manual_seed(7)
    config = transformers.GPT2Config(
        vocab_size=len(WORDS), n_positions=48, n_embd=32, n_layer=1, n_head=2, bos_token_id=2, eos_token_id=3,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
    )  # fmt: skip
    network = transformers.GPT2LMHeadModel(config)
    line = torch.tensor([[WORDS.index(word) for word in ["the", "film", "was", "good"]] * 6])
    optimizer = torch.optim.AdamW(network.parameters(), 1e-2)
    for _ in range(60):
        loss = network(input_ids=line, labels=line).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    network.save_pretrained(folder)
    tokenizer(folder, generative=True)
