"""How fast each origin may send to an input: one token bucket for each, in a table of a fixed size.

    wait = limits.charge(origin.identity, events=120, size_bytes=30_000)     seconds that it is not to be read
    most = limits.admit(origin.identity, sizes=[250, 180])                   of these messages; drop the rest

Promises:
  * an origin is one whatever its connections: its certificate's name, else its address (`Origin.identity`);
  * a second's worth may come at once; what comes beyond is taken and owed, and the origin waits until it is paid:
    nothing is refused and nothing lost;
  * a sender that cannot be made to wait (UDP) is held to the same rate by what `admit` leaves out. That is not owed: it
    goes on having its rate, however much more it sends;
  * charging costs the same however many events a chunk has; without limits there is no table (`make` gives None);
  * at most `rated_origins` buckets: the one unused longest leaves, which forgives its origin what it still owed.
Refuses: waiting (the input stops reading, or says when to come again), per-event work.
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from itertools import accumulate
from math import ceil

from pydantic import Field

from ndagent.core.settings import ByteSize, Settings

_ROUNDING = 1e-4
"""Of an event or a byte: what floating point may make of a bucket that is empty."""


class OriginLimitsConfig(Settings):
    """What one sender may send, all its connections together; inputs have these among their `limits`."""

    events_per_second_per_origin: float | None = Field(
        default=None, gt=0, description="Of one sender; it is slowed down beyond, nothing is lost. null: no limit."
    )
    bytes_per_second_per_origin: ByteSize | None = Field(
        default=None, ge=1024, description="As above, in bytes of messages."
    )
    rated_origins: int = Field(
        default=20_000, ge=1, description="Senders whose rate is remembered (200 B each); beyond, the quietest go."
    )


class OriginLimits:
    """The buckets of one input. `clock` gives seconds and never jumps."""

    def __init__(self, config: OriginLimitsConfig, *, clock: Callable[[], float]) -> None:
        self._events_per_second = config.events_per_second_per_origin
        self._bytes_per_second = config.bytes_per_second_per_origin
        self._most = config.rated_origins
        self._clock = clock
        self._paid: OrderedDict[str, tuple[float, float]] = OrderedDict()
        """Identity → when its events and its bytes will have been paid for; the one charged longest ago first."""

    @classmethod
    def make(cls, config: OriginLimitsConfig, *, clock: Callable[[], float]) -> "OriginLimits | None":
        """None where nothing is limited."""
        if config.events_per_second_per_origin is None and config.bytes_per_second_per_origin is None:
            return None
        return cls(config, clock=clock)

    def __len__(self) -> int:
        """Origins in the table."""
        return len(self._paid)

    def charge(self, identity: str, *, events: int, size_bytes: int) -> float:
        """Note what came; how many seconds nothing more should be read from this origin, 0 if it may go on."""
        now = self._clock()
        self._forget_idle(now)
        return _owed(*self._pay(identity, now, events, size_bytes), now)

    def admit(self, identity: str, *, sizes: Sequence[int]) -> int:
        """How many of these messages, from the first on, may pass now; they are noted, the others are not.

        One passes while its bucket is not empty, so that a message larger than a second's worth passes at times, too.
        """
        now = self._clock()
        self._forget_idle(now)
        events_paid, bytes_paid = self._paid.get(identity, (0.0, 0.0))
        most = len(sizes)
        if self._events_per_second is not None:
            most = min(most, _affordable(events_paid, now, self._events_per_second))
        if self._bytes_per_second is not None:
            left = (now - max(bytes_paid, now - 1)) * self._bytes_per_second
            before = accumulate(sizes[:most], initial=0)  # what those in front of each one take
            most = min(most, sum(1 for taken in before if taken < left - _ROUNDING))
        self._pay(identity, now, most, sum(sizes[:most]))
        return most

    def _pay(self, identity: str, now: float, events: int, size_bytes: int) -> tuple[float, float]:
        events_paid, bytes_paid = self._paid.pop(identity, (0.0, 0.0))
        events_paid = _later(events_paid, now, events, self._events_per_second)
        bytes_paid = _later(bytes_paid, now, size_bytes, self._bytes_per_second)
        self._paid[identity] = events_paid, bytes_paid
        if len(self._paid) > self._most:
            self._paid.popitem(last=False)
        return events_paid, bytes_paid

    def owed(self, identity: str) -> float:
        """As `charge` of nothing."""
        events_paid, bytes_paid = self._paid.get(identity, (0.0, 0.0))
        return _owed(events_paid, bytes_paid, self._clock())

    def _forget_idle(self, now: float) -> None:
        """Drop buckets that are full again, two for each that may come: they say no more than none would."""
        for _ in range(2):
            if self._paid and max(next(iter(self._paid.values()))) <= now - 1:
                self._paid.popitem(last=False)


def _later(paid: float, now: float, amount: float, per_second: float | None) -> float:
    """A bucket as a time: full when it lies a second back, empty when it is now, owing when it is ahead."""
    return 0.0 if per_second is None else max(paid, now - 1) + amount / per_second


def _affordable(paid: float, now: float, per_second: float) -> int:
    """How many events until the bucket is empty; the last one may take more than is left."""
    return max(0, ceil((now - max(paid, now - 1)) * per_second - _ROUNDING))


def _owed(events_paid: float, bytes_paid: float, now: float) -> float:
    return max(0.0, events_paid - now, bytes_paid - now)
