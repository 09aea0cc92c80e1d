"""Some channels, read in one thread: subscribes to them, waits for news, pulls, and watches for silence.

Promises: `pull` returns as soon as there is something to hand over, or `stop` was called; channels have their turn one
after the other, a batch each. A channel that cannot be read is tried again with growing pauses, is said once a minute
in the log with its remedy, and holds up none of the others. Nothing is pulled until `pull` is called again: that is the
back-pressure. Refuses: the loop.
"""

from collections.abc import Callable, Mapping, Sequence

from ndagent.core.backoff import full_jitter
from ndagent.inputs.windows_event_api import (
    BAD_QUERY,
    BATCH_TOO_BIG,
    DENIED,
    DIRECT_CHANNEL,
    NOT_THERE,
    EventLog,
    EventLogError,
)
from ndagent.inputs.windows_event_channel import Channel
from ndagent.inputs.windows_event_loss import Pulled, Reading
from ndagent.inputs.windows_event_place import Place, key_of

POLL_SECONDS = 5.0
"""The most that is waited for a signal; a look without one costs a call per channel."""
_RETRY_SECONDS = (1.0, 60.0)
_LATER_SECONDS = 30.0
"""How often a channel that is not there is looked for."""

STALLED, FAILED = "stalled", "failed"


class Group:
    """See the module.

    `resubscribed` is told (channel, why) whenever a subscription is made anew, `opened` by how many channels more (or
    less) are being read.
    """

    def __init__(
        self,
        channels: Sequence[str],
        reading: Reading,
        places: Mapping[bytes, Place],
        *,
        random: Callable[[], float],
        resubscribed: Callable[[str, str], None],
        opened: Callable[[int], None],
    ) -> None:
        self._reading = reading
        self._log = EventLog(reading.monotonic)
        self._random = random
        self._resubscribed = resubscribed
        self._tell_opened = opened
        self._stop_signal = self._log.signal()
        self._log.reset(self._stop_signal)
        self._is_stopping = False
        self._channels = [Channel(name, reading, self._log, places.get(key_of(name))) for name in channels]
        self._retry_at: dict[str, float] = dict.fromkeys(channels, 0.0)
        self._attempts: dict[str, int] = {}
        self._absent: set[str] = set()

    def stop(self) -> None:
        """From any thread: let the `pull` under way return."""
        self._is_stopping = True
        self._log.set(self._stop_signal)

    def close(self) -> None:
        """End all subscriptions; in the thread of `pull`."""
        for channel in self._channels:
            self._close(channel)

    def pull(self) -> list[Pulled]:
        """Wait for something to hand over; empty only after `stop`."""
        while not self._is_stopping:
            found = [pulled for channel in self._channels for pulled in self._turn(channel)]
            if found:
                return found
            if not any(channel.has_news for channel in self._channels if channel.signal is not None):
                self._wait()
        return []

    def _turn(self, channel: Channel) -> list[Pulled]:
        found: list[Pulled] = []
        try:
            if channel.signal is None:
                if self._reading.monotonic() < self._retry_at[channel.name]:
                    return found
                found.append(channel.open())
                self._opened(channel.name)
            found.append(channel.pull())
            self._attempts.pop(channel.name, None)
            if not channel.has_news:
                if channel.is_stalled():
                    self._again(channel, STALLED)
                found.append(channel.passed())
        except EventLogError as error:
            found += self._failed(channel, error)
        return [pulled for pulled in found if pulled.lines or pulled.place is not None]

    def _close(self, channel: Channel) -> None:
        if channel.signal is not None:
            self._tell_opened(-1)
        channel.close()

    def _opened(self, name: str) -> None:
        self._tell_opened(1)
        if name in self._absent or self._attempts.get(name):
            self._reading.log.info("%s: being read now", name)
        self._absent.discard(name)

    def _again(self, channel: Channel, why: str) -> None:
        self._close(channel)
        self._retry_at[channel.name] = 0.0
        self._resubscribed(channel.name, why)
        if self._reading.throttle.allow((why, channel.name)) is not None:
            self._reading.log.warning(
                "%s: newer records are there and do not come; subscribed to anew, nothing is lost", channel.name
            )

    def _failed(self, channel: Channel, error: EventLogError) -> list[Pulled]:
        """Close it until it is tried again. A channel that is not there is remembered as that."""
        name, was_open = channel.name, channel.signal is not None
        self._close(channel)
        if error.number == BATCH_TOO_BIG and channel.make_batches_smaller():
            self._retry_at[name] = 0.0
            self._resubscribed(name, FAILED)
            return []
        attempt = self._attempts.get(name, 0)
        self._attempts[name] = attempt + 1
        first, most = _RETRY_SECONDS
        pause = full_jitter(attempt, initial_seconds=first, maximum_seconds=most, random=self._random)
        if was_open:
            self._resubscribed(name, FAILED)
        elif error.number in NOT_THERE:
            pause = _LATER_SECONDS
        self._retry_at[name] = self._reading.monotonic() + pause
        if self._reading.throttle.allow((name, error.number)) is not None:
            self._reading.log.warning("%s: not being read: %s; %s", name, error, _remedy(error.number))
        if error.number in NOT_THERE and name not in self._absent:
            self._absent.add(name)
            return channel.was_absent()
        return []

    def _wait(self) -> None:
        """For a signal, or until a channel is to be tried or looked after."""
        open_now = [channel for channel in self._channels if channel.signal is not None]
        now = self._reading.monotonic()
        waits = [channel.wait_seconds() for channel in open_now]
        waits += [self._retry_at[one.name] - now for one in self._channels if one.signal is None]
        seconds = max(0.0, min([POLL_SECONDS, *waits]))
        self._log.wait([self._stop_signal, *(channel.signal for channel in open_now)], seconds)
        for channel in open_now:
            channel.has_news = True


def _remedy(number: int) -> str:
    if number in NOT_THERE:
        return "it is read from its beginning once it is there; see `wevtutil el` for the names there are"
    if number == DENIED:
        return "run the agent as LocalSystem, or put its account into the group Event Log Readers"
    if number in BAD_QUERY:
        return "correct `query`: it is an XPath of event queries, such as *[System[(EventID=4624)]]"
    if number == DIRECT_CHANNEL:
        return "analytic and debug channels cannot be subscribed to; take it out of `channels`"
    return "trying again until it works; nothing that stays in the log is lost"
