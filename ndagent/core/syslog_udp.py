"""Syslog over UDP (RFC 5426), RFC 5424 or 3164: for devices that can do no better. The plugs are made of this.

Promises and limits: datagram_intake.py. Anybody who can reach the port can send, under any address: keep it in a
management network, list who may send under `allow.networks`, and use syslog_tls wherever a device can.
"""

import time
from collections.abc import Callable

from pydantic import Field

from ndagent.core.datagram_intake import DatagramConfig, DatagramIntake
from ndagent.core.metrics import Metrics
from ndagent.core.networks import AllowedNetworks, AllowNetworks
from ndagent.core.settings import Listen, ListenAddress


class SyslogUdpConfig(DatagramConfig):
    """Settings of a syslog_udp input."""

    listen: tuple[ListenAddress, ...] = Field(
        default=(Listen("0.0.0.0", 514),), min_length=1, description="Addresses to receive at."
    )
    allow: AllowNetworks = Field(default=AllowNetworks(), description="Who may send.")


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
    )
