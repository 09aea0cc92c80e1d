"""Syslog over UDP (RFC 5426) for an agent that stands near the devices: the fewer hops, the less is lost.

Promises and limits: ndagent/core/syslog_udp.py. Messages are spooled as they came (raw first) and become events when
they are sent on, by the `decode` settings (wire/own_lines.py): `source` is the device, `agent` who took them, `host`
what the message says.
"""

from typing import Literal

from pydantic import Field

from ndagent.core.datagram_intake import DatagramIntake
from ndagent.core.syslog_udp import SyslogUdpConfig, syslog_udp
from ndagent.inputs import InputContext


class Config(SyslogUdpConfig):
    """Settings of a syslog_udp input."""

    type: Literal["syslog_udp"] = Field(default="syslog_udp", description="Syslog over UDP, which may lose messages.")


def build(name: str, config: Config, context: InputContext) -> DatagramIntake:
    """The input, not receiving yet."""
    return syslog_udp(name, config, metrics=context.metrics, clock=context.clock)
