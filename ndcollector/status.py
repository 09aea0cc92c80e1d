"""What the collector is doing now, as plain data: `GET /v1/status`, and with it `ndcollector top`.

Promises: one look at what is there anyway (ledger, metrics, windows, spools); rates are left to whoever has two looks.
Counters begin with the process, an output's account with its cursor. Refuses: history (Prometheus has it).
"""

import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass

from ndagent.core.dispatcher import Dispatcher
from ndagent.core.instruments import Instrument, values
from ndagent.core.ledger import Ledger
from ndagent.core.metrics import Metrics
from ndagent.core.spool import Spool
from ndcollector import __version__
from ndcollector.config import CollectorConfig

BREAKER = ("closed", "half open", "open")
"""By the value of nd_output_breaker_state."""


@dataclass(frozen=True, slots=True)
class Status:
    """One look."""

    config: CollectorConfig
    metrics: Metrics
    spools: Mapping[str, Spool]
    ledger: Ledger
    dispatcher: Dispatcher

    def plain(self) -> dict[str, object]:
        """As plain data. Times are Unix seconds; `lag_seconds` is the age of the oldest event that is being sent."""
        return {
            "node_name": self.config.node_name,
            "version": __version__,
            "time": time.time(),
            "adds_up": self.ledger.adds_up,
            "inputs": list(self._inputs()),
            "outputs": list(self._outputs()),
            "spools": list(self._spools()),
        }

    def _inputs(self) -> Iterator[dict[str, object]]:
        metrics = self.metrics
        received = {line.input: line for line in self.ledger.inputs}
        bytes_, connections = _by_input(metrics.received_bytes), _by_input(metrics.connections)
        refused, paused = _by_input(metrics.refused), _by_input(metrics.paused)
        limited = _by_input(metrics.limited)
        for name, settings in self.config.inputs.items():
            line = received.get(name)
            yield {
                "input": name,
                "type": getattr(settings, "type", name),
                "paused": bool(paused.get(name)),
                "limited": int(limited.get(name, 0)),
                "connections": int(connections.get(name, 0)),
                "refused_connections": int(refused.get(name, 0)),
                "received": line.received if line else 0,
                "received_bytes": int(bytes_.get(name, 0)),
                "dropped": dict(line.dropped) if line else {},
            }

    def _outputs(self) -> Iterator[dict[str, object]]:
        lags = self.dispatcher.lags()
        states = values(self.metrics.breaker_state)
        breakers = {(labels["output"], labels["stream"]): int(value) for labels, value in states}
        now = time.time()
        for line in self.ledger.outputs:
            settings = self.config.outputs.get(line.output)
            place = line.output, line.stream
            lag = lags.get(place)
            if settings is None or lag is None:
                continue  # a cursor that no output moves any more
            oldest = lag.oldest_received_at_ns
            yield {
                **asdict(line),
                "type": getattr(settings, "type", line.output),
                "breaker": BREAKER[breakers.get(place, 0)],
                "settled": lag.settled,
                "lag_events": max(0, self.spools[line.stream].readable - lag.settled),
                "lag_seconds": 0.0 if oldest is None else max(0.0, now - oldest / 1e9),
            }

    def _spools(self) -> Iterator[dict[str, object]]:
        full = {labels["stream"]: bool(value) for labels, value in values(self.metrics.spool_full)}
        for stream, spool in self.spools.items():
            yield {
                "stream": stream,
                "bytes": spool.total_bytes,
                "max_bytes": self.config.spool.max_bytes,
                "full": full.get(stream, False),
                "first_sequence": spool.first_sequence,
                "next_sequence": spool.next_sequence,
            }


def _by_input(instrument: Instrument) -> dict[str, float]:
    """Summed over any other label."""
    sums: dict[str, float] = {}
    for labels, value in values(instrument):
        sums[labels["input"]] = sums.get(labels["input"], 0) + value
    return sums
