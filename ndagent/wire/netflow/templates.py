"""Templates of all exporters, by exporter, observation domain and id; bounded, the least recently used out first.

Promises: two domains never share a template; the same shape is compiled once, however many exporters use it. No
exporter has more than its share (of fields: a quarter), all together not more than the limits: what goes is counted,
and comes again with the exporter's next announcement. Whoever never announced anything pushes out only his like: a
burst under forged addresses costs no template. Refuses: time; who is used when is order, not clock.
"""

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import NamedTuple

from ndagent.wire.netflow.lines import Lines
from ndagent.wire.netflow.packets import FIRST_DATA_SET, V9, Definition
from ndagent.wire.netflow.sequence import Sequence
from ndagent.wire.netflow.template import MAX_FIELDS, Field, Template

MAX_DOMAINS = 256
"""Observation domains of one exporter; line cards have one each."""
MAX_SAMPLERS = 1024
"""Samplers of one exporter."""

_Key = tuple[tuple[Field, ...], int, bool]


class TemplateLimits(NamedTuple):
    """How much of templates is remembered."""

    exporters: int = 4096
    per_exporter: int = 256
    fields: int = 65536
    """Of all different templates together: one takes some 700 bytes once it is used."""
    templates: int = 32768
    domains: int = 32768
    """Of all exporters together: one takes some 500 bytes. Not below MAX_DOMAINS."""
    samplers: int = 65536
    """Of all exporters together. Not below MAX_SAMPLERS."""


class Shape:
    """A template and what writes its records; shared by all that have it."""

    __slots__ = ("key", "lines", "template", "users")

    def __init__(self, key: _Key, template: Template, lines: Lines) -> None:
        self.key = key
        self.template = template
        self.lines = lines
        self.users = 0


@dataclass(slots=True)
class Domain:
    """One observation domain of an exporter."""

    version: int
    number: int
    templates: "OrderedDict[int, Shape]" = field(default_factory=OrderedDict)
    sequence: Sequence = field(default_factory=Sequence)
    rates: dict[int | None, int] = field(default_factory=dict)
    boot_us: int | None = None


@dataclass(slots=True)
class _Exporter:
    domains: "OrderedDict[tuple[int, int], Domain]" = field(default_factory=OrderedDict)
    templates: int = 0
    fields: int = 0
    samplers: int = 0


