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


def test_who_cannot_wait_gets_its_rate_and_no_more() -> None:
    """What is left out is not owed: a sender of ten times its rate gets its rate, second by second."""
    time = StillTime()
    table = limits(time, events_per_second_per_origin=100.0)
    assert table.admit("a", sizes=[10] * 100) == 100
    assert table.admit("a", sizes=[10]) == 0
    assert table.admit("b", sizes=[10]) == 1, "another origin has a bucket of its own"
    passed = 0
    for _ in range(100):
        time.now += 0.1
        passed += table.admit("a", sizes=[10] * 100)
    assert passed == 1000


def test_a_rate_of_less_than_one_a_second_lets_one_through_at_times() -> None:
    """One in four seconds: the bucket never holds a whole one."""
    time = StillTime()
    table = limits(time, events_per_second_per_origin=0.25)
    passed = 0
    for _ in range(40):
        passed += table.admit("a", sizes=[1, 1])
        time.now += 1
    assert passed == 8 + 2, "each of which leaves a bucket that is empty for three seconds"


def test_bytes_are_counted_message_by_message() -> None:
    """The one that empties the bucket still passes, however large: else it never could."""
    time = StillTime()
    table = limits(time, bytes_per_second_per_origin=1024)
    assert table.admit("a", sizes=[512, 511, 500, 1]) == 3
    time.now += 1
    assert table.admit("a", sizes=[1, 1]) == 2
    time.now += 10
    assert table.admit("a", sizes=[65_507]) == 1
    time.now += 10
    assert table.admit("a", sizes=[1]) == 0, "it has not paid for that one yet"


def test_the_table_of_those_who_cannot_wait_is_bounded() -> None:
    """A flood of forged addresses must not become memory."""
    table = limits(StillTime(), events_per_second_per_origin=1.0, rated_origins=100)
    assert sum(table.admit(f"10.0.{number}", sizes=[1]) for number in range(1000)) == 1000
    assert len(table) == 100
    assert table.admit("10.0.999", sizes=[1]) == 0, "the newest are those that stayed"
