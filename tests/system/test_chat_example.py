"""The chat example: trained for some seconds, deployed on a whole mesh, asked by the OpenAI SDK."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import openai

from bench._mesh import Mesh
from examples.chat.train import repository_text, train, write


def test_a_transformer_is_trained_deployed_and_streams(running: Mesh, tmp_path: Path):
    import torch

    model, characters, losses = train(repository_text(), seconds=8)
    assert np.mean(losses[-5:]) < losses[0] - 0.5  # nats per character, also on a busy machine
    artifact = write(model, characters, tmp_path / "chat")
    version = {"name": "v1", "uri": artifact.as_uri(), "format": "python", "trusted": True}
    spec = {"versions": [version], "timeoutSeconds": 10}
    running.apply([{"apiVersion": "msm/v1", "kind": "Model", "metadata": {"name": "chat"}, "spec": spec}])
    running.wait_valid(within_s=40, of="chat")
    with openai.OpenAI(base_url=f"{running.gateway}/v1", api_key="none", max_retries=0) as client:
        assert "chat" in [entry.id for entry in client.models.list()]
        assert client.models.retrieve("chat").owned_by == "default"
        whole = client.completions.create(model="chat", prompt="A node is", max_tokens=40, temperature=0)
        assert whole.usage is not None
        assert (whole.usage.prompt_tokens, whole.usage.completion_tokens) == (9, 40)
        # The class runs on NumPy what was trained with torch: both must say the same.
        tokens = [characters.index(character) for character in "A node is"]
        for character in whole.choices[0].text[:20]:
            with torch.no_grad():
                logits = model(torch.tensor([tokens[-64:]]))[0, -1]
            assert logits.max() - logits[characters.index(character)] < 1e-3
            tokens.append(characters.index(character))
        messages = [{"role": "user", "content": "What is a node?"}]
        asked = {"model": "chat", "messages": messages, "max_tokens": 120, "seed": 7, "stream": True}
        texts = [
            [chunk.choices[0].delta.content or "" for chunk in client.chat.completions.create(**asked)]
            for _ in range(2)
        ]
        assert texts[0] == texts[1]  # the seed decides
        assert len("".join(texts[0])) == 120
