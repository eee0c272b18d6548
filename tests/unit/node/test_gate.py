"""A gate lets few pass at once, the urgent ones first."""

from __future__ import annotations

import asyncio

from msm.kit.clock import settle
from msm.node.gate import Gate


class Line:
    """Callers at a gate who stay inside until they are told to leave."""

    def __init__(self, width: int) -> None:
        self.urgent: set[object] = set()
        self.gate = Gate(width, self.urgent)
        self.inside: list[str] = []
        self.leave: dict[str, asyncio.Event] = {}
        self.tasks: dict[str, asyncio.Task[None]] = {}

    async def arrive(self, *names: str) -> None:
        for name in names:
            self.leave[name] = asyncio.Event()
            self.tasks[name] = asyncio.create_task(self._pass(name))
        await settle()

    async def _pass(self, name: str) -> None:
        async with self.gate.pass_through(name):
            self.inside.append(name)
            await self.leave[name].wait()
            self.inside.remove(name)

    async def let_go(self, *names: str) -> None:
        for name in names:
            self.leave[name].set()
            await self.tasks[name]
        await settle()


async def test_callers_pass_in_order_of_arrival():
    line = Line(2)
    await line.arrive("a", "b", "c", "d")
    assert line.inside == ["a", "b"]
    await line.let_go("b")
    assert line.inside == ["a", "c"]
    await line.let_go("a", "c", "d")
    assert line.inside == []


async def test_one_who_becomes_urgent_overtakes_those_before_him():
    line = Line(1)
    await line.arrive("a", "b", "c", "d")
    line.urgent.add("d")
    await line.let_go("a")
    assert line.inside == ["d"]
    await line.let_go("d")
    assert line.inside == ["b"]
    await line.let_go("b", "c")


async def test_one_who_gives_up_takes_no_place():
    line = Line(1)
    await line.arrive("a", "b", "c")
    line.tasks["b"].cancel()
    await settle()
    await line.let_go("a")
    assert line.inside == ["c"]
    await line.let_go("c")


async def test_a_place_given_to_one_who_gives_up_at_that_moment_goes_on():
    line = Line(1)
    async with line.gate.pass_through("first"):
        await line.arrive("b", "c")
    line.tasks["b"].cancel()  # it was given the place, and has not run since
    await settle()
    assert line.inside == ["c"]
    await line.let_go("c")
    await line.arrive("e")
    assert line.inside == ["e"]
    await line.let_go("e")
