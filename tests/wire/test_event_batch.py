"""Parts of a batch: neighbours, which are sliced, are what picking them one by one would give."""

from array import array
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from ndagent.wire.record import EventBatch
from tests.events import event_batch


def batch(count: int, *, gaps: bool) -> EventBatch:
    """Every array has values of its own, so that a shift in one of them shows."""
    sequences = [3 * n + 5 for n in range(count)] if gaps else range(5, 5 + count)
    numbers = range(count)
    return replace(
        event_batch(sequences),
        priorities=bytes(n % 192 for n in numbers),
        host_offsets=array("I", numbers),
        host_lengths=array("H", [n + 1 for n in numbers]),
        keys=array("I", [n + 2 for n in numbers]),
        origins=array("I", [n % 7 for n in numbers]),
        parse_failures=3,
        replay=True,
        format="flat",
    )


@given(st.integers(0, 30), st.data(), st.booleans())
def test_a_range_is_as_its_positions(count: int, data: st.DataObject, gaps: bool) -> None:
    """At either end, empty, and all of it."""
    events = batch(count, gaps=gaps)
    start = data.draw(st.integers(0, count))
    stop = data.draw(st.integers(start, count))
    sliced, picked = events.select(range(start, stop)), events.select(list(range(start, stop)))
    assert list(sliced.sequences) == list(picked.sequences)
    assert replace(sliced, sequences=()) == replace(picked, sequences=())
    assert sliced.lines() == events.lines()[start:stop]


def test_every_other_one_is_no_run() -> None:
    """A range with a step is picked."""
    assert list(batch(9, gaps=False).select(range(0, 9, 3)).sequences) == [5, 8, 11]
