"""Syslog over UDP (RFC 5426), RFC 5424 or 3164: for devices that can do no better. The plugs are made of this.

Promises and limits: datagram_intake.py; the rate of each sender: origin_limits.py. Anybody who can reach the port can
send, under any address: keep it in a management network, list who may send under `allow.networks`, and use syslog_tls
wherever a device can.
"""

import time
from collections.abc import Callable

from pydantic import Field

from ndagent.core.datagram_intake import DatagramConfig, DatagramIntake, DatagramLimits
from ndagent.core.metrics import Metrics
from ndagent.core.networks import AllowedNetworks, AllowNetworks
from ndagent.core.origin_limits import OriginLimits, OriginLimitsConfig
from ndagent.core.settings import ByteSize, Listen, ListenAddress


class SyslogUdpLimits(DatagramLimits, OriginLimitsConfig):
    """What senders may take of this machine."""

    buffer_bytes: ByteSize = Field(
        default=32 * 2**20, ge=2**16,
        description="Messages waiting for the spool; beyond it the kernel's queue fills. Those that come each from an "
        "address of its own take twice that.",
    )  # fmt: skip
    events_per_second_per_origin: float | None = Field(
        default=None, gt=0,
        description="Of one address, which may be forged; beyond, messages are dropped (rate_limited). null: no limit.",
    )  # fmt: skip


class SyslogUdpConfig(DatagramConfig):
    """Settings of a syslog_udp input."""

    listen: tuple[ListenAddress, ...] = Field(
        default=(Listen("0.0.0.0", 514),), min_length=1, description="Addresses to receive at."
    )
    allow: AllowNetworks = Field(default=AllowNetworks(), description="Who may send.")
    limits: SyslogUdpLimits = Field(default=SyslogUdpLimits(), description="What senders may take of this machine.")


def syslog_udp(
    name: str, config: SyslogUdpConfig, *, metrics: Metrics, clock: Callable[[], float]
) -> DatagramIntake:
    """The input, not receiving yet."""
    return DatagramIntake(
        name,
        config,
        allow=AllowedNetworks(config.allow.networks),
        metrics=metrics,
        clock=clock,
        monotonic=time.monotonic,
        rates=OriginLimits.make(config.limits, clock=time.monotonic),
    )
