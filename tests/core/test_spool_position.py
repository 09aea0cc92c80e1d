"""A cursor's arithmetic: whatever moves it, each event since its start has exactly one fate."""

from hypothesis import given
from hypothesis import strategies as st

from ndagent.core.spool.position import Position, Saved, pack_slot, parse_slot

MOVES = st.lists(
    st.one_of(
        st.tuples(st.just("advanced"), st.integers(0, 40), st.integers(0, 9), st.integers(0, 9)),
        st.tuples(st.just("quarantined_to"), st.integers(0, 40)),
        st.tuples(st.just("evicted_to"), st.integers(0, 40)),
        st.tuples(st.just("replaying"), st.integers(0, 40), st.integers(0, 45)),
    ),
    max_size=12,
)


def move(position, step):
    name, *arguments = step
    if name == "advanced":
        sequence, filtered, dead_lettered = arguments
        return position.advanced(sequence, filtered=filtered, dead_lettered=dead_lettered)
    return getattr(position, name)(*arguments)


@given(start=st.integers(0, 40), moves=MOVES)
def test_the_account_adds_up_after_any_moves(start, moves):
    """And nothing in it is ever negative, nor does anything but `pending` ever shrink."""
    position = Position(start, start)
    for step in moves:
        before = position.account(40)
        position = move(position, step)
        after = position.account(40)
        assert after.appended == sum(after) - after.appended
        assert min(after) >= 0
        assert all(new >= old for new, old in zip(after, before._replace(pending=0), strict=True))


@given(start=st.integers(0, 40), moves=MOVES)
def test_settling_everything_leaves_nothing_pending(start, moves):
    """No sequence of replays can make a cursor that never gets done, or that skips what it owes."""
    position = Position(start, start)
    for step in moves:
        position = move(position, step)
    assert position.advanced(40).account(40).pending == 0
    stepwise = position
    while stepwise.account(40).pending:
        once = stepwise.advanced(stepwise.sequence + 1)
        assert once.account(40).pending == stepwise.account(40).pending - 1
        stepwise = once


@given(moves=MOVES, generation=st.integers(1, 2**64 - 1), spool_id=st.binary(min_size=10, max_size=10))
def test_a_slot_reads_back_and_any_cut_or_flipped_bit_does_not(moves, generation, spool_id):
    """A position is whole or it is not one."""
    position = Position(3, 3)
    for step in moves:
        position = move(position, step)
    data = pack_slot(Saved(generation, spool_id, position))
    assert parse_slot(data) == Saved(generation, spool_id, position)
    assert parse_slot(data[:-1]) is None
    at = generation % len(data)
    assert parse_slot(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]) is None
