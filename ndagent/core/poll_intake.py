"""Health of devices by SNMP, on an interval, as metric events; the plugs of agent and collector are made of this.

Promises:
  * each device is asked once an interval, at a time of its own (jitter), at most `concurrency` at once; a round that
    takes longer than the interval leaves out those that were due meanwhile;
  * a device that does not answer, or denies us, is an event with `snmp.device.up: 0` and the reason, each round, and a
    line in the log when it begins and when it ends: not an error a round;
  * a round that the spool cannot take yet is waited for. Events go to the stream `metrics`.
Refuses: positions (what was not measured cannot be measured later), discovery of devices, SET.
"""

import asyncio
import logging
import math
import os
import random
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Annotated, Any, Literal, Self

import orjson
from pydantic import AfterValidator, Field, SecretStr, model_validator

from ndagent.core.interfaces import Accept
from ndagent.core.metrics import Metrics
from ndagent.core.settings import Duration, SettingError, Settings, is_address
from ndagent.core.snmp_client import Device, Silent
from ndagent.core.snmp_health import Document, Health, Selection
from ndagent.core.snmp_talk import CommunityTalk, Denied, Talk, UserTalk
from ndagent.core.snmp_users import UserConfig
from ndagent.wire.ecs import ECS_VERSION
from ndagent.wire.record import Batch, Flags, Framing, Origin, Section

_FIRST_WITHIN_SECONDS = 5.0
"""The first round comes so soon: who just wrote the configuration wants to see it work."""
_MAX_DEVICES = 4096


def _not_empty(value: str) -> str:
    if not value.strip() or "\0" in value:
        raise ValueError("is empty; write an address or a name")
    return value


class DeviceConfig(Settings):
    """One device to ask."""

    address: Annotated[str, AfterValidator(_not_empty)] = Field(description="Its address or name.")
    port: int = Field(default=161, ge=1, le=65535, description="Its port.")
    name: str | None = Field(default=None, description="What to call it; null: its address.")
    community: SecretStr | None = Field(default=None, description="For v2c, as ${file:…}.")
    user: UserConfig | None = Field(default=None, description="For v3; a device has one of the two.")
    exclude_interfaces: tuple[str, ...] = Field(
        default=(), description="Interfaces left out, as shell patterns of their names."
    )

    @model_validator(mode="after")
    def _has_one(self) -> Self:
        if (self.community is None) == (self.user is None):
            raise SettingError(("community",), "give a device `community` (v2c) or `user` (v3), and not both")
        return self


class PollConfig(Settings):
    """Settings of an snmp_poll input."""

    every: Duration = Field(default=60.0, ge=1, le=86400, description="Time between two rounds at a device.")
    jitter: Duration = Field(
        default=5.0, ge=0, le=3600, description="Each round comes up to so much later, drawn anew; less than `every`."
    )
    timeout: Duration = Field(default=2.0, ge=0.05, le=60, description="How long to wait for an answer.")
    retries: int = Field(default=1, ge=0, le=10, description="How often a question is repeated.")
    concurrency: int = Field(default=16, ge=1, le=512, description="Devices asked at a time.")
    interfaces: int = Field(default=256, ge=0, le=4096, description="Interfaces of a device that are told of.")
    stream: Literal["metrics", "security_events"] = Field(
        default="metrics", description="The stream that the events belong to."
    )
    devices: tuple[DeviceConfig, ...] = Field(
        min_length=1, max_length=_MAX_DEVICES, description="Devices to ask.",
        examples=[[{"address": "192.0.2.1", "community": "public"}]],
    )  # fmt: skip

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.jitter >= self.every:
            raise SettingError(("jitter",), f"is not less than `every`, {self.every:g}s")
        seen: set[str] = set()
        for index, one in enumerate(self.devices):
            name = one.name or one.address
            if name in seen:
                raise SettingError(("devices", index), f"a second device is called {name!r}; give it a `name`")
            seen.add(name)
        return self


class Times:
    """When one device's rounds are due: a steady beat, each up to `jitter` behind it; what is past is left out."""

    def __init__(self, every: float, jitter: float, *, uniform: Callable[[float, float], float]) -> None:
        self._every = every
        self._jitter = jitter
        self._uniform = uniform
        self._beat: float | None = None

    def next(self, now: float) -> float:
        """When to begin the next round; `now` is when the one before ended."""
        if self._beat is None:
            self._beat = now + self._uniform(0.0, min(_FIRST_WITHIN_SECONDS, self._every))
            return self._beat
        self._beat += self._every * max(1, math.ceil((now - self._beat) / self._every))
        return self._beat + self._uniform(0.0, self._jitter)


class _Polled:
    """One device with what is remembered of it."""

    def __init__(self, config: DeviceConfig, settings: PollConfig, talk: Talk, input_name: str) -> None:
        self.name = config.name or config.address
        self.address = config.address
        self.device = Device(
            (config.address, config.port), talk, timeout_seconds=settings.timeout, retries=settings.retries
        )
        self.health = Health(Selection(settings.interfaces, config.exclude_interfaces))
        self.origin = Origin(input_name, config.address, config.port)
        self.down_because = ""


