"""One through in a turn of the loop."""

import asyncio
import itertools

from serve_app.deployments.turnstile import Turnstile


class Turns:
    """Counts the turns of the loop, and notes in which each task passed."""

    def __init__(self) -> None:
        self.now = 0
        self.passed: list[tuple[str, int]] = []
        self._turnstile = Turnstile()

    async def through(self, name: str) -> None:
        await self._turnstile.passed()
        self.passed.append((name, self.now))

    async def run(self, turns: int = 20) -> None:
        for _ in range(turns):
            self.now += 1
            await asyncio.sleep(0)

    @property
    def order(self) -> list[str]:
        return [name for name, _ in self.passed]

    @property
    def gaps(self) -> list[int]:
        at = [turn for _, turn in self.passed]
        return [later - earlier for earlier, later in itertools.pairwise(at)]


async def test_who_is_alone_does_not_wait() -> None:
    turns = Turns()
    for name in "abc":
        task = asyncio.create_task(turns.through(name))
        await asyncio.sleep(0)
        assert task.done()
        await turns.run(2)
    assert turns.order == ["a", "b", "c"]


async def test_those_who_come_together_pass_in_turns_of_their_own_and_in_order() -> None:
    turns = Turns()
    tasks = [asyncio.create_task(turns.through(name)) for name in "abcde"]
    await turns.run()
    assert turns.order == ["a", "b", "c", "d", "e"]
    assert all(gap >= 1 for gap in turns.gaps)
    assert all(task.done() for task in tasks)


async def test_others_get_a_turn_in_between() -> None:
    """What a task does after its first step comes before the first step of the next but one."""
    turnstile, steps = Turnstile(), []

    async def work(number: int) -> None:
        await turnstile.passed()
        steps.append(f"begin {number}")
        await asyncio.sleep(0)
        steps.append(f"send {number}")

    await asyncio.gather(*(work(number) for number in range(4)))
    for number in range(2):
        assert steps.index(f"send {number}") < steps.index(f"begin {number + 2}")


async def test_one_who_left_holds_nobody_up() -> None:
    turns = Turns()
    tasks = [asyncio.create_task(turns.through(name)) for name in "abcd"]
    await asyncio.sleep(0)
    tasks[1].cancel()
    tasks[2].cancel()
    await turns.run()
    assert turns.order == ["a", "d"]


async def test_when_all_who_waited_have_left_the_next_one_does_not_wait() -> None:
    turns = Turns()
    tasks = [asyncio.create_task(turns.through(name)) for name in "ab"]
    await asyncio.sleep(0)
    tasks[1].cancel()
    await turns.run(3)
    await turns.through("c")
    assert turns.passed[-1] == ("c", turns.now)