class Templates:
    """The table; see the module."""

    def __init__(self, limits: TemplateLimits, *, community_ids: bool) -> None:
        self._limits = limits
        self._community_ids = community_ids
        self._exporters: OrderedDict[str, _Exporter] = OrderedDict()
        self._strangers: OrderedDict[str, _Exporter] = OrderedDict()  # who have announced nothing yet
        self._shapes: dict[_Key, Shape] = {}
        self._fields = 0
        self._domains = 0
        self._samplers = 0
        self.count = 0
        """Templates there are."""
        self.evicted = 0
        """Templates that had to make room, so far."""
        self.redefined = 0
        """Template ids that came again with another shape, so far: a new configuration, or two exporters in one."""
        self.redefined_last = ""
        """Whose it was, the last time."""
        self.changes = 0
        """Grows with all that is worth saving: templates, rates and boot times that are new or gone."""

    def domain(self, address: str, version: int, number: int) -> Domain:
        """The domain, there from now on; its exporter is the last to be forgotten."""
        exporter = self._exporter(address)
        found = exporter.domains.get((version, number))
        if found is None:
            found = exporter.domains[version, number] = Domain(version, number)
            self._domains += 1
            if len(exporter.domains) > MAX_DOMAINS:
                self._forget_domain(exporter)
            self._make_room_for_domains(exporter)
        else:
            exporter.domains.move_to_end((version, number))
        return found

    def _exporter(self, address: str) -> _Exporter:
        known = self._exporters.get(address)
        if known is not None:
            self._exporters.move_to_end(address)
            return known
        known = self._strangers.pop(address, None) or _Exporter()
        self._strangers[address] = known
        if len(self._strangers) > self._limits.exporters:
            self._forget(self._strangers)
        return known

    def find(self, domain: Domain, template_id: int) -> Shape | None:
        """The template of that id, which is the last to be forgotten."""
        shape = domain.templates.get(template_id)
        if shape is not None:
            domain.templates.move_to_end(template_id)
        return shape

    def define(self, address: str, domain: Domain, definition: Definition) -> None:
        """Take up a template, or its end; one that is known in this shape stays as it is."""
        template_id, template, is_options = definition
        exporter = self._exporter(address)
        if template is None:
            self._withdraw(exporter, domain, template_id, is_options=is_options)
            return
        known = domain.templates.get(template_id)
        if known is not None and known.template == template:
            domain.templates.move_to_end(template_id)
            return
        if known is not None:
            self.redefined += 1
            self.redefined_last = f"{address}, domain {domain.number}, template {template_id}"
            self._drop(exporter, domain, template_id)
        shape = self._shape(template, has_uptime=domain.version <= V9)
        shape.users += 1
        domain.templates[template_id] = shape
        exporter.templates += 1
        exporter.fields += len(template.fields)
        self.count += 1
        self.changes += 1
        self._strangers.pop(address, None)
        self._exporters[address] = exporter
        self._make_room(exporter)

    def learn_rates(self, address: str, domain: Domain, rates: dict[int | None, int]) -> None:
        """Take up what options said of samplers; those heard of first make room."""
        if rates.items() <= domain.rates.items():
            return
        exporter, before = self._exporter(address), len(domain.rates)
        domain.rates |= rates
        self._count_samplers(exporter, len(domain.rates) - before)
        self.changes += 1
        for one in exporter.domains.values():
            surplus = exporter.samplers - MAX_SAMPLERS
            if surplus <= 0:
                break
            gone = list(islice(one.rates, surplus))
            for sampler in gone:
                del one.rates[sampler]
            self._count_samplers(exporter, -len(gone))
        while self._samplers > self._limits.samplers and len(self._exporters) > 1:
            self._forget(self._exporters)

    def learn_boot(self, domain: Domain, boot_us: int | None) -> None:
        """When the exporter's uptime began."""
        self.changes += domain.boot_us != boot_us
        domain.boot_us = boot_us

    def all(self) -> Iterator[tuple[str, Domain]]:
        """Every domain of those who announced templates, with the exporter's address, the longest unused first."""
        for address, exporter in self._exporters.items():
            for domain in exporter.domains.values():
                yield address, domain

    # ---- shapes

    def _shape(self, template: Template, *, has_uptime: bool) -> Shape:
        key = (template.fields, template.scopes, has_uptime)
        found = self._shapes.get(key)
        if found is None:
            lines = Lines(template, has_uptime=has_uptime, community_ids=self._community_ids)
            found = self._shapes[key] = Shape(key, template, lines)
            self._fields += len(template.fields)
        return found

    # ---- forgetting

    def _make_room(self, exporter: _Exporter) -> None:
        limits = self._limits
        while len(self._exporters) > limits.exporters:
            self._forget(self._exporters)
        # A share of fields, or 256 templates of 512 from one forged address would push out everybody else's.
        while exporter.templates > limits.per_exporter or exporter.fields > max(limits.fields // 4, MAX_FIELDS):
            self._evict_from(exporter)
        while self._fields > limits.fields or self.count > limits.templates:
            if len(self._exporters) > 1:
                self._forget(self._exporters)
            else:
                self._evict_from(exporter)

    def _make_room_for_domains(self, exporter: _Exporter) -> None:
        """Strangers go first; whoever is last in a table is the one that there is made room for."""
        while self._domains > self._limits.domains:
            for table in (self._strangers, self._exporters):
                if table and next(iter(table.values())) is not exporter:
                    self._forget(table)
                    break
            else:
                return

    def _evict_from(self, exporter: _Exporter) -> None:
        """The least recently used template of its least recently used domain that has one."""
        domain = next(one for one in exporter.domains.values() if one.templates)
        self.evicted += 1
        self._drop(exporter, domain, next(iter(domain.templates)))

    def _forget(self, table: "OrderedDict[str, _Exporter]") -> None:
        """The one in it that was heard of longest ago."""
        _, exporter = table.popitem(last=False)
        for domain in exporter.domains.values():
            self._empty(exporter, domain)

    def _forget_domain(self, exporter: _Exporter) -> None:
        _, domain = exporter.domains.popitem(last=False)
        self._empty(exporter, domain)

    def _empty(self, exporter: _Exporter, domain: Domain) -> None:
        self.evicted += len(domain.templates)
        for template_id in list(domain.templates):
            self._drop(exporter, domain, template_id)
        self._domains -= 1
        self._count_samplers(exporter, -len(domain.rates))

    def _count_samplers(self, exporter: _Exporter, more: int) -> None:
        exporter.samplers += more
        self._samplers += more

    def _withdraw(self, exporter: _Exporter, domain: Domain, template_id: int, *, is_options: bool) -> None:
        """RFC 7011 §8.1; over UDP there should be none, but whoever sends one means it."""
        if template_id >= FIRST_DATA_SET:
            if template_id in domain.templates:
                self._drop(exporter, domain, template_id)
            return
        for known, shape in list(domain.templates.items()):
            if bool(shape.template.scopes) == is_options:
                self._drop(exporter, domain, known)

    def _drop(self, exporter: _Exporter, domain: Domain, template_id: int) -> None:
        shape = domain.templates.pop(template_id)
        shape.users -= 1
        if not shape.users:
            del self._shapes[shape.key]
            self._fields -= len(shape.template.fields)
        exporter.templates -= 1
        exporter.fields -= len(shape.template.fields)
        self.count -= 1
        self.changes += 1
