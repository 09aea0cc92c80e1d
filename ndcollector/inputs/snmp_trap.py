"""SNMP traps and informs of v1, v2c and v3: what devices say of themselves without being asked.

Promises and limits: ndagent/core/trap_intake.py. A community is no secret on the wire and an
address can be forged: use v3 where devices can, and list networks under `allow.networks`.
"""

from typing import Literal

from pydantic import Field

from ndagent.core.trap_intake import TrapConfig, TrapInput
from ndcollector.inputs import InputContext


class Config(TrapConfig):
    """Settings of an snmp_trap input."""

    type: Literal["snmp_trap"] = Field(default="snmp_trap", description="Traps and informs of devices.")


def build(name: str, config: Config, context: InputContext) -> TrapInput:
    """The input, not receiving yet."""
    return TrapInput(name, config, state_dir=context.state_dir, metrics=context.metrics, clock=context.clock)
