"""SNMP traps and informs of v1, v2c and v3, for an agent that stands near the devices.

Promises and limits: ndagent/core/trap_intake.py. Events say nothing of this host (`host` would name
the wrong machine): `observer` is the device, `agent` who took them.
"""

from typing import Literal

from pydantic import Field

from ndagent import __version__
from ndagent.core.trap_intake import TrapConfig, TrapInput
from ndagent.inputs import InputContext


class Config(TrapConfig):
    """Settings of an snmp_trap input."""

    type: Literal["snmp_trap"] = Field(default="snmp_trap", description="Traps and informs of devices.")


def build(name: str, config: Config, context: InputContext) -> TrapInput:
    """The input, not receiving yet."""
    return TrapInput(
        name,
        config,
        state_dir=context.state_dir,
        metrics=context.metrics,
        clock=context.clock,
        constants=b'"agent":{"type":"ndagent","version":"%b"},' % __version__.encode(),
    )
