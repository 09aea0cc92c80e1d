"""The Windows event log: channels by name, from where they were last read, every record once.

Promises: a record's place (its bookmark) is in the spool record that has its event, so that a kill neither loses nor
repeats one. Records that are gone before they were read are told: an event of kind pipeline_error, counted, and by
which numbers; a log that was cleared is told as that. A channel that is not there yet is read from its beginning once
it is; a provider without words for its event costs the words, not the event. Reading stops while the spool waits.
Refuses: analytic and debug channels (Windows has no subscriptions to them), other computers' logs (let them forward).

How: pull subscriptions (EvtSubscribe with a signal, EvtNext in batches) through pywin32, one thread for every
CHANNELS_PER_THREAD channels, in which events are rendered too; see windows_event_channel.py for order, gaps and
silence, wire/winevent_ecs.py for what an event becomes.
"""

import asyncio
import functools
import logging
import random
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from typing import Annotated, Literal, TypeVar

from pydantic import BeforeValidator, Field, PlainSerializer, field_validator

from ndagent.core.interfaces import Accept
from ndagent.core.log import Throttle
from ndagent.core.settings import (
    ByteSize,
    Duration,
    Kind,
    Settings,
    format_duration,
    parse_duration,
)
from ndagent.inputs import InputContext
from ndagent.inputs.ecs_batch import base_fields, batch_of
from ndagent.inputs.windows_event_group import Group
from ndagent.inputs.windows_event_loss import Pulled, Reading
from ndagent.inputs.windows_event_place import Place, key_of
from ndagent.wire.record import Checkpoint, Origin
from ndagent.wire.winevent_ecs import Rules

CHANNELS_PER_THREAD = 8
"""A thread waits for 64 things at the most; eight channels keep a busy one from starving many."""

T = TypeVar("T")


def _start(value: object) -> object:
    return value if value in ("beginning", "end") else parse_duration(value)


def _start_as_written(value: str | float) -> str:
    return value if isinstance(value, str) else format_duration(value)


Start = Annotated[
    Literal["beginning", "end"] | float,
    BeforeValidator(_start),
    PlainSerializer(_start_as_written, when_used="json"),
    Kind("beginning, end, or a duration (24h)"),
]


