"""Export datagrams of any exporter in, lines of ECS JSON out: NetFlow v5, v9 and IPFIX.

Promises:
  * every record whose template is known, or becomes known in time, is one line (lines.py), option records too;
  * what is lost is in `counts`, by reason: nothing that comes is dropped otherwise;
  * memory is bounded by the limits, time is linear in the bytes, and no bytes raise.
Refuses: sockets, clocks, saving. (state.py packs the templates.)
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from ndagent.wire.ecs import ECS_VERSION
from ndagent.wire.netflow.held import Held
from ndagent.wire.netflow.lines import NOTHING, Written
from ndagent.wire.netflow.packets import (
    FIRST_DATA_SET,
    IPFIX,
    V5,
    V5_TEMPLATE,
    V9,
    DataSet,
    Definition,
    Header,
    Malformed,
    parse,
)
from ndagent.wire.netflow.parts import Context
from ndagent.wire.netflow.sampling import learn
from ndagent.wire.netflow.template import Records
from ndagent.wire.netflow.templates import Domain, Shape, TemplateLimits, Templates
from ndagent.wire.netflow.times import LAST_MS
from ndagent.wire.netflow.values import time_text

UNITS = {V5: "flows", V9: "datagrams", IPFIX: "records"}
"""What an exporter of this version numbers."""
_FLOW, _OPTIONS = (b"connection", b"netflow_flow"), (b"info", b"netflow_options")
_BOOT = (0, 160)  # systemInitTimeMilliseconds


@dataclass(slots=True)
class Counts:
    """What happened since they were last taken."""

    malformed: int = 0
    """Datagrams that are none, or whose rest is none."""
    no_template: int = 0
    """Data sets whose template did not come in time."""
    missing: dict[str, int] = field(default_factory=dict)
    """By unit: numbered by exporters and not seen."""
    late: dict[str, int] = field(default_factory=dict)
    """By unit: of the missing, those that came after all."""
    restarts: int = 0
    """Exporters that began anew."""
    fault: str | None = None
    """What was wrong with the last malformed datagram, and whose it was."""


class FlowDecoder:
    """See the module. `constants` are members that every line has, each with a comma behind it."""

    def __init__(
        self,
        *,
        limits: TemplateLimits = TemplateLimits(),  # noqa: B008 - immutable
        held_bytes: int = 16 * 2**20,
        held_seconds: float = 300.0,
        community_ids: bool = True,
        constants: bytes = b"",
    ) -> None:
        self.templates = Templates(limits, community_ids=community_ids)
        self._v5 = Templates(limits, community_ids=community_ids)  # they need no announcement: nothing to save
        self._held = Held(most_bytes=held_bytes, seconds=held_seconds)
        self._constants = b'"ecs":{"version":"%b"},%b' % (ECS_VERSION, constants)
        self._counts = Counts()

    def feed(self, exporter: str, data: bytes, *, now: float, is_cut: bool = False) -> Iterator[Written]:
        """The lines of one datagram from this address, received at Unix time `now`, and of sets that waited for it.

        One piece for each data set, made when it is asked for: megabytes of sets may have waited, and be a hundred
        times that as lines. Take all of them before the next datagram's. `is_cut`: there was more of the datagram.
        """
        try:
            header, parts, fault = parse(data)
        except Malformed as error:
            self._malformed(exporter, str(error))
            return
        fault = fault or ("longer than max_message_bytes" if is_cut else None)
        if fault is not None:
            self._malformed(exporter, fault)
        table = self._v5 if header.version == V5 else self.templates
        domain = table.domain(exporter, header.version, header.domain)
        work = _Work(exporter, domain, header, self._head(header, now), now)
        if header.version == V5:
            table.define(exporter, domain, _V5_DEFINITION)
        for part in parts:
            if isinstance(part, Definition):
                yield from self._define(work, part)
            else:
                yield self._data(work, part)
        self._sequence(work, is_whole=fault is None)

    def take_counts(self) -> Counts:
        """What happened since the last call."""
        counts, self._counts = self._counts, Counts()
        return counts

    def expire(self, now: float) -> None:
        """Give up data sets that have waited long enough; call it each second or so."""
        self._counts.no_template += self._held.expire(now)

    def close(self) -> None:
        """Give up all that waits: nobody will come back for it."""
        self._counts.no_template += self._held.clear()

    # ---- parts

    def _define(self, work: "_Work", definition: Definition) -> Iterator[Written]:
        self.templates.define(work.exporter, work.domain, definition)
        if definition.template is None:
            return  # what waits goes on waiting: to look at it for each of 16 000 withdrawals would take hours
        header = work.header
        for waiting in self._held.take((work.exporter, header.version, header.domain, definition.template_id)):
            earlier = work.under(waiting.header, self._head(waiting.header, work.now))
            yield self._data(earlier, DataSet(definition.template_id, memoryview(waiting.content)))

    def _data(self, work: "_Work", part: DataSet) -> Written:
        header = work.header
        table = self._v5 if header.version == V5 else self.templates
        shape = table.find(work.domain, part.template_id)
        if shape is None:
            key = (work.exporter, header.version, header.domain, part.template_id)
            self._counts.no_template += self._held.put(key, header, bytes(part.content), now=work.now)
            work.records = None
            return NOTHING
        if 0 < len(part.content) < shape.template.record_bytes:  # RFC 7011 §3.3.1: padding is behind records only
            self._malformed(work.exporter, "a set without a whole record of its template")
            work.records = None
            return NOTHING
        written = None if shape.template.scopes else shape.lines.write_set(part.content, work.context(is_options=False))
        if written is None:
            return self._by_columns(work, shape, part.content)
        if work.records is not None:
            work.records += written.lines
        return written

    def _by_columns(self, work: "_Work", shape: Shape, content: memoryview) -> Written:
        records = shape.template.columns(content)
        if not records.is_whole:
            self._malformed(work.exporter, "a record whose lengths lead out of its set")
            work.records = None
        if work.records is not None:
            work.records += records.total
        if shape.template.scopes and records.total:
            self._learn(work, shape, records)
        return shape.lines.write(records, work.context(is_options=bool(shape.template.scopes)))

    def _learn(self, work: "_Work", shape: Shape, records: Records) -> None:
        self.templates.learn_rates(work.exporter, work.domain, learn(shape.template, records))
        boot = shape.template.places.get(_BOOT)
        if boot is not None:
            milliseconds = records.columns[boot][-1]
            assert isinstance(milliseconds, int)  # noqa: S101 - `places` has values of their kind only
            if milliseconds <= LAST_MS:  # beyond it there is no calendar, and no file holds it
                self.templates.learn_boot(work.domain, milliseconds * 1000)

    # ---- lines

    def _head(self, header: Header, now: float) -> Callable[[bool], bytes]:
        created = time_text(int(now * 1e6))
        # A clock that was never set says 1970, second 0: DESIGN's "impossible", so the receive time.
        timestamp = time_text(header.export_us) if header.export_us >= 1_000_000 else created

        def head(is_options: bool) -> bytes:
            kind, action = _OPTIONS if is_options else _FLOW
            return (
                b'{"@timestamp":"%b",%b"event":{"kind":"event","category":["network"],"type":["%b"],"action":"%b",'
                b'"created":"%b"' % (timestamp, self._constants, kind, action, created)
            )

        return head

    # ---- counting

    def _malformed(self, exporter: str, fault: str) -> None:
        self._counts.malformed += 1
        self._counts.fault = f"{exporter}: {fault}"

    def _sequence(self, work: "_Work", *, is_whole: bool) -> None:
        header = work.header
        count = {V5: header.flows, V9: 1}.get(header.version, work.records if is_whole else None)
        passed = work.domain.sequence.take(
            header.sequence, count, second=header.export_us // 1_000_000, uptime_ms=header.uptime_ms
        )
        counts, unit = self._counts, UNITS[header.version]
        if passed.missing:
            counts.missing[unit] = counts.missing.get(unit, 0) + passed.missing
        if passed.late:
            counts.late[unit] = counts.late.get(unit, 0) + passed.late
        counts.restarts += passed.is_restart


_V5_DEFINITION = Definition(FIRST_DATA_SET, V5_TEMPLATE, is_options=False)


class _Work:
    """What one datagram brings about; `records` counts its data records, None where nobody can."""

    __slots__ = ("_contexts", "_head", "domain", "exporter", "header", "now", "records")

    def __init__(
        self, exporter: str, domain: Domain, header: Header, head: Callable[[bool], bytes], now: float
    ) -> None:
        self.exporter = exporter
        self.domain = domain
        self.header = header
        self.now = now
        self.records: int | None = 0
        self._head = head
        self._contexts: dict[bool, Context] = {}

    def under(self, header: Header, head: Callable[[bool], bytes]) -> "_Work":
        """The same for a set that came earlier; its records were counted as unknown."""
        return _Work(self.exporter, self.domain, header, head, self.now)

    def context(self, *, is_options: bool) -> Context:
        """What the records of a set share."""
        found = self._contexts.get(is_options)
        if found is None or found.boot_us != self.domain.boot_us:
            header, domain = self.header, self.domain
            found = self._contexts[is_options] = Context(
                head=self._head(is_options),
                observer=b'"ip":"%b"' % self.exporter.encode(),
                about=_about(header),
                export_us=header.export_us,
                uptime_ms=header.uptime_ms,
                boot_us=domain.boot_us,
                rates=domain.rates,
                rate=header.rate,
            )
        return found


def _about(header: Header) -> bytes:
    if header.version == V5:
        return b'"version":5,"engineType":%d,"engineId":%d' % divmod(header.domain, 256)
    return b'"version":%d,"observationDomainId":%d' % (header.version, header.domain)
