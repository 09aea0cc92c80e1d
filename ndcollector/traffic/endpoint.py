"""What an output knows of one endpoint: is it well, how busy is it, may it be tried; and the log and metrics of that.

    WELL ── failures within window ──► BREAKER OPEN ── open_for ──► BEING TRIED ── answered ──► WELL
      │ no answer in time, or much           ▲                           │
      │ worse than its peers                 └────────── failed ─────────┘
      ├──────────────► EJECTED, for a while
      └── health check fails ──► UNHEALTHY ── check passes ──► WELL

The breaker is the machine's own Circuit (ndagent/core/breaker.py), one for each endpoint.

Promises: one log line when an endpoint goes bad and one when it is back; Retry-After is honoured, for this endpoint
alone and for at most an hour. Refuses: requests (connection.py), choosing (balance.py), time (passed in).
"""

import logging
from enum import IntEnum

from ndagent.core.breaker import Circuit, State
from ndagent.core.interfaces import LONGEST_RETRY_AFTER_SECONDS
from ndagent.core.metrics import Metrics
from ndcollector.traffic.concurrency import Concurrency
from ndcollector.traffic.config import HttpOutputConfig
from ndcollector.traffic.discovery import Target
from ndcollector.traffic.outliers import Tally

_MOST_EJECTIONS_IN_A_ROW = 10


class Condition(IntEnum):
    """The values of the metric nd_output_endpoint_state; the first three are the breaker's."""

    WELL = 0
    BEING_TRIED = 1
    BREAKER_OPEN = 2
    EJECTED = 3
    UNHEALTHY = 4


