"""Whatever happens to a channel and to its subscription: each record came once, or was told to be lost, or was cleared.

A dice throws what happens: writing, bursts that make older records go, records that vanish or that a subscription
passes over, silence, failing calls, clears, and the agent being stopped and started. Then the books are closed.
"""

import asyncio
import random
from typing import Any

import pytest
from fake_win32evtlog import Windows
from test_windows_event import Agent, text_of, windows  # noqa: F401 - the fixture

STEPS = 60
FAILURES = (6, 1168, 1722, 15011, 0)
CALLS = ("EvtNext", "EvtSubscribe", "EvtQuery", "EvtSeek", "EvtUpdateBookmark")


class Accident:
    """A channel, what was written to it, and what happens to it."""

    def __init__(self, machine: Windows, seed: int) -> None:
        self.machine = machine
        self.dice = random.Random(seed)
        self.log = machine.channel("App", room=40)
        self.generation = 0
        self.written: list[tuple[int, int]] = []

    def write(self, most: int) -> None:
        """Up to so many records, each saying its generation and number."""
        for _ in range(self.dice.randint(1, most)):
            number = self.log.next_number
            self.machine.write("App", f"{self.generation}-{number}")
            self.written.append((self.generation, number))

    def happen(self) -> None:
        """One thing."""
        dice, machine = self.dice, self.machine
        what = dice.randrange(20)
        numbers = [record.number for record in self.log.records]
        if what < 9 or not numbers:
            self.write(8)
        elif what < 11:
            self.write(60)  # more than there is room for
        elif what < 13:
            machine.lose("App", *dice.sample(numbers, min(3, len(numbers))))
        elif what < 15:
            machine.undelivered |= {("App", self.log.next_number + ahead) for ahead in dice.sample(range(9), 3)}
        elif what < 16:
            machine.silence()
        elif what < 19:
            machine.fail(dice.choice(CALLS), *dice.choices(FAILURES, k=dice.randint(1, 3)))
        else:
            machine.clear("App", restart=True)
            self.generation += 1
            self.write(5)


def close_the_books(accident: Accident, agents: list[Agent]) -> None:
    """See the module; numbers are compared within the generation of the log that they belong to.

    While the log is being cleared, a hole in the old one may be filled with what has those numbers in the new one; that
    comes again in its turn.
    """
    events = [event for agent in agents for event in agent.events]
    came = [tuple(map(int, text.split("-"))) for event in events if (text := text_of(event)) is not None]
    in_turn = [one for at, one in enumerate(came) if one[0] <= min(later[0] for later in came[at:])]
    assert len(in_turn) == len(set(in_turn)), "a record came twice"
    assert in_turn == sorted(in_turn), "records came in another order"
    told: set[tuple[int, int]] = set()
    generation = max(accident.written)[0]
    for event in reversed(events):  # a gap stands before the record that follows it
        if (text := text_of(event)) is not None:
            generation = int(text.split("-")[0])
        elif "gap" in event["winlog"]:
            gap = event["winlog"]["gap"]
            told |= {(generation, n) for n in range(int(gap["first_record_id"]), int(gap["last_record_id"]) + 1)}
    assert not told & set(came), "a record came that was told to be lost"
    missing = set(accident.written) - set(came) - told
    last_read = dict(came)
    silent = {
        (generation, number)
        for generation, number in missing - unnoticeable(events)
        if generation == accident.generation or number <= last_read.get(generation, 0)
    }
    assert not silent, "lost without a word"


def unnoticeable(events: list[dict[str, Any]]) -> set[tuple[int, int]]:
    """Records of a log that was cleared and filled beyond its room, past the old place, before anybody looked again.

    It looks as if the old log had gone on; that it was cleared is told by the event 1102 or 104 alone.
    """
    found: set[tuple[int, int]] = set()
    was_told, before = True, (0, 0)
    for event in events:
        if event["event"].get("action") == "log_cleared":
            was_told = True
        if (text := text_of(event)) is not None:
            generation, number = map(int, text.split("-"))
            if generation != before[0] and not was_told:
                found |= {(generation, below) for below in range(1, before[1] + 1)}
            was_told, before = False, (generation, number)
    return found


@pytest.mark.parametrize("seed", range(8))
async def test_the_books_balance(windows: Windows, seed: int) -> None:  # noqa: F811 - the fixture
    await run(windows, seed)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(8, 200))
async def test_the_books_balance_for_hundreds_of_accidents(windows: Windows, seed: int) -> None:  # noqa: F811
    await run(windows, seed)


async def run(machine: Windows, seed: int) -> None:
    """Accidents while agents come and go; the last one reads to the end."""
    accident = Accident(machine, seed)
    accident.write(5)
    agents = [Agent(batch_events=4)]
    for _ in range(4):
        async with agents[-1].running():
            await agents[0].until(lambda: agents[0].texts)  # before the first record nothing can be missed
            for _ in range(STEPS // 4):
                accident.happen()
                await asyncio.sleep(accident.dice.choice((0, 0, 0.005)))
        accident.write(30)  # while none runs
        agents.append(Agent(agents[-1].positions, batch_events=4))
    machine.failures.clear()
    machine.undelivered.clear()
    accident.write(1)
    generation, number = accident.written[-1]
    async with agents[-1].running():
        await agents[-1].until(lambda: f"{generation}-{number}" in agents[-1].texts)
    close_the_books(accident, agents)
