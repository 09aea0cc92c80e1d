"""The ledger's outputs as Prometheus sees them: computed from the cursors when it scrapes, never counted."""

from collections.abc import Iterator

from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from ndagent.core.ledger import Bookkeeper

_MEANINGS = {
    "appended": "Events made durable since this output began.",
    "delivered": "Events the destination owns.",
    "filtered": "Events this output did not want.",
    "dead_lettered": "Events the destination rejected, kept in the dead-letter file.",
    "quarantined": "Events the disk damaged, kept in quarantine.",
    "evicted": "Events given up to make room (on_full: drop_oldest).",
}


class LedgerMetrics(Collector):
    """Register it with the registry that is scraped."""

    def __init__(self, bookkeeper: Bookkeeper) -> None:
        self._bookkeeper = bookkeeper

    def collect(self) -> Iterator[Metric]:
        """nd_output_<part>_events_total{output, stream}, and the gauge nd_output_pending_events."""
        lines = list(self._bookkeeper.outputs())
        for part, meaning in _MEANINGS.items():
            family = CounterMetricFamily(f"nd_output_{part}_events", meaning, labels=["output", "stream"])
            for line in lines:
                family.add_metric([line.output, line.stream], getattr(line, part))
            yield family
        pending = GaugeMetricFamily("nd_output_pending_events", "Events still to be sent.", labels=["output", "stream"])
        for line in lines:
            pending.add_metric([line.output, line.stream], line.pending)
        yield pending
