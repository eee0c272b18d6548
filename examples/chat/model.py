"""A character-level transformer as a plain Python class: it continues texts and answers in chats, one character a step.

Runs on NumPy alone. `weights.npz` beside it is what `train.py` wrote.
"""

import json
from pathlib import Path

import numpy as np


def normalised(x, scale, shift):
    """Layer normalisation of the last axis."""
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * scale + shift


def softmax(x):
    powers = np.exp(x - x.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


class Model:
    """Completions and chats; a prompt's characters that the model does not know are left out."""

    tasks = ["completion", "chat"]

    def load(self, path):
        with np.load(Path(path) / "weights.npz") as archive:
            self.weights = {name: archive[name] for name in archive.files}
        shape = json.loads((Path(path) / "shape.json").read_text())
        self.characters, self.context = shape["characters"], shape["context"]
        self.layers, self.heads = shape["layers"], shape["heads"]
        self.codes = {character: code for code, character in enumerate(self.characters)}

    def chat_template(self, messages):
        return "".join(message["content"] + "\n" for message in messages)

    def count_tokens(self, text):
        return sum(character in self.codes for character in text)

    def complete(self, prompt, options):
        tokens = [self.codes[character] for character in prompt if character in self.codes] or [0]
        random = np.random.default_rng(options.seed)
        temperature = 0.8 if options.temperature is None else options.temperature
        for _ in range(options.max_tokens or 400):
            if options.cancelled():
                return
            chances = self.logits(np.array(tokens[-self.context :]))
            if temperature < 0.01:
                chosen = int(chances.argmax())
            else:
                chosen = int(random.choice(len(chances), p=softmax(chances.astype(np.float64) / temperature)))
            tokens.append(chosen)
            yield self.characters[chosen]

    def logits(self, tokens):
        """How likely each character is to come next (A. Vaswani et al., 2017; the norms come first)."""
        w = self.weights
        x = w["characters.weight"][tokens] + w["places.weight"][: len(tokens)]
        future = np.triu(np.full((len(tokens), len(tokens)), -np.inf, np.float32), 1)
        for layer in range(self.layers):
            name = f"blocks.{layer}"
            y = normalised(x, w[f"{name}.first.weight"], w[f"{name}.first.bias"])
            parts = (y @ w[f"{name}.inside.weight"].T).reshape(len(tokens), 3, self.heads, -1).transpose(1, 2, 0, 3)
            queries, keys, values = parts
            looks = softmax(queries @ keys.transpose(0, 2, 1) / np.sqrt(queries.shape[-1]) + future)
            seen = (looks @ values).transpose(1, 0, 2).reshape(len(tokens), -1)
            x = x + seen @ w[f"{name}.outside.weight"].T
            y = normalised(x, w[f"{name}.second.weight"], w[f"{name}.second.bias"])
            x = x + np.maximum(y @ w[f"{name}.wide.weight"].T, 0) @ w[f"{name}.narrow.weight"].T
        last = normalised(x[-1], w["last.weight"], w["last.bias"])
        return last @ w["characters.weight"].T
