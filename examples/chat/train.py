"""Trains the transformer on this repository's documents and writes the artifact: `model.py`, weights, shape.

python -m examples.chat.train FOLDER [--seconds 50]
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, scaled_dot_product_attention

HERE = Path(__file__).parent
REPOSITORY = HERE.parent.parent
BATCH = 32
LAYERS, HEADS, WIDTH, CONTEXT = 2, 4, 96, 64


class Block(nn.Module):
    """Attention and a wide layer, each behind a norm and beside a short cut."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.inside = nn.Linear(WIDTH, 3 * WIDTH, bias=False)
        self.outside = nn.Linear(WIDTH, WIDTH, bias=False)
        self.wide = nn.Linear(WIDTH, 4 * WIDTH, bias=False)
        self.narrow = nn.Linear(4 * WIDTH, WIDTH, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, _ = x.shape
        parts = self.inside(self.first(x)).reshape(batch, length, 3, HEADS, -1).permute(2, 0, 3, 1, 4)
        seen = scaled_dot_product_attention(parts[0], parts[1], parts[2], is_causal=True)
        x = x + self.outside(seen.transpose(1, 2).reshape(batch, length, WIDTH))
        return x + self.narrow(torch.relu(self.wide(self.second(x))))


class Transformer(nn.Module):
    """(batch, length) codes of characters → (batch, length, characters) logits of the next one."""

    def __init__(self, characters: int) -> None:
        super().__init__()
        self.characters = nn.Embedding(characters, WIDTH)
        self.places = nn.Embedding(CONTEXT, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(LAYERS))
        self.last = nn.LayerNorm(WIDTH)
        nn.init.normal_(self.characters.weight, std=0.05)
        nn.init.normal_(self.places.weight, std=0.05)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.characters(tokens) + self.places(torch.arange(tokens.shape[1]))
        for block in self.blocks:
            x = block(x)
        return self.last(x) @ self.characters.weight.T


def repository_text() -> str:
    """What there is to learn from: the documents of this repository."""
    files = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").rglob("*.md"))]
    return "\n".join(file.read_text() for file in files)


def train(text: str, seconds: float, seed: int = 1) -> tuple[Transformer, str, list[float]]:
    """The model, its characters, and the loss of each step (nats per character)."""
    torch.manual_seed(seed)
    torch.set_num_threads(1)  # so small a network gains nothing from more, and loses much on a busy machine
    characters = "".join(sorted(set(text)))
    codes = {character: code for code, character in enumerate(characters)}
    data = torch.tensor([codes[character] for character in text])
    model = Transformer(len(characters))
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    losses: list[float] = []
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        starts = torch.randint(len(data) - CONTEXT - 1, (BATCH,))
        rows = torch.stack([data[start : start + CONTEXT + 1] for start in starts])
        loss = cross_entropy(model(rows[:, :-1]).flatten(0, 1), rows[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return model, characters, losses


def write(model: Transformer, characters: str, folder: Path) -> Path:
    """The artifact, which a version with `format: python, trusted: true` names."""
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(folder / "weights.npz", **{name: value.numpy() for name, value in model.state_dict().items()})
    shape = {"characters": characters, "context": CONTEXT, "layers": LAYERS, "heads": HEADS}
    (folder / "shape.json").write_text(json.dumps(shape))
    shutil.copy(HERE / "model.py", folder / "model.py")
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the chat model of the example.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seconds", type=float, default=50)
    found = parser.parse_args()
    model, characters, losses = train(repository_text(), found.seconds)
    write(model, characters, found.folder)
    print(f"{len(losses)} steps, loss {losses[0]:.2f} → {np.mean(losses[-20:]):.2f}; written to {found.folder}")


if __name__ == "__main__":
    main()
