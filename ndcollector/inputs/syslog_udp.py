"""Syslog over UDP (RFC 5426), RFC 5424 or 3164: for devices that can do no better. See ndagent/core/syslog_udp.py."""

from typing import Literal

from pydantic import Field

from ndagent.core.datagram_intake import DatagramIntake
from ndagent.core.syslog_udp import SyslogUdpConfig, syslog_udp
from ndcollector.inputs import InputContext


class Config(SyslogUdpConfig):
    """Settings of a syslog_udp input."""

    type: Literal["syslog_udp"] = Field(default="syslog_udp", description="Syslog over UDP, which may lose messages.")


def build(name: str, config: Config, context: InputContext) -> DatagramIntake:
    """The input, not receiving yet."""
    return syslog_udp(name, config, metrics=context.metrics, clock=context.clock)
