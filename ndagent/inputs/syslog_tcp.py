"""Syslog over plain TCP (RFC 6587) for an agent that stands near the devices.

Promises and limits: ndagent/core/syslog_tcp.py. Messages are spooled as they came (raw first) and become events when
they are sent on, by the `decode` settings (wire/own_lines.py): `source` is the device, `agent` who took them, `host`
what the message says.
"""

from typing import Literal

from pydantic import Field

from ndagent.core.syslog_tcp import SyslogTcp, SyslogTcpConfig
from ndagent.inputs import InputContext


class Config(SyslogTcpConfig):
    """Settings of a syslog_tcp input."""

    type: Literal["syslog_tcp"] = Field(default="syslog_tcp", description="Syslog over TCP without TLS.")


def build(name: str, config: Config, context: InputContext) -> SyslogTcp:
    """The input, not listening yet."""
    return SyslogTcp(name, config, metrics=context.metrics, clock=context.clock)
