"""NetFlow v5, v9 and IPFIX over UDP: what routers, switches and firewalls say of the traffic they carry.

Promises and limits: ndagent/core/flow_intake.py. Anybody who can reach the port can send, under any address: keep it in
a management network and list the exporters under `allow.networks`.
"""

from typing import Literal

from pydantic import Field

from ndagent.core.flow_intake import FlowConfig, FlowInput
from ndcollector.inputs import InputContext


class Config(FlowConfig):
    """Settings of a netflow input."""

    type: Literal["netflow"] = Field(default="netflow", description="Flows of routers, switches and firewalls.")


def build(name: str, config: Config, context: InputContext) -> FlowInput:
    """The input, not receiving yet."""
    return FlowInput(name, config, state_dir=context.state_dir, metrics=context.metrics, clock=context.clock)
