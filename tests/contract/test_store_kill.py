"""Contract: what was acknowledged survives kill -9 of the owning process (a short form of bench/store_durability)."""

from __future__ import annotations

import random

from bench.store_durability import cycles


def test_acknowledged_writes_survive_kills_whole_and_the_database_is_sound(tmp_path):
    found = cycles(tmp_path, 3, random.Random(11))
    assert found.acknowledged > 0
    assert (found.lost, found.torn, found.damaged) == (0, 0, 0)
