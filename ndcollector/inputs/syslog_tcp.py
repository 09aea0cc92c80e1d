"""Syslog over plain TCP (RFC 6587), RFC 5424 or 3164: for devices that know no TLS. See ndagent/core/syslog_tcp.py."""

from typing import Literal

from pydantic import Field

from ndagent.core.syslog_tcp import SyslogTcp, SyslogTcpConfig
from ndcollector.inputs import InputContext


class Config(SyslogTcpConfig):
    """Settings of a syslog_tcp input."""

    type: Literal["syslog_tcp"] = Field(default="syslog_tcp", description="Syslog over TCP without TLS.")


def build(name: str, config: Config, context: InputContext) -> SyslogTcp:
    """The input, not listening yet."""
    return SyslogTcp(name, config, metrics=context.metrics, clock=context.clock)