class Endpoint:
    """One endpoint of an output called `name`."""

    def __init__(self, target: Target, config: HttpOutputConfig, *, name: str, metrics: Metrics) -> None:
        self.target = target
        self.circuit = Circuit(config.endpoint_breaker, on_change=self._circuit_changed)
        self.places = Concurrency(config.concurrency)
        self.tally = Tally()
        self.turn = 0  # balance.py's notes
        self.credit = 0.0
        self._config = config
        self._labels = (name, str(target))
        self._metrics = metrics
        self._log = logging.getLogger(name)
        self._last_reason = ""
        self._not_before = 0.0  # what Retry-After asked for
        self._ejected_until = 0.0
        self._ejections_in_a_row = 0
        self._timeouts_in_a_row = 0
        self._was_ejected = False
        self._failed_checks = 0
        self._is_down = False  # the breaker's last word in the log
        self._answered, self._pushed_back, self._failed, self._withdrawn = (
            metrics.endpoint_requests.labels(*self._labels, result)
            for result in ("answered", "pushed_back", "failed", "withdrawn")
        )
        self._took = metrics.endpoint_seconds.labels(*self._labels)
        self._ejections = metrics.endpoint_ejections.labels(*self._labels)
        self._places_shown = metrics.endpoint_places.labels(*self._labels)
        self._state = metrics.endpoint_state.labels(*self._labels)
        self._show(0.0)

    def __str__(self) -> str:
        return str(self.target)

    @property
    def is_https(self) -> bool:
        """Whether TLS is spoken to it."""
        return self.target.url.startswith("https:")

    @property
    def priority(self) -> int:
        """See Choice."""
        return self.target.priority

    @property
    def weight(self) -> float:
        """See Choice."""
        return self.target.weight

    @property
    def outstanding(self) -> int:
        """See Choice."""
        return self.places.outstanding

    def may_be_tried(self, now: float, *, whatever_checks_say: bool = False) -> bool:
        """Whether a request may go to it now, were there room.

        `whatever_checks_say`: also one that was ejected or fails its health check, for when there is no other.
        """
        if now < self._not_before or not self.circuit.would_admit(now):
            return False
        return whatever_checks_say or not (self.is_unhealthy or now < self._ejected_until)

    def is_being_tried(self, now: float) -> bool:
        """Whether the one request that may close its breaker is under way: worth waiting for."""
        return self.circuit.state is State.HALF_OPEN and not self.circuit.would_admit(now)

    def wait_seconds(self, now: float) -> float:
        """What is left of the pause that it asked for; 0 where it asked for none."""
        return max(0.0, self._not_before - now)

    def why_not(self, now: float) -> str:
        """Why it takes nothing now, in words."""
        reason = self._last_reason or f"{self} was not tried"
        pause = self._not_before - now
        return f"{reason}; it asked to be left alone for {pause:.0f}s more" if pause > 0 else reason

    @property
    def is_unhealthy(self) -> bool:
        """Whether its health checks fail."""
        return self._config.health is not None and self._failed_checks >= self._config.health.failures

    # What became of a request; each is called once for each `begin`.

    def begin(self, now: float) -> int:
        """A request is made; returns its permit. `may_be_tried` was true and there was room."""
        permit = self.circuit.admit(now)
        assert permit is not None  # noqa: S101 - may_be_tried
        self.places.begin()
        self._show(now)
        return permit

    def answered(self, permit: int, seconds: float, now: float) -> None:
        """It answered, whatever."""
        self.places.done(seconds, pushed_back=False, now=now)
        self._timeouts_in_a_row = 0
        self.tally.requests += 1
        self.tally.seconds += seconds
        self._took.observe(seconds)
        self._answered.inc()
        self.circuit.answered(permit)
        if self._was_ejected and not self.is_ejected(now):
            self._come_back()
        self._show(now)

    def pushed_back(self, permit: int, now: float, *, reason: str, retry_after_seconds: float, busy: bool) -> None:
        """It answered that it cannot take the request now; `busy` (429) says that it is well all the same."""
        self.places.done(None, pushed_back=True, now=now)
        wait = min(retry_after_seconds, LONGEST_RETRY_AFTER_SECONDS)
        self._not_before = max(self._not_before, now + wait)
        self._note_failure(reason)
        self._pushed_back.inc()
        if busy:
            self.circuit.answered(permit)
        else:
            self.circuit.failed(permit, now, retry_after_seconds=wait)
        self._show(now)

    def failed(self, permit: int, now: float, *, reason: str, timed_out: bool, has_peers: bool = False) -> None:
        """No whole answer came.

        One that let a request run out of time is left to its peers at once: where sends go one after the other, its
        breaker would see too few failures in its window, and each of them costs as much time as there is.
        """
        self.places.done(None, pushed_back=timed_out, now=now)
        self._note_failure(reason)
        self._failed.inc()
        if timed_out and has_peers and not self.is_ejected(now):
            self._timeouts_in_a_row = min(self._timeouts_in_a_row + 1, _MOST_EJECTIONS_IN_A_ROW)
            self._eject(now, in_a_row=self._timeouts_in_a_row, verdict=reason.removeprefix(f"{self} "))
        self.circuit.failed(permit, now)
        self._show(now)

    def withdrawn(self, permit: int, now: float) -> None:
        """We gave the request up ourselves; nothing is known."""
        self.places.withdrawn()
        self._withdrawn.inc()
        self.circuit.withdrawn(permit)
        self._show(now)

    def checked(self, is_well: bool, now: float) -> None:
        """A health check ended."""
        before = self.is_unhealthy
        self._failed_checks = 0 if is_well else self._failed_checks + 1
        if self.is_unhealthy and not before:
            path = self._config.health.path if self._config.health is not None else ""
            self._log.warning(
                "endpoint %s fails its health check (%s) and gets nothing until it passes; look at it, or correct "
                "health.path and health.expect", self, path,
            )
        elif before and not self.is_unhealthy:
            self._log.info("endpoint %s passes its health check again", self)
        self._show(now)

    def compared(self, verdict: str | None, now: float) -> None:
        """It was compared with its peers: None where it did as well as they, else why it is to be left out."""
        self.tally = Tally()
        if verdict is None:
            if now >= self._ejected_until and self.circuit.state is State.CLOSED:
                self._come_back()
            self._show(now)
            return
        self._ejections_in_a_row = min(self._ejections_in_a_row + 1, _MOST_EJECTIONS_IN_A_ROW)
        self._eject(now, in_a_row=self._ejections_in_a_row, verdict=verdict)
        self._show(now)

    def is_ejected(self, now: float) -> bool:
        """Whether it is left out now."""
        return now < self._ejected_until

    def retire(self) -> None:
        """It is no endpoint any more: its figures must not stand in the metrics for ever."""
        metrics = self._metrics
        for result in ("answered", "pushed_back", "failed", "withdrawn"):
            metrics.endpoint_requests.remove(*self._labels, result)
        for one in (metrics.endpoint_seconds, metrics.endpoint_ejections, metrics.endpoint_places):
            one.remove(*self._labels)
        metrics.endpoint_state.remove(*self._labels)

    def _eject(self, now: float, *, in_a_row: int, verdict: str) -> None:
        seconds = self._config.outliers.eject_for * in_a_row
        self._ejected_until = now + seconds
        self._was_ejected = True
        self._ejections.inc()
        self._log.warning("endpoint %s is left out for %gs: %s", self, seconds, verdict)

    def _come_back(self) -> None:
        if self._was_ejected:
            self._was_ejected = False
            self._log.info("endpoint %s gets its share again", self)
        elif self._ejections_in_a_row:
            self._ejections_in_a_row -= 1

    def _note_failure(self, reason: str) -> None:
        self.tally.requests += 1
        self.tally.failed += 1
        self._last_reason = reason

    def _circuit_changed(self, state: State) -> None:
        """The log hears of down and up, not of each failed try in between, nor of one that it knows is left out."""
        if state is State.OPEN and not self._is_down and not self._was_ejected:
            self._is_down = True
            breaker = self._config.endpoint_breaker
            self._log.warning(
                "endpoint %s is left alone after %d failures, last: %s; one request tries it again every %gs or later",
                self, breaker.failures, self._last_reason, breaker.open_for,
            )
        elif state is State.CLOSED and self._is_down:
            self._is_down = False
            self._log.info("endpoint %s answers again", self)

    def _show(self, now: float) -> None:
        self._places_shown.set(int(self.places.limit))
        if self.is_unhealthy:
            self._state.set(Condition.UNHEALTHY)
        elif now < self._ejected_until:
            self._state.set(Condition.EJECTED)
        else:
            self._state.set(self.circuit.state)
