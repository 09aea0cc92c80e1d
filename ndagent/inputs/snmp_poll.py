"""Health of network devices, asked by SNMP every minute: up, uptime, CPU, interfaces; for an agent near them.

Promises and limits: ndagent/core/poll_intake.py. Events say nothing of this host: `observer` is the device,
`agent` who asked it.
"""

from typing import Literal

from pydantic import Field

from ndagent import __version__
from ndagent.core.poll_intake import PollConfig, PollInput
from ndagent.inputs import InputContext


class Config(PollConfig):
    """Settings of an snmp_poll input."""

    type: Literal["snmp_poll"] = Field(default="snmp_poll", description="Health of devices, asked by SNMP.")


def build(name: str, config: Config, context: InputContext) -> PollInput:
    """The input, not asking yet."""
    return PollInput(
        name,
        config,
        metrics=context.metrics,
        clock=context.clock,
        constants=b'"agent":{"type":"ndagent","version":"%b"},' % __version__.encode(),
    )