class PollInput:
    """An Input; see the module. `constants` are members of every event, each with a comma behind it."""

    def __init__(
        self,
        name: str,
        config: PollConfig,
        *,
        metrics: Metrics,
        clock: Callable[[], float],
        monotonic: Callable[[], float] = time.monotonic,
        random_bytes: Callable[[int], bytes] = os.urandom,
        uniform: Callable[[float, float], float] = random.uniform,
        constants: bytes = b"",
    ) -> None:
        self._config = config
        self._clock = clock
        self._monotonic = monotonic
        self._uniform = uniform
        self._constants = constants
        self._log = logging.getLogger(name)
        self._received = metrics.received.labels(name)
        self._results = {word: metrics.polls.labels(name, word) for word in ("answered", "silent", "denied")}

        def talk(one: DeviceConfig) -> Talk:
            if one.user is not None:
                return UserTalk(one.user.user(), monotonic=monotonic, random_bytes=random_bytes)
            assert one.community is not None  # noqa: S101 - the settings have one of the two
            return CommunityTalk(one.community.get_secret_value().encode())

        self._devices = [_Polled(one, config, talk(one), name) for one in config.devices]

    async def start(self) -> None:
        """Nothing to open."""

    async def run(self, accept: Accept) -> None:
        """Ask and hand over until cancelled."""
        places = asyncio.Semaphore(self._config.concurrency)
        async with asyncio.TaskGroup() as group:
            for one in self._devices:
                group.create_task(self._watch(one, accept, places), name=f"{one.origin.input}: {one.name}")

    async def _watch(self, one: _Polled, accept: Accept, places: asyncio.Semaphore) -> None:
        loop = asyncio.get_running_loop()
        times = Times(self._config.every, self._config.jitter, uniform=self._uniform)
        while True:
            await asyncio.sleep(times.next(loop.time()) - loop.time())
            async with places:
                batch = await self._round(one)
            await accept(batch)
            self._received.inc(batch.count)

    async def _round(self, one: _Polled) -> Batch:
        began = self._monotonic()
        now = self._clock()
        device: Document
        interfaces: list[Document] = []
        because = ""
        try:
            async with asyncio.timeout(self._config.every), one.device.connected() as asking:
                device, interfaces = await one.health.ask(asking, monotonic=began)
            self._results["answered"].inc()
        except Denied as denied:
            because = str(denied)
            self._results["denied"].inc()
        except Silent:
            because = "no answer"
            self._results["silent"].inc()
        except TimeoutError:
            because = "a round took longer than the interval"
            self._results["silent"].inc()
        except OSError as error:
            because = error.strerror or str(error)
            self._results["silent"].inc()
        if because:
            one.health.forget()
            device = {"up": 0, "reason": because}
        self._say(one, because)
        return self._batch(one, device, interfaces, now=now, seconds=self._monotonic() - began)

    def _say(self, one: _Polled, because: str) -> None:
        """State changes only."""
        if because and not one.down_because:
            self._log.warning("%s is down: %s; it is asked again every %gs", one.name, because, self._config.every)
        elif one.down_because and not because:
            self._log.info("%s is up again", one.name)
        one.down_because = because

    # ---- events

    def _batch(
        self, one: _Polled, device: Document, interfaces: list[Document], *, now: float, seconds: float
    ) -> Batch:
        moment = datetime.fromtimestamp(now, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
        observer = {"ip": one.address if is_address(one.address) else None, "name": one.name}
        observer |= {"hostname": device.pop("name", None), "vendor": device.pop("vendor", None) or None}
        documents = [("device", device), *(("interface", interface) for interface in interfaces)]
        lines = []
        for what, document in documents:
            event = {
                "kind": "metric", "module": "snmp", "dataset": f"snmp.{what}", "created": moment,
                "duration": round(seconds * 1e9),
            }  # fmt: skip
            whole = {
                "@timestamp": moment,
                "ecs": {"version": ECS_VERSION.decode()},
                "event": event,
                "metricset": {"name": what, "period": round(self._config.every * 1000)},
                "observer": observer,
                "snmp": {what: document},
            }
            lines.append(b"{" + self._constants + orjson.dumps(_without_none(whole))[1:] + b"\n")
        payload = b"".join(lines)
        section = Section(one.origin, Framing.LF, Flags.OWN, len(payload), len(lines))
        return Batch(self._config.stream, "ecs", int(now * 1e9), [section], [payload])


def _without_none(document: dict[str, Any]) -> dict[str, Any]:
    """An absent value is an absent key."""
    return {
        key: _without_none(value) if isinstance(value, dict) else value
        for key, value in document.items()
        if value is not None
    }
