"""The collector's inputs, one file each; file name = config key = metric label = logger name.

A plug module has `Config` (Settings) and `build(name, config, context) -> Input`, and its line in INPUTS.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ndagent.core.metrics import Metrics

if TYPE_CHECKING:
    from ndagent.core.tls import TlsContexts
    from ndcollector.inputs.agent_gate import Enroller, Gate

INPUTS = {
    "syslog_tls": "ndcollector.inputs.syslog_tls",
    "syslog_tcp": "ndcollector.inputs.syslog_tcp",
    "syslog_udp": "ndcollector.inputs.syslog_udp",
    "netflow": "ndcollector.inputs.netflow",
    "snmp_trap": "ndcollector.inputs.snmp_trap",
    "snmp_poll": "ndcollector.inputs.snmp_poll",
    "kafka": "ndcollector.inputs.kafka",
    "mqtt": "ndcollector.inputs.mqtt",
    "mqtt_broker": "ndcollector.inputs.mqtt_broker",
    "https": "ndcollector.inputs.https",
}
"""Input type → module; imported only when configured."""


@dataclass(frozen=True, slots=True)
class InputContext:
    """What the composition root hands to every input's `build`."""

    state_dir: Path
    metrics: Metrics
    tls: "TlsContexts"
    clock: Callable[[], float]  # Unix seconds
    fleet: "Gate | None" = None  # who asks for agents; without one every good agent certificate may send
    enrolment: "Enroller | None" = None  # who gives agents their certificates
    node_name: str = "collector"  # this collector's own name
