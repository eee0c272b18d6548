"""Memory is finite: what is not used makes room, and what cannot fit is told so."""

from __future__ import annotations

from pathlib import Path

import pytest

from msm.kit.errors import Unavailable
from tests.component.node.conftest import Start
from tests.support.eventually import eventually
from tests.support.nodes import MIB, infer

HEAVY = """
import numpy as np

class Model:
    signature = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 4]}],
                 "outputs": [{"name": "y", "datatype": "FP32", "shape": [-1, 4]}]}

    def load(self, *arguments, **named):
        self.weights = np.ones(MEGABYTES << 20, dtype=np.uint8)

    def predict(self, inputs):
        return {"y": inputs["x"]}
"""


def heavy(folder: Path, name: str, megabytes: int) -> str:
    path = folder / f"{name}.py"
    path.write_text(HEAVY.replace("MEGABYTES", str(megabytes)) + f"# {name}\n")
    return path.as_uri()


async def test_a_full_node_unloads_the_least_recently_used_and_says_why(start: Start, tmp_path: Path):
    node = await start(capacity_bytes=100 * MIB)
    for name in ("a", "b", "c"):
        await node.declare(name, heavy(tmp_path, name, 40), trusted=True)
    await node.declare("huge", heavy(tmp_path, "huge", 150), trusted=True)
    await node.activate("a", deadline_s=60.0)
    await node.activate("b", deadline_s=60.0)
    assert 80 * MIB <= node.agent.snapshot().used_bytes <= 100 * MIB

    async def only_b_is_in_use() -> bool:
        """Longer than any difference between the loads of two equal models, which the eviction weighs too."""
        assert (await infer(await node.activate("b"), [[1.0, 2.0, 3.0, 4.0]])).status_code == 200
        idle = {copy.version: copy.idle_seconds or 0.0 for copy in node.agent.snapshot().copies}
        return idle["default/a/v1"] > 1.5 and idle["default/b/v1"] < idle["default/a/v1"] / 2

    await eventually(only_b_is_in_use)
    activated = await node.activate("c", deadline_s=60.0)
    assert (await infer(activated, [[1.0, 2.0, 3.0, 4.0]])).status_code == 200
    assert node.copies("a") == []
    assert node.routed("a") == ()
    assert [state for _, state in node.copies("b")] == ["Ready"]
    (gone,) = node.told("Unloading")
    assert "makes room for default/c/v1" in gone.message
    assert node.agent.snapshot().used_bytes <= 100 * MIB

    assert await node.settled("huge") == "Valid"
    with pytest.raises(Unavailable, match=r"it needs 15\d\.\d MiB, the node has 100\.0 MiB for models") as refused:
        await node.activate("huge")
    assert refused.value.reason == "oversized"
    assert len(node.told("Unloading")) == 1, "nothing made room in vain"


async def test_a_minimum_is_kept_and_the_newcomer_is_told_why_it_must_wait(start: Start, tmp_path: Path):
    node = await start(capacity_bytes=100 * MIB)
    await node.declare("pinned", heavy(tmp_path, "pinned", 70), trusted=True, scaling={"min": 1})
    await node.declare("late", heavy(tmp_path, "late", 40), trusted=True)
    await eventually(lambda: node.routed("pinned"), within_s=60.0)
    assert await node.settled("late") == "Valid"
    with pytest.raises(Unavailable, match="everything loaded is in use, wanted, or too young to go") as refused:
        await node.activate("late", deadline_s=0.5)
    assert refused.value.reason == "no_room"
    assert [state for _, state in node.copies("pinned")] == ["Ready"]
