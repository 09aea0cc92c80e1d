"""The agent's ways to its collectors, one file each; file name = config key = metric label = logger name.

All of them are ways to one destination: an event goes out by one of them. A module has `Config` (a TransportConfig) and
`build(config, context, target) -> Transport`; discovery, choice and fail-over between targets stand in collector.py.
"""

import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from ssl import SSLContext
from typing import Annotated, Protocol

from pydantic import AfterValidator, Field

from ndagent.core.settings import Duration, Settings
from ndagent.https_client import Place
from ndagent.wire.enrolment import is_endpoint
from ndagent.wire.envelope import Header

SRV_PREFIX = "srv:"
_SRV_NAME = re.compile(r"[A-Za-z0-9_-]{1,63}(?:\.[A-Za-z0-9_-]{1,63}){1,16}\.?")

OUTPUTS = {
    "mqtt": "ndagent.outputs.mqtt",
    "https": "ndagent.outputs.https",
}
"""Output type → module; imported only when configured, so that one way costs the memory of one."""


def check_endpoint(text: str) -> str:
    """The text if it is host:port or srv:NAME; raises ValueError that shows a good example."""
    name = text.removeprefix(SRV_PREFIX)
    if not (_SRV_NAME.fullmatch(name) if name != text else is_endpoint(text)):
        raise ValueError(f"{text!r} is no endpoint; write collector.example.net:8883 or srv:_nd-mqtt._tcp.example.net")
    return text


class TransportConfig(Settings):
    """What every way to a collector has."""

    type: str = Field(description="Which way; defaults to the name it is configured under.")
    endpoints: tuple[Annotated[str, AfterValidator(check_endpoint)], ...] | None = Field(
        default=None,
        min_length=1,
        description="Collectors as host:port, or srv:NAME for a DNS SRV record; null: those that enrolment told.",
        examples=[["collector-1.example.net:8883"]],
    )
    connect_timeout: Duration = Field(
        default=5.0, gt=0, description="A collector that has not greeted us within this time is taken to be away."
    )


class Transport(Protocol):
    """One connection's worth of one way to one collector. Calls may overlap."""

    @property
    def sign(self) -> Callable[[bytes], bytes] | None:
        """What signs the envelopes of this way; None where mutual TLS with the collector says who we are.

        Raises Unavailable while the key cannot be had.
        """

    async def send(self, packed: bytes, header: Header) -> None:
        """Return once whoever is at the other end answers for the envelope; raises Unavailable or Rejected.

        That is the collector, which has it on disk, or on a way over the customer's broker that broker.
        """

    async def report(self, document: bytes) -> None:
        """Hand over a status report (wire/status.py); raises Unavailable, or Rejected for one it cannot read."""

    async def probe(self) -> None:
        """Return if the collector is there and would take data; raises Unavailable."""

    async def aclose(self) -> None:
        """Let go of the connection; safe at any time."""


@dataclass(frozen=True, slots=True)
class TransportContext:
    """What every transport is made with. `tls` gives the context for each new connection: certificates are renewed.

    `offer` takes a policy that came down (the bytes as they came). A way that signs needs `run_id`, which names this
    process, and `pair`, the file that holds our key and certificate.
    """

    agent_id: str
    tls: Callable[[], SSLContext]
    offer: Callable[[bytes], Awaitable[None]]
    run_id: str = ""
    pair: Callable[[], Path] = Path


@dataclass(frozen=True, slots=True)
class Target:
    """One address of one collector, over one protocol."""

    protocol: str
    place: Place

    def __str__(self) -> str:
        return f"{self.protocol}://{self.place}"
