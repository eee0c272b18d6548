"""The table's sums always equal what is in the table."""

from __future__ import annotations

from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from msm.node.copies import Copies, Details
from msm.planning.picture import CopyView
from msm.resources.serving import VersionKey

KEYS = [VersionKey("default", name, "v1") for name in "abc"]
WORKERS = ["w0", "w1"]
keys, workers = st.sampled_from(KEYS), st.sampled_from(WORKERS)


class Table(RuleBasedStateMachine):
    """Adds, changes and removes copies at random."""

    def __init__(self) -> None:
        super().__init__()
        self.copies = Copies()
        self.model: dict[tuple[VersionKey, str], tuple[CopyView, Details]] = {}

    @rule(key=keys, worker=workers, memory=st.integers(0, 9), background=st.booleans())
    def add(self, key: VersionKey, worker: str, memory: int, background: bool) -> None:
        if (key, worker) in self.model:
            return
        copy, details = CopyView(key, worker, "Loading", memory), Details("sha256:0", "why", background)
        self.copies.add(copy, details)
        self.model[key, worker] = copy, details

    @rule(key=keys, worker=workers, state=st.sampled_from(["Ready", "Draining"]), in_flight=st.integers(0, 3))
    def change(self, key: VersionKey, worker: str, **fields: Any) -> None:
        if (key, worker) in self.model:
            changed = self.copies.change(key, worker, **fields)
            self.model[key, worker] = changed, self.model[key, worker][1]
            assert (changed.state, changed.in_flight) == (fields["state"], fields["in_flight"])

    @rule(key=keys, worker=workers)
    def remove(self, key: VersionKey, worker: str) -> None:
        expected = self.model.pop((key, worker), (None,))[0]
        assert self.copies.remove(key, worker) == expected

    @invariant()
    def sums_are_right(self) -> None:
        assert sorted(self.copies.all(), key=lambda c: (c.key, c.worker)) == sorted(
            (copy for copy, _ in self.model.values()), key=lambda c: (c.key, c.worker)
        )
        assert self.copies.used_bytes == sum(copy.memory_bytes for copy, _ in self.model.values())
        for worker in WORKERS:
            held = [pair for (_, name), pair in self.model.items() if name == worker]
            loading = [details for copy, details in held if copy.state == "Loading"]
            sums = self.copies.sums(worker)
            assert sums.memory_bytes == sum(copy.memory_bytes for copy, _ in held)
            assert sums.in_flight == sum(copy.in_flight for copy, _ in held)
            assert (sums.copies, sums.loads) == (len(held), len(loading))
            assert sums.background == sum(details.background for details in loading)
            assert {copy.key for copy in self.copies.on(worker)} == {copy.key for copy, _ in held}
        for (key, worker), (copy, details) in self.model.items():
            assert self.copies.get(key, worker) == copy
            assert self.copies.holds(key, worker, details)


TestTable = Table.TestCase
TestTable.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)


def test_a_later_copy_of_the_same_version_is_another_one():
    copies = Copies()
    copy, first = CopyView(KEYS[0], "w0", "Loading", 1), Details("sha256:0", "first")
    copies.add(copy, first)
    copies.remove(copy.key, "w0")
    copies.add(copy, Details("sha256:0", "second"))
    assert not copies.holds(copy.key, "w0", first)


def test_people_see_times_of_ready_copies_only():
    copies = Copies()
    copies.add(CopyView(KEYS[0], "w0", "Loading", 5), Details("sha256:0", "a request waits for it"))
    loading = copies.status(copies.of(KEYS[0])[0], 100.0)
    assert (loading.state, loading.idle_seconds, loading.reason) == ("Loading", None, "a request waits for it")
    ready = copies.change(KEYS[0], "w0", state="Ready", last_used=90.0, load_seconds=0.5)
    status = copies.status(ready, 100.0)
    assert (status.version, status.idle_seconds, status.load_seconds) == ("default/a/v1", 10.0, 0.5)