class Config(Settings):
    """Settings of a windows_event input."""

    type: Literal["windows_event"] = Field(default="windows_event", description="Channels of the Windows event log.")
    stream: Literal["security_events", "alerts", "metrics"] = Field(
        default="security_events", description="The stream that the events belong to."
    )
    channels: tuple[str, ...] = Field(
        default=("Security", "System", "Application"),
        min_length=1,
        max_length=256,
        description="Names as `wevtutil el` prints them, such as Microsoft-Windows-Sysmon/Operational.",
    )
    query: str = Field(
        default="*",
        min_length=1,
        max_length=32768,
        description="Which of their events, as XPath: *[System[(EventID=4624)]]. Only with * are gaps noticed.",
    )
    start: Start = Field(
        default=86400.0,
        description="Where to begin when nothing was read yet: at the oldest record, after the newest, or so far back.",
    )
    messages: bool = Field(
        default=True, description="Ask providers for their words (message, names of task and opcode); costs CPU."
    )
    keep_original: Literal["always", "on_error", "never"] = Field(
        default="on_error", description="When event.original has the XML; on_error: when it could not be read whole."
    )
    max_value_bytes: ByteSize = Field(
        default=65536, ge=256, le=16 << 20, description="A longer value is cut there and the event tagged _truncated."
    )
    batch_events: int = Field(default=256, ge=1, le=1024, description="Read and handed over together at the most.")
    check_interval: Duration = Field(
        default=30.0, ge=1, le=3600, description="After so long without a record it is checked that there is none."
    )

    @field_validator("channels")
    @classmethod
    def _check_channels(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            if not name or len(name) > 255 or not name.isprintable() or any(mark in name for mark in "*<>\"|'&"):
                raise ValueError(f"{name!r} is not the name of a channel; `wevtutil el` prints them")
        keys = [key_of(name) for name in names]
        if len(set(keys)) < len(keys):
            raise ValueError("names a channel twice; for another query of it make another input")
        return names


def build(name: str, config: Config, context: InputContext) -> "WindowsEvent":
    """The input, not reading yet."""
    return WindowsEvent(name, config, context)


class WindowsEvent:
    """See the module."""

    def __init__(self, name: str, config: Config, context: InputContext) -> None:
        self._name = name
        self._config = config
        self._clock = context.clock
        self._checkpoints = context.checkpoints
        self._metrics = context.metrics
        self._origin = Origin(name, context.host.hostname, 0)
        self._log = logging.getLogger(name)
        self._base = base_fields(context.host)
        self._cleared: dict[str, float] = {}
        for total in (self._metrics.received, self._metrics.received_bytes, self._metrics.truncated):
            total.labels(name)  # there from the start: a rate needs the zero

    async def start(self) -> None:
        """Raise OSError where there can be no event log; a channel that is not there yet is no fault."""
        if find_spec("win32evtlog") is None:
            raise OSError("the Windows event log needs Windows, and pywin32 there: pip install pywin32")

    async def run(self, accept: Accept) -> None:
        """Read until cancelled; what the spool was being handed then is read again next time."""
        names, places = self._config.channels, self._places()
        parts = [names[at : at + CHANNELS_PER_THREAD] for at in range(0, len(names), CHANNELS_PER_THREAD)]
        try:
            async with asyncio.TaskGroup() as tasks:
                for part in parts:
                    tasks.create_task(self._follow(part, places, accept))
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None  # the others were cancelled, or say the same

    def _reading(self) -> Reading:
        """For one thread: a Throttle is not to be shared."""
        config = self._config
        return Reading(
            query=config.query,
            start=config.start,
            wants_words=config.messages,
            batch_events=config.batch_events,
            check_seconds=config.check_interval,
            rules=Rules(self._base, keep_original=config.keep_original, max_value_chars=config.max_value_bytes),
            unix=self._clock,
            monotonic=time.monotonic,
            throttle=Throttle(60.0, clock=time.monotonic),
            log=self._log,
            cleared=self._cleared,
        )

    def _places(self) -> dict[bytes, Place]:
        found = {}
        for key, part in self._checkpoints.parts(self._name).items():
            try:
                found[key] = Place.unpack(part)
            except ValueError as error:
                self._log.warning("position of %s of no use: %s; reading it as if new", key.decode(), error)
        return found

    async def _follow(self, channels: Sequence[str], places: Mapping[bytes, Place], accept: Accept) -> None:
        group = Group(
            channels,
            self._reading(),
            places,
            random=random.random,
            resubscribed=self._count_resubscribed,
            opened=self._metrics.channels.labels(self._name).inc,
        )
        with ThreadPoolExecutor(1, thread_name_prefix=self._name) as thread:
            try:
                while True:
                    for pulled in await _in_thread(thread, group.pull, group.stop):
                        await self._hand_over(pulled, accept)
            finally:
                thread.submit(group.close)

    async def _hand_over(self, pulled: Pulled, accept: Accept) -> None:
        key = key_of(pulled.channel)
        part = None if pulled.place is None else {key: pulled.place.pack()}
        if not pulled.lines:
            await self._checkpoints.note(Checkpoint(self._name, part or {}), stream=self._config.stream)
            return
        await accept(
            batch_of(
                pulled.lines,
                origin=self._origin,
                received_at_ns=int(self._clock() * 1e9),
                stream=self._config.stream,
                position=part,
            )
        )
        self._count(pulled)

    def _count(self, pulled: Pulled) -> None:
        metrics, name = self._metrics, self._name
        metrics.received.labels(name).inc(len(pulled.lines) + sum(pulled.lost.values()))
        metrics.received_bytes.labels(name).inc(pulled.read_bytes)
        for reason, events in pulled.lost.items():
            metrics.count_drop(input=name, reason=reason, events=events)
        for counter, events in (
            (metrics.truncated, pulled.truncated),
            (metrics.unrendered, pulled.unrendered),
            (metrics.known, pulled.repeated),
        ):
            if events:
                counter.labels(name).inc(events)
        if pulled.gaps:
            metrics.channel_gaps.labels(name, pulled.channel).inc(pulled.gaps)

    def _count_resubscribed(self, channel: str, why: str) -> None:
        self._metrics.resubscribed.labels(self._name, channel, why).inc()


async def _in_thread(thread: ThreadPoolExecutor, job: Callable[[], T], stop: Callable[[], None]) -> T:
    """The job's result; a cancel calls `stop` and waits for the job's end."""
    task = asyncio.get_running_loop().run_in_executor(thread, functools.partial(job))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        stop()
        await asyncio.wait({task})
        raise
