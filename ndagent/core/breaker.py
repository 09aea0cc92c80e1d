"""A circuit breaker: stop calling an output that fails, then find out with one single call whether it is back.

`Circuit` is the pure state machine (time is passed in); `Breaker` asks it before each send of a stream.

    CLOSED ── `failures` failures within `window` ──► OPEN ── `open_for` has passed ──► HALF_OPEN
       ▲                                               ▲                                 │    │
       └──────────── the probe was answered ───────────┼─────────────────────────────────┘    │
                                                       └──────── the probe failed ────────────┘

Invariants:
  * failures in a row count however far apart they are: where calls go one after the other and each runs out of time, no
    window would ever hold enough of them; with answers in between, only those within `window` do;
  * HALF_OPEN lets exactly one probe through, however many callers come at once;
  * a Rejected answer is an answer: it never counts as a failure, and as a probe it closes the circuit;
  * a cancelled call says nothing about the far side: it never counts, and a cancelled probe makes room for the next;
  * a result counts only in the state its call was let through in: late failures of old calls do not reopen a circuit.

Refuses: waiting (Retry does), trying again, judging an error (the exception's type does). Own code because every
library tried let all of 20 concurrent callers through half-open, or took a cancelled probe for a failure.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from enum import IntEnum
from functools import partial

from ndagent.core import messages
from ndagent.core.interfaces import LONGEST_RETRY_AFTER_SECONDS, Output, Rejected, Unavailable
from ndagent.core.log import Throttle
from ndagent.core.metrics import Metrics
from ndagent.core.settings import BreakerConfig
from ndagent.wire.record import EventBatch

_BUG_EVERY_SECONDS = 60.0  # a traceback a minute shows a bug as well as a thousand of them


class State(IntEnum):
    """The values of the metric nd_output_breaker_state."""

    CLOSED = 0
    HALF_OPEN = 1
    OPEN = 2


class Circuit:
    """The state machine. Times are seconds on any clock that does not jump; `on_change` hears every new state."""

    def __init__(self, config: BreakerConfig, *, on_change: Callable[[State], None]) -> None:
        self._config = config
        self._on_change = on_change
        self._failed_at: deque[float] = deque(maxlen=config.failures)
        self._in_a_row = 0
        self._opens_at = 0.0
        self._probing = False
        self._era = 0  # grows with every change of state; a permit of an older era no longer counts
        self.state = State.CLOSED

    def admit(self, now: float) -> int | None:
        """A permit to call, to be handed back with the outcome, or None: not now (see `refused_for_seconds`)."""
        if self.state is State.OPEN and now >= self._opens_at:
            self._enter(State.HALF_OPEN)
        if self.state is State.OPEN or self._probing:
            return None
        self._probing = self.state is State.HALF_OPEN
        return self._era

    def would_admit(self, now: float) -> bool:
        """Whether `admit` would give a permit now: for whoever chooses among several."""
        if self.state is State.OPEN:
            return now >= self._opens_at
        return not self._probing

    def refused_for_seconds(self, now: float) -> float:
        """When it is worth asking again: as the next probe is due, or after `open_for` while one is under way."""
        return max(0.0, self._opens_at - now) if self.state is State.OPEN else self._config.open_for

    def answered(self, permit: int) -> None:
        """The far side took the call or rejected it: it is there."""
        if permit != self._era:
            return
        self._in_a_row = 0
        if self.state is State.HALF_OPEN:
            self._enter(State.CLOSED)

    def failed(self, permit: int, now: float, *, retry_after_seconds: float = 0.0) -> None:
        """The far side could not take the call; an opening circuit stays open at least as long as it asked for."""
        if permit != self._era:
            return
        self._failed_at.append(now)
        self._in_a_row += 1
        dense = len(self._failed_at) == self._config.failures and now - self._failed_at[0] <= self._config.window
        if dense or self._in_a_row >= self._config.failures or self.state is State.HALF_OPEN:
            self._opens_at = now + max(self._config.open_for, retry_after_seconds)
            self._enter(State.OPEN)

    def withdrawn(self, permit: int) -> None:
        """The call was cancelled on our side; nothing is known."""
        if permit == self._era:
            self._probing = False

    def _enter(self, state: State) -> None:
        self.state = state
        self._era += 1
        self._probing = False
        if state is State.CLOSED:
            self._failed_at.clear()
            self._in_a_row = 0
        self._on_change(state)


class BreakerOpen(Unavailable):
    """No call was made: the circuit is open, or half open with its one probe under way."""


class Breaker:
    """Sends a stream's events to an Output, or raises BreakerOpen instead of calling a far side that is down.

    Each stream has its own: a missing topic of one is no outage of the others.

    It is also where an exception that an output should not raise (a bug, a bare OSError, the CancelledError of a task
    of its own) becomes Unavailable: logged with its traceback, counted, tried again; it never ends the daemon and never
    loses the events.
    """

    def __init__(
        self,
        output: Output,
        *,
        name: str,
        stream: str,
        config: BreakerConfig,
        metrics: Metrics,
        clock: Callable[[], float],
    ) -> None:
        self._output = output
        self._clock = clock
        self._config = config
        self._stream = stream
        self._circuit = Circuit(config, on_change=self._changed)
        self._state = metrics.breaker_state.labels(name, stream)
        self._state.set(State.CLOSED)
        self._forget_state = partial(metrics.breaker_state.remove, name, stream)
        self._unavailable = metrics.unavailable.labels(name)
        self._log = logging.getLogger(name)
        self._bugs = Throttle(_BUG_EVERY_SECONDS, clock=clock)
        self._last_reason = ""
        self._down = False
        self._closing = asyncio.Event()

    async def send(self, events: EventBatch) -> None:
        """As the wrapped output; BreakerOpen when it was not called."""
        await self.call(self.admit(), events)

    def admit(self) -> int:
        """A permit for one call, which must follow at once; raises BreakerOpen."""
        permit = self._circuit.admit(self._clock())
        if permit is None:
            raise BreakerOpen(self._last_reason, self._circuit.refused_for_seconds(self._clock()))
        return permit

    async def call(self, permit: int, events: EventBatch) -> None:
        """As the wrapped output."""
        try:
            await self._output.send(events)
        except Rejected:
            self._circuit.answered(permit)
            raise
        except Unavailable as error:
            self._note(permit, error)
            raise
        except (Exception, asyncio.CancelledError) as error:
            if isinstance(error, asyncio.CancelledError) and _is_cancelled_from_outside():
                self._circuit.withdrawn(permit)
                raise
            self._report(error)
            failure = Unavailable(f"{type(error).__name__}: {error}")
            self._note(permit, failure)
            raise failure from error
        except BaseException:
            self._circuit.withdrawn(permit)
            raise
        self._circuit.answered(permit)

    def retire(self) -> None:
        """Nothing will be sent any more: its last state must not stand in the metrics for ever."""
        self._forget_state()

    async def until_closed(self) -> None:
        """Return when the circuit next closes: the far side has just come back."""
        await self._closing.wait()

    def _note(self, permit: int, error: Unavailable) -> None:
        self._unavailable.inc()
        self._last_reason = error.reason
        wish = min(error.retry_after_seconds or 0.0, LONGEST_RETRY_AFTER_SECONDS)
        self._circuit.failed(permit, self._clock(), retry_after_seconds=wish)

    def _report(self, bug: BaseException) -> None:
        silenced = self._bugs.allow(type(bug))
        if silenced is not None:
            self._log.error(
                "unexpected %s while sending; the events wait and will be sent again. Please report this traceback",
                type(bug).__name__, exc_info=bug, extra={**messages.OUTPUT_BUG, "silenced": silenced},
            )

    def _changed(self, state: State) -> None:
        """Metrics hear every change; the log only of down and up, not of each failed probe of a long night."""
        self._state.set(state)
        if state is State.OPEN and not self._down:
            self._down = True
            self._log.warning(
                "breaker open for stream %s after %d failures, last: %s. Nothing is lost, its events wait in the spool "
                "and one probe is sent every %gs or later. Check that the destination is up, reachable and accepts our "
                "credentials", self._stream, self._config.failures, self._last_reason, self._config.open_for,
                extra=messages.BREAKER_OPEN,
            )
        elif state is State.CLOSED:
            self._down = False
            self._log.info(
                "breaker closed for stream %s: the destination answers again", self._stream,
                extra=messages.BREAKER_CLOSED,
            )
            self._closing.set()
            self._closing = asyncio.Event()


def _is_cancelled_from_outside() -> bool:
    task = asyncio.current_task()
    return task is None or task.cancelling() > 0
