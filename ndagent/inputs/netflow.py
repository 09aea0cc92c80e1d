"""NetFlow v5, v9 and IPFIX over UDP, for an agent that stands near the devices.

Promises and limits: ndagent/core/flow_intake.py. Events say nothing of this host (`host` would name the wrong machine):
`observer` is the exporter, `agent` who took them.
"""

from typing import Literal

from pydantic import Field

from ndagent import __version__
from ndagent.core.flow_intake import FlowConfig, FlowInput
from ndagent.inputs import InputContext


class Config(FlowConfig):
    """Settings of a netflow input."""

    type: Literal["netflow"] = Field(default="netflow", description="Flows of routers, switches and firewalls.")


def build(name: str, config: Config, context: InputContext) -> FlowInput:
    """The input, not receiving yet."""
    return FlowInput(
        name,
        config,
        state_dir=context.state_dir,
        metrics=context.metrics,
        clock=context.clock,
        constants=b'"agent":{"type":"ndagent","version":"%b"},' % __version__.encode(),
    )
