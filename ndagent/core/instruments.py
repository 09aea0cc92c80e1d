"""Counters and gauges: Prometheus' own where somebody scrapes them, plain sums where nobody does.

The collector exports its metrics and uses prometheus-client. An agent reports a few sums to its collector, and the
library with all that it imports would be a tenth of its memory (4 MB, measured): on a `Tallies` registry the same
declarations make plain sums instead, and the library is never imported.

Promises: the same calls on both; `values` reads either. Refuses: exposition (ndcollector/admin.py).
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol, cast


class Instrument(Protocol):
    """What may be done with a metric; which of it makes sense depends on its kind."""

    def labels(self, *values: str) -> "Instrument":
        """The child with these label values."""

    def inc(self, amount: float = 1) -> None:
        """Count."""

    def set(self, value: float) -> None:
        """Set a gauge."""

    def observe(self, amount: float) -> None:
        """Add to a histogram."""

    def info(self, value: Mapping[str, str]) -> None:
        """Describe."""

    def remove(self, *values: str) -> None:
        """Forget a child; one that is not there may raise KeyError."""

    def clear(self) -> None:
        """Forget all children."""


class Tallies:
    """The registry of plain sums; it keeps nothing."""


class Tally:
    """One plain sum, or one for each set of label values."""

    def __init__(self, label_names: Sequence[str]) -> None:
        self.label_names = tuple(label_names)
        self.children: dict[tuple[str, ...], Tally] = {}
        self.value: float = 0

    def labels(self, *values: str) -> "Tally":
        """See Instrument."""
        child = self.children.get(values)
        if child is None:
            child = self.children[values] = Tally(())
        return child

    def inc(self, amount: float = 1) -> None:
        """See Instrument."""
        self.value += amount

    observe = inc

    def set(self, value: float) -> None:
        """See Instrument."""
        self.value = value

    def info(self, value: Mapping[str, str]) -> None:
        """See Instrument; nobody asks."""

    def remove(self, *values: str) -> None:
        """See Instrument."""
        del self.children[values]

    def clear(self) -> None:
        """See Instrument."""
        self.children.clear()


def prometheus_registry() -> Any:
    """A CollectorRegistry with the process's own figures (memory, CPU, open files) under their usual names."""
    from prometheus_client import CollectorRegistry, ProcessCollector, disable_created_metrics

    disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series for each counter that nobody graphs
    registry = CollectorRegistry(auto_describe=True)
    ProcessCollector(registry=registry)
    return registry


def counter(name: str, documentation: str, label_names: Sequence[str] = (), *, registry: Any) -> Instrument:
    """A sum that only grows."""
    return _made("Counter", name, documentation, label_names, registry)


def gauge(name: str, documentation: str, label_names: Sequence[str] = (), *, registry: Any) -> Instrument:
    """A value that goes up and down."""
    return _made("Gauge", name, documentation, label_names, registry)


def info(name: str, documentation: str, *, registry: Any) -> Instrument:
    """A description."""
    return _made("Info", name, documentation, (), registry)


def histogram(
    name: str, documentation: str, label_names: Sequence[str] = (), *, registry: Any, buckets: Sequence[float]
) -> Instrument:
    """How values spread over buckets (upper bounds)."""
    return _made("Histogram", name, documentation, label_names, registry, buckets=buckets)


def _made(
    kind: str, name: str, documentation: str, label_names: Sequence[str], registry: Any, **more: object
) -> Instrument:
    if isinstance(registry, Tallies):
        return Tally(label_names)
    import prometheus_client

    made = getattr(prometheus_client, kind)(name, documentation, label_names, registry=registry, **more)
    return cast("Instrument", made)


def values(instrument: Instrument) -> Iterator[tuple[Mapping[str, str], int]]:
    """Label values and present value of each child of a counter or gauge."""
    if isinstance(instrument, Tally):
        for labels, child in instrument.children.items():
            yield dict(zip(instrument.label_names, labels, strict=True)), int(child.value)
        return
    for family in cast("Any", instrument).collect():
        for sample in family.samples:
            yield sample.labels, int(sample.value)
