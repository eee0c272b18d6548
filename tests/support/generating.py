"""A model that generates in every way there is, and does as its input says: for tests of streams."""

from __future__ import annotations

from pathlib import Path

SOURCE = """
import asyncio, os, pathlib, threading, time
import numpy as np

FOLDER = pathlib.Path(__file__).parent
COUNT = [0, 0]  # steps given, steps running at once at most
INSIDE = []


def until(name):
    while not (FOLDER / name).exists():
        time.sleep(0.002)


class Model:
    signature = {
        "inputs": [{"name": "text", "datatype": "BYTES", "shape": [-1]},
                   {"name": "length", "datatype": "INT32", "shape": [1], "optional": True}],
        "outputs": [{"name": "text", "datatype": "BYTES", "shape": [1]}],
    }
    tasks = ["generate", "completion", "chat"]

    def chat_template(self, messages):
        return " ".join(message["content"] for message in messages)

    def count_tokens(self, text):
        return len(text.split())

    def predict(self, inputs):
        return {"text": [str(COUNT[int(inputs["text"][0] == b"most")]).encode()]}

    def generate(self, inputs, cancelled):
        text, length = inputs["text"][0].decode(), int(inputs.get("length", [3])[0])
        try:
            for at in range(length):
                INSIDE.append(1)
                COUNT[1] = max(COUNT[1], len(INSIDE))
                try:
                    self.step(text, at, cancelled)
                finally:
                    INSIDE.pop()
                COUNT[0] += 1
                yield {"text": [("x" * 65536 if text == "large" else f"{text}{at} ").encode()]}
        finally:
            (FOLDER / f"closed-{text}").touch()

    def step(self, text, at, cancelled):
        if text == "gate" and at:
            until(f"go-{at}")
        if text == "raise" and at == 2 or text == "raise-first":
            raise ValueError("on purpose\\nsecret")
        if text == "hang" and at == 1 or text == "hang-first":
            until("let-go")
        if text == "patient" and at:
            while not cancelled():
                time.sleep(0.002)
        if text == "die" and at == 2:
            until("die-now")
            os._exit(7)
        if text == "exit" and at == 1:
            raise SystemExit(3)

    def complete(self, prompt, options):
        words = prompt.split() or ["nothing"]
        for at in range(1000):
            if prompt == "raise" and at == 2:
                raise ValueError("on purpose")
            if prompt == "number":
                yield at
            yield words[at % len(words)] + " "
"""

ASYNC_SOURCE = """
import asyncio, pathlib

FOLDER = pathlib.Path(__file__).parent


class Model:
    async def generate(self, inputs):
        text = inputs["text"][0].decode()
        try:
            for at in range(5):
                await asyncio.sleep(0)
                if text == "wait" and at == 2:
                    await asyncio.Event().wait()
                if text == "raise" and at == 2:
                    raise ValueError("on purpose")
                yield {"text": [f"{text}{at}".encode()]}
        finally:
            (FOLDER / f"closed-{text}").touch()
"""

EMBEDDING_SOURCE = """
import hashlib
import numpy as np


class Model:
    signature = {"inputs": [{"name": "text", "datatype": "BYTES", "shape": [-1]}],
                 "outputs": [{"name": "embedding", "datatype": "FP32", "shape": [-1, 4]}]}
    tasks = ["embed"]

    def predict(self, inputs):
        rows = [np.frombuffer(hashlib.sha256(text).digest()[:4], np.uint8) for text in inputs["text"]]
        return {"embedding": np.array(rows, np.float32) / 255}
"""


def write_generating(folder: Path, source: str = SOURCE) -> Path:
    """The artifact, a folder; the model's signs (`closed-…`) appear in it, those for it (`go-…`) are put there."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.py").write_text(source)
    return folder
