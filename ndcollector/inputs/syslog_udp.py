"""Syslog over UDP (RFC 5426), RFC 5424 or 3164: for devices that can do no better.

Promises and limits: ndagent/core/datagram_intake.py. Anybody who can reach the port can send, under any address: keep
it in a management network, list who may send under `allow.networks`, and use syslog_tls wherever a device can.
"""

import time
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, PlainSerializer

from ndagent.core.allow_list import AllowConfig, AllowList, Network, parse_network
from ndagent.core.datagram_intake import DatagramConfig, DatagramIntake
from ndagent.core.settings import Listen, ListenAddress, Settings
from ndcollector.inputs import InputContext


class AllowNetworks(Settings):
    """Who may send; there is no certificate to ask for."""

    networks: tuple[Annotated[Network, BeforeValidator(parse_network), PlainSerializer(str)], ...] = Field(
        default=(), description="Addresses that may send, as networks or single addresses; [] means all."
    )


class Config(DatagramConfig):
    """Settings of a syslog_udp input."""

    type: Literal["syslog_udp"] = Field(default="syslog_udp", description="Syslog over UDP, which may lose messages.")
    listen: tuple[ListenAddress, ...] = Field(
        default=(Listen("0.0.0.0", 514),), min_length=1, description="Addresses to receive at."
    )
    allow: AllowNetworks = Field(default=AllowNetworks(), description="Who may send.")


def build(name: str, config: Config, context: InputContext) -> DatagramIntake:
    """The input, not receiving yet."""
    return DatagramIntake(
        name,
        config,
        allow=AllowList(AllowConfig(networks=config.allow.networks)),
        metrics=context.metrics,
        clock=context.clock,
        monotonic=time.monotonic,
    )
