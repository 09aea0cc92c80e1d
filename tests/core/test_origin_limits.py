"""Buckets of origins: the rate in the long run, bounded in number, and idle ones leave."""

from ndagent.core.origin_limits import OriginLimits, OriginLimitsConfig
from tests.events import StillTime


def limits(time: StillTime, **settings: object) -> OriginLimits:
    found = OriginLimits.make(OriginLimitsConfig(**settings), clock=time.clock)
    assert found is not None
    return found


def test_without_a_limit_there_is_no_table() -> None:
    """What is not configured costs nothing."""
    assert OriginLimits.make(OriginLimitsConfig(), clock=lambda: 0.0) is None


def test_a_second_is_free_and_what_comes_beyond_is_owed() -> None:
    """Taken and paid for: nothing is refused."""
    time = StillTime()
    table = limits(time, events_per_second_per_origin=100.0)
    assert table.charge("a", events=100, size_bytes=10**6) == 0
    assert table.charge("a", events=50, size_bytes=0) == 0.5
    time.now += 0.4
    assert abs(table.owed("a") - 0.1) < 1e-9
    time.now += 0.1
    assert table.owed("a") < 1e-9
    assert table.charge("b", events=100, size_bytes=0) == 0, "another origin has a bucket of its own"


def test_the_slower_of_events_and_bytes_counts() -> None:
    """Few large messages are as much as many small ones."""
    table = limits(StillTime(), events_per_second_per_origin=100.0, bytes_per_second_per_origin=1024)
    assert table.charge("a", events=1, size_bytes=3072) == 2
    assert table.charge("b", events=300, size_bytes=1) == 2


def test_an_origin_that_was_silent_has_saved_one_second_and_no_more() -> None:
    """A night of silence must not become a flood in the morning."""
    time = StillTime()
    table = limits(time, events_per_second_per_origin=100.0)
    table.charge("a", events=1, size_bytes=0)
    time.now += 3600
    assert table.charge("a", events=100, size_bytes=0) == 0
    assert table.charge("a", events=100, size_bytes=0) == 1


def test_the_table_is_bounded_and_idle_origins_leave() -> None:
    """A flood of certificates or addresses must not become memory."""
    time = StillTime()
    table = limits(time, events_per_second_per_origin=1.0, rated_origins=100)
    for number in range(1000):
        table.charge(f"origin {number}", events=1, size_bytes=0)
    assert len(table) == 100
    assert table.charge("origin 999", events=1, size_bytes=0) == 1, "the newest are those that stayed"
    time.now += 10
    for _ in range(60):
        table.charge("a", events=1, size_bytes=0)
    assert len(table) == 1
