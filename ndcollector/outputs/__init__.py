"""The collector's outputs, one file each; file name = config key = metric label = logger name.

A plug module has `Config` (an OutputConfig) and `build(name, config, context) -> Output`. Adding one touches three
places: its file, its line in OUTPUTS, its line in tests/contract.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ndagent.core.metrics import Metrics

OUTPUTS = {
    "elasticsearch": "ndcollector.outputs.elasticsearch",
    "file": "ndcollector.outputs.file",
    "https": "ndcollector.outputs.https",
    "kafka": "ndcollector.outputs.kafka",
    "relp": "ndcollector.outputs.relp",
    "splunk_hec": "ndcollector.outputs.splunk_hec",
    "syslog_tls": "ndcollector.outputs.syslog_tls",
    "otlp": "ndcollector.outputs.otlp",
    "s3": "ndcollector.outputs.s3",
}
"""Output type → module; imported only when configured, so that an unused output costs nothing."""


@dataclass(frozen=True, slots=True)
class OutputContext:
    """What the composition root hands to every output's `build`."""

    state_dir: Path
    metrics: Metrics
    clock: Callable[[], float]  # Unix seconds
    node_name: str = "ndcollector"
