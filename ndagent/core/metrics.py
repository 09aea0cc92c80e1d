"""Every metric of agent and collector, declared once: name, unit, help, labels.

Promises: one process-wide place where a name is born; `count_drop` is the only function in the project that counts a
lost event, so a search for it finds every place that can lose one. Values that follow from sequences (appended,
delivered, pending …) are computed by the ledger at scrape time and never counted here.
Refuses: HTTP (see ndcollector/admin.py) and anything per event: callers add a whole chunk at a time.
"""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics

disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series for each counter that nobody graphs


class Metrics:
    """One per process; passed to whatever counts. Cache label children (`.labels(...)`) outside hot paths."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry(auto_describe=True)
        self.received = Counter(
            "nd_input_received_events", "Events made durable or refused, by input.", ["input"], registry=registry
        )
        self.received_bytes = Counter(
            "nd_input_received_bytes", "Bytes read from peers after decryption.", ["input"], registry=registry
        )
        self.dropped = Counter(
            "nd_input_dropped_events", "Events lost, by reason.", ["input", "reason"], registry=registry
        )
        self.truncated = Counter(
            "nd_input_truncated_events", "Events cut at max_message_bytes or by the end of a connection.", ["input"],
            registry=registry,
        )
        self.framing_errors = Counter(
            "nd_input_framing_errors", "Places where framing was lost and found again, or the connection closed.",
            ["input"], registry=registry,
        )
        self.connections = Gauge("nd_input_connections", "Open connections.", ["input"], registry=registry)
        self.accepted = Counter(
            "nd_input_accepted_connections", "Connections whose handshake and checks succeeded.", ["input"],
            registry=registry,
        )
        self.refused = Counter(
            "nd_input_refused_connections", "Connections refused, by reason.", ["input", "reason"], registry=registry
        )
        self.paused = Gauge(
            "nd_input_paused", "1 while the input has stopped reading because the spool cannot take more.", ["input"],
            registry=registry,
        )
        self.parse_failures = Counter(
            "nd_decode_failures_events", "Events without a valid PRI; delivered raw and tagged.", ["stream"],
            registry=registry,
        )
        self.sent_bytes = Counter("nd_output_sent_bytes", "Bytes handed over.", ["output"], registry=registry)
        self.send_seconds = Histogram(
            "nd_output_send_seconds", "Time of one send, failed ones too.", ["output"], registry=registry,
            buckets=(0.001, 0.005, 0.02, 0.1, 0.5, 2, 10, 30),
        )
        self.unavailable = Counter(
            "nd_output_unavailable", "Sends that failed and will be tried again.", ["output"], registry=registry
        )
        self.resent = Counter(
            "nd_output_resent_events", "Events sent again though they may have arrived: duplicates with one event.id.",
            ["output"], registry=registry,
        )
        self.breaker_state = Gauge(
            "nd_output_breaker_state", "0 closed, 1 half open, 2 open.", ["output"], registry=registry
        )
        self.commit_seconds = Histogram(
            "nd_spool_commit_seconds", "Time of one group commit (write and fdatasync).", ["stream"],
            registry=registry, buckets=(0.0005, 0.001, 0.002, 0.005, 0.02, 0.1, 0.5, 2, 10),
        )
        self.spool_full = Gauge(
            "nd_spool_full", "1 while appends wait for room (max_bytes or a full disk).", ["stream"], registry=registry
        )
        self.spool_bytes = Gauge("nd_spool_bytes", "Bytes in segment files.", ["stream"], registry=registry)
        self.spool_damaged = Counter(
            "nd_spool_damaged_records", "Places in segments that could not be read and went to quarantine.", ["stream"],
            registry=registry,
        )
        self.certificate_expiry = Gauge(
            "nd_certificate_expiry_timestamp_seconds", "notAfter of a certificate, nextUpdate of a CRL.", ["file"],
            registry=registry,
        )
        self.reloads = Counter(
            "nd_reloads", "Reloads of configuration or certificates.", ["what", "result"], registry=registry
        )

    def count_drop(self, *, input: str, reason: str, events: int) -> None:  # noqa: A002 - the label's name
        """Record that events were lost. The only such place: see the module's promise."""
        self.dropped.labels(input, reason).inc(events)
