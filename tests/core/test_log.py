"""The journal stays small whoever wants to fill it."""

from ndagent.core.log import Throttle


class Clock:
    """Seconds that pass when the test says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_key_speaks_once_in_its_time_and_then_says_what_was_left_unsaid() -> None:
    """Two peers do not silence each other."""
    clock = Clock()
    throttle = Throttle(60, clock=clock)
    assert [throttle.allow("a"), throttle.allow("b"), throttle.allow("a"), throttle.allow("a")] == [0, 0, None, None]
    clock.now = 59.9
    assert throttle.allow("a") is None
    clock.now = 60
    assert [throttle.allow("a"), throttle.allow("b")] == [3, 0]


def test_ten_thousand_keys_share_what_one_peer_may_not_have() -> None:
    """A peer with a /64 of addresses has a new one for each refusal; a table that forgets would let each speak."""
    clock = Clock()
    throttle = Throttle(60, max_keys=100, clock=clock)

    def lines() -> list[int]:
        found = [throttle.allow(number % 10_000) for number in range(20_000)]
        return [silenced for silenced in found if silenced is not None]

    assert lines() == [0] * 101
    clock.now = 60
    told = lines()
    assert len(told) == 101
    assert max(told) == 20_000 - 2 * 100 - 1  # the shared turn tells of all but the keys that had their own
    assert len(throttle._seen) == 100


def test_a_key_whose_time_is_over_makes_room() -> None:
    """Limit: max_keys; an attack that is over does not silence the next peer."""
    clock = Clock()
    throttle = Throttle(60, max_keys=1, clock=clock)
    assert [throttle.allow("a"), throttle.allow("b"), throttle.allow("c")] == [0, 0, None]
    clock.now = 60
    assert throttle.allow("d") == 0
    assert list(throttle._seen) == ["d"]
