"""Every metric of agent and collector, declared once: name, unit, help, labels.

Promises: one process-wide place where a name is born; `count_drop` is the only function in the project that counts a
lost event, so a search for it finds every place that can lose one. Values that follow from sequences (appended,
delivered, pending …) are computed by the ledger at scrape time and never counted here.
Refuses: HTTP (see ndcollector/admin.py) and anything per event: callers add a whole chunk at a time.
"""

from functools import partial
from typing import Any

from ndagent.core.instruments import Tallies, prometheus_registry
from ndagent.core.instruments import counter as Counter  # noqa: N812 - declarations read as Prometheus' own
from ndagent.core.instruments import gauge as Gauge  # noqa: N812
from ndagent.core.instruments import histogram as Histogram  # noqa: N812
from ndagent.core.instruments import info as Info  # noqa: N812

_SEND_BUCKETS = (0.001, 0.005, 0.02, 0.1, 0.5, 2, 10, 30)
_COMMIT_BUCKETS = (0.0005, 0.001, 0.002, 0.005, 0.02, 0.1, 0.5, 2, 10)


class Metrics:
    """One per process; passed to whatever counts. Cache label children (`.labels(...)`) outside hot paths.

    With `exported=False` they are plain sums in memory (see instruments.py).
    """

    def __init__(self, *, exported: bool = True) -> None:
        self.registry: Any = prometheus_registry() if exported else Tallies()
        self.build = Info("nd_build", "Version and codec of this process.", registry=self.registry)
        self._declare_inputs()
        self._declare_spool_and_outputs()
        self._declare_endpoints()
        gauge, counter = partial(Gauge, registry=self.registry), partial(Counter, registry=self.registry)
        self.certificate_expiry = gauge(
            "nd_certificate_expiry_timestamp_seconds", "notAfter of a certificate, nextUpdate of a CRL.", ["file"]
        )
        self.reloads = counter("nd_reloads", "Reloads of files, done or refused.", ["what", "result"])
        self._declare_dead_letters()
        self._declare_agents()
        self._declare_ledger()

    def _declare_inputs(self) -> None:
        counter, gauge = partial(Counter, registry=self.registry), partial(Gauge, registry=self.registry)
        one = ["input"]
        self.received = counter("nd_input_received_events", "Events made durable or refused.", one)
        self.received_bytes = counter("nd_input_received_bytes", "Bytes read from peers after decryption.", one)
        self.dropped = counter("nd_input_dropped_events", "Events lost, by reason.", ["input", "reason"])
        self.truncated = counter(
            "nd_input_truncated_events", "Events cut at max_message_bytes or by the end of a connection.", one
        )
        self.framing_errors = counter("nd_input_framing_errors", "Places where framing was lost and found again.", one)
        self.connections = gauge("nd_input_connections", "Open connections.", one)
        self.accepted = counter("nd_input_accepted_connections", "Connections that passed handshake and checks.", one)
        self.refused = counter("nd_input_refused_connections", "Connections refused, by reason.", ["input", "reason"])
        self.datagrams_lost = counter(
            "nd_input_datagrams_lost", "Datagrams that the kernel dropped, by socket.", ["input", "socket"]
        )
        self.senders = gauge("nd_input_senders", "Senders of datagrams that are remembered now.", one)
        self.senders_forgotten = counter(
            "nd_input_senders_forgotten", "Senders that had to make room, the least recently seen first.", one
        )
        self._declare_exporters()
        self._declare_snmp()
        self._declare_channels()
        self.paused = gauge("nd_input_paused", "1 while reading has stopped because the spool cannot take more.", one)
        self.repeated = counter("nd_input_repeated_events", "Events taken that the source will hand out again.", one)
        self.requests = counter(
            "nd_input_requests", "HTTP requests answered, by route and status.", ["input", "route", "status"]
        )
        self.known = counter("nd_input_known_events", "Events that came again and were durable already.", one)
        self.unacknowledged = counter(
            "nd_input_unacknowledged_events", "Events taken over a way without acknowledgement (MQTT QoS 0).", one
        )
        self.sessions_lost = counter(
            "nd_input_lost_sessions", "Sessions that a broker had and lost, with what waited in them.", one
        )
        self.limited = gauge("nd_input_limited_origins", "Peers not read now because their origin is too fast.", one)
        self.limited_seconds = counter(
            "nd_input_limited_seconds", "Time that peers were not read because their origin was too fast.", one
        )
        self.lag = gauge("nd_input_lag_events", "Events at the source behind the last one taken, as last seen.", one)

    def _declare_exporters(self) -> None:
        """Of flows: what NetFlow and IPFIX exporters number and announce."""
        counter, gauge = partial(Counter, registry=self.registry), partial(Gauge, registry=self.registry)
        one, unit = ["input"], ["input", "unit"]
        self.sequence_missing = counter(
            "nd_input_sequence_missing", "Numbered by exporters and not seen; less `late`, it is lost.", unit
        )
        self.sequence_late = counter("nd_input_sequence_late", "Counted as missing, and came after all.", unit)
        self.exporter_restarts = counter("nd_input_exporter_restarts", "Exporters that numbered anew.", one)
        self.templates = gauge("nd_input_templates", "Templates of exporters that are known now.", one)
        self.templates_evicted = counter("nd_input_templates_evicted", "Templates that had to make room.", one)
        self.templates_redefined = counter("nd_input_templates_redefined", "Templates that changed their shape.", one)

    def _declare_snmp(self) -> None:
        """Of traps, informs and polled devices."""
        counter, gauge = partial(Counter, registry=self.registry), partial(Gauge, registry=self.registry)
        one = ["input"]
        self.informs = counter(
            "nd_input_informs", "Informs made durable: answered, or unanswered (the sender repeats it).",
            ["input", "result"],
        )  # fmt: skip
        self.snmp_reports = counter(
            "nd_input_snmp_reports", "SNMPv3 messages answered with a Report, by what it says.", ["input", "reason"]
        )
        self.snmp_engines = gauge("nd_input_snmp_engines", "SNMPv3 engines whose clock is known.", one)
        self.snmp_engines_evicted = counter("nd_input_snmp_engines_evicted", "Engines that had to make room.", one)
        self.polls = counter("nd_input_snmp_polls", "Rounds at devices: answered, silent, denied.", ["input", "result"])

    def _declare_channels(self) -> None:
        """Of Windows event logs."""
        counter, gauge = partial(Counter, registry=self.registry), partial(Gauge, registry=self.registry)
        self.channels = gauge("nd_input_channels", "Channels of the event log that are read now.", ["input"])
        self.channel_gaps = counter(
            "nd_input_channel_gaps", "Holes in a channel's record numbers that stayed.", ["input", "channel"]
        )
        self.resubscribed = counter(
            "nd_input_resubscribed",
            "Subscriptions made anew: stalled, or failed.",
            ["input", "channel", "reason"],
        )
        self.unrendered = counter(
            "nd_input_unrendered_events", "Events whose provider has no words for them here.", ["input"]
        )

    def _declare_dead_letters(self) -> None:
        counter, gauge = partial(Counter, registry=self.registry), partial(Gauge, registry=self.registry)
        output = ["output"]
        self.dead_letters = gauge("nd_dead_letters_events", "Events in the dead-letter file.", output)
        self.dead_letters_bytes = gauge("nd_dead_letters_bytes", "Bytes of dead letters.", output)
        self.dead_letters_fill = gauge(
            "nd_dead_letters_fill_ratio", "Share of dead_letter_max_bytes in use; at 1 the output is blocked.", output
        )
        self.dead_letters_replayed = counter(
            "nd_dead_letters_replayed_events", "Dead letters that the far side took when they were sent again.", output
        )
        self.dead_letters_purged = counter("nd_dead_letters_purged_events", "Dead letters removed by a person.", output)

    def _declare_agents(self) -> None:
        counter, gauge = partial(Counter, registry=self.registry), partial(Gauge, registry=self.registry)
        self.agents = gauge("nd_agents", "Agents in the inventory; one may be in several states.", ["state"])
        self.agents_shed = gauge("nd_agents_shed_events", "Events that agents report to have lost, as remembered.")
        self.enrolments = counter("nd_agents_enrolments", "Enrolments and renewals, by result.", ["result"])
        self.agents_refused = counter("nd_agents_refused", "Requests and messages of agents refused.", ["reason"])

    def _declare_ledger(self) -> None:
        gauge = partial(Gauge, registry=self.registry)
        self.ledger_saved = gauge("nd_ledger_saved", "1 while the ledger per origin is written, 0 while it cannot be.")
        self.ledger_origins = gauge("nd_ledger_origins", "Senders in the ledger, names in parentheses included.")
        counter = partial(Counter, registry=self.registry)
        self.sources = gauge("nd_sources", "Sources remembered: senders, and channels of agents.")
        self.sources_quiet = gauge("nd_sources_quiet", "Sources that are quiet against their own rhythm.")
        self.sources_evicted = counter("nd_sources_evicted", "Sources forgotten because others needed their places.")
        self.sources_passed_over = counter(
            "nd_sources_passed_over", "Times that a newcomer was not taken up: too many at once, or no place."
        )

    def _declare_spool_and_outputs(self) -> None:
        counter, gauge = partial(Counter, registry=self.registry), partial(Gauge, registry=self.registry)
        histogram = partial(Histogram, registry=self.registry)
        stream, output = ["stream"], ["output"]
        self.commit_seconds = histogram(
            "nd_spool_commit_seconds", "Time of one group commit (write and sync).", stream, buckets=_COMMIT_BUCKETS
        )
        self.spool_full = gauge("nd_spool_full", "1 while appends wait for room (max_bytes or a full disk).", stream)
        self.spool_bytes = gauge("nd_spool_bytes", "Bytes in segment files.", stream)
        self.spool_damaged = counter("nd_spool_damaged_records", "Unreadable places, kept in quarantine.", stream)
        self.parse_failures = counter(
            "nd_decode_failed_events", "Events without a valid PRI; delivered raw and tagged.", stream
        )
        self.sent_bytes = counter("nd_output_sent_bytes", "Bytes handed over.", output)
        self.send_seconds = histogram(
            "nd_output_send_seconds", "Time of one send, failed ones too.", output, buckets=_SEND_BUCKETS
        )
        self.unavailable = counter("nd_output_unavailable", "Sends that failed and will be tried again.", output)
        self.resent = counter("nd_output_resent_events", "Events sent again though they may have arrived.", output)
        self.breaker_state = gauge("nd_output_breaker_state", "0 closed, 1 half open, 2 open.", ["output", "stream"])

    def _declare_endpoints(self) -> None:
        """Of outputs that speak HTTP; at most 64 endpoints each, and one that is gone is forgotten."""
        counter, gauge = partial(Counter, registry=self.registry), partial(Gauge, registry=self.registry)
        one = ["output", "endpoint"]
        self.endpoint_state = gauge(
            "nd_output_endpoint_state", "0 well, 1 being tried, 2 breaker open, 3 ejected, 4 fails its check.", one
        )
        self.endpoint_requests = counter(
            "nd_output_endpoint_requests", "Requests: answered, pushed_back (429, 5xx), failed, withdrawn.",
            [*one, "result"],
        )
        self.endpoint_seconds = Histogram(
            "nd_output_endpoint_seconds", "Time of a request that was answered.", one,
            registry=self.registry, buckets=_SEND_BUCKETS,
        )
        self.endpoint_ejections = counter(
            "nd_output_endpoint_ejections", "Times that an endpoint was left out for doing worse than its peers.", one
        )
        self.endpoint_places = gauge("nd_output_endpoint_concurrency", "Requests that may be made at a time.", one)
        self.hedges = counter("nd_output_hedged_requests", "Requests made because one took long.", ["output"])

    def count_drop(self, *, input: str, reason: str, events: int) -> None:  # noqa: A002 - the label's name
        """Record that events were lost. The only such place: see the module's promise."""
        self.dropped.labels(input, reason).inc(events)
