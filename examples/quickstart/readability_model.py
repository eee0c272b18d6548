"""A model as a plain Python class: `predict` gets named arrays and returns named arrays."""

import re

import numpy as np

VOWELS = re.compile(r"[aeiouy]+")


def syllables(word: str) -> int:
    """Groups of vowels, less a silent final e; at least one."""
    count = len(VOWELS.findall(word))
    return max(1, count - (word.endswith("e") and not word.endswith("le")))


def reading_ease(text: str) -> float:
    """Flesch's reading ease (R. Flesch, 1948): about 100 is very easy, below 30 very hard."""
    words = re.findall(r"[a-z']+", text.lower())
    sentences = max(1, len(re.findall(r"[.!?]+", text)))
    if not words:
        return 0.0
    per_sentence = len(words) / sentences
    per_word = sum(map(syllables, words)) / len(words)
    return 206.835 - 1.015 * per_sentence - 84.6 * per_word


class Model:
    """Texts in, one score each out."""

    signature = {
        "inputs": [{"name": "text", "datatype": "BYTES", "shape": [-1]}],
        "outputs": [{"name": "reading_ease", "datatype": "FP64", "shape": [-1]}],
    }

    def predict(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        texts = [raw.decode() if isinstance(raw, bytes) else str(raw) for raw in inputs["text"]]
        return {"reading_ease": np.array([reading_ease(text) for text in texts])}
