"""Health of network devices, asked by SNMP every minute: up, uptime, CPU, interfaces.

Promises and limits: ndagent/core/poll_intake.py.
"""

from typing import Literal

from pydantic import Field

from ndagent.core.poll_intake import PollConfig, PollInput
from ndcollector.inputs import InputContext


class Config(PollConfig):
    """Settings of an snmp_poll input."""

    type: Literal["snmp_poll"] = Field(default="snmp_poll", description="Health of devices, asked by SNMP.")


def build(name: str, config: Config, context: InputContext) -> PollInput:
    """The input, not asking yet."""
    return PollInput(name, config, metrics=context.metrics, clock=context.clock)
