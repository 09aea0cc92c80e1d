"""Connections of origins that send too fast are not read for a while: back-pressure for one sender, not for all.

Promises: nothing read is lost; a held connection is looked at again within LOOK_SECONDS, is no idle one meanwhile, and
counts as held time (nd_input_limited_seconds); `lift` lets everybody go on, as a stop must take what peers had sent.
Refuses: deciding for how long (OriginLimits does).
"""

import asyncio
import logging
from typing import Protocol

from ndagent.core import messages
from ndagent.core.log import Throttle
from ndagent.core.metrics import Metrics
from ndagent.core.origin_limits import OriginLimits

LOOK_SECONDS = 1.0
_SAY_EVERY_SECONDS = 60.0


class Slowed(Protocol):
    """A peer that can be kept from being read."""

    def set_slowed(self, slowed: bool) -> None:
        """Stop reading it, or go on."""


class Slowing:
    """The peers of one input that wait. Belongs to the loop."""

    def __init__(
        self, limits: OriginLimits, *, name: str, metrics: Metrics, loop: asyncio.AbstractEventLoop
    ) -> None:
        self._limits = limits
        self._loop = loop
        self._held: dict[Slowed, asyncio.TimerHandle] = {}
        self._gauge = metrics.limited.labels(name)
        self._seconds = metrics.limited_seconds.labels(name)
        self._log = logging.getLogger(name)
        self._throttle = Throttle(_SAY_EVERY_SECONDS, clock=loop.time)
        self._is_lifted = False

    def charge(self, peer: Slowed, identity: str, *, events: int, size_bytes: int) -> None:
        """Note what a peer sent, and hold it if its origin owes."""
        wait = self._limits.charge(identity, events=events, size_bytes=size_bytes)
        if wait > 0 and peer not in self._held and not self._is_lifted:
            peer.set_slowed(True)
            self._wait(peer, identity, wait)
            if (silenced := self._throttle.allow(identity)) is not None:
                self._log.warning(
                    "%s sends more than limits allow to one origin: it is read more slowly, nothing is lost "
                    "(limits.events_per_second_per_origin, limits.bytes_per_second_per_origin)",
                    identity, extra={**messages.SENDER_SLOWED, "origin": identity, "silenced": silenced},
                )  # fmt: skip

    def forget(self, peer: Slowed) -> None:
        """A peer is gone."""
        timer = self._held.pop(peer, None)
        if timer is not None:
            timer.cancel()
            self._gauge.set(len(self._held))

    def lift(self) -> None:
        """Hold nobody any more."""
        self._is_lifted = True
        for peer in tuple(self._held):
            self.forget(peer)
            peer.set_slowed(False)

    def _wait(self, peer: Slowed, identity: str, seconds: float) -> None:
        pause = min(seconds, LOOK_SECONDS)
        self._held[peer] = self._loop.call_later(pause, self._look, peer, identity, pause)
        self._gauge.set(len(self._held))

    def _look(self, peer: Slowed, identity: str, paused: float) -> None:
        self._seconds.inc(paused)
        wait = self._limits.owed(identity)
        if wait > 0:
            peer.set_slowed(True)
            self._wait(peer, identity, wait)
            return
        self.forget(peer)
        peer.set_slowed(False)


def slowing(
    limits: OriginLimits | None, *, name: str, metrics: Metrics, loop: asyncio.AbstractEventLoop
) -> Slowing | None:
    """None where nothing is limited."""
    return None if limits is None else Slowing(limits, name=name, metrics=metrics, loop=loop)

