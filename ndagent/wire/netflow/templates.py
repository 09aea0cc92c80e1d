"""Templates of all exporters, by exporter, observation domain and id; bounded, the least recently used out first.

Promises: two domains never share a template; the same shape is compiled once, however many exporters use it. No
exporter has more than its share, all together not more than the limits: what goes is counted, and comes again with the
exporter's next announcement. Whoever never announced anything pushes out only his like: a burst under forged addresses
costs no template. Refuses: time; who is used when is order, not clock.
"""

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from ndagent.wire.netflow.lines import Lines
from ndagent.wire.netflow.packets import FIRST_DATA_SET, V9, Definition
from ndagent.wire.netflow.sequence import Sequence
from ndagent.wire.netflow.template import Field, Template

MAX_DOMAINS = 256
"""Observation domains of one exporter; line cards have one each."""
MAX_SAMPLERS = 1024
"""Samplers of one domain."""

_Key = tuple[tuple[Field, ...], int, bool]


class TemplateLimits(NamedTuple):
    """How much of templates is remembered."""

    exporters: int = 4096
    per_exporter: int = 256
    fields: int = 65536
    """Of all different templates together: one takes some 700 bytes once it is used."""
    templates: int = 32768


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

    def learn_rates(self, rates: dict[int | None, int]) -> None:
        """Take up what options said of samplers."""
        self.rates |= rates
        while len(self.rates) > MAX_SAMPLERS:
            del self.rates[next(iter(self.rates))]


@dataclass(slots=True)
class _Exporter:
    domains: "OrderedDict[tuple[int, int], Domain]" = field(default_factory=OrderedDict)
    templates: int = 0


class Templates:
    """The table; see the module."""

    def __init__(self, limits: TemplateLimits, *, community_ids: bool) -> None:
        self._limits = limits
        self._community_ids = community_ids
        self._exporters: OrderedDict[str, _Exporter] = OrderedDict()
        self._strangers: OrderedDict[str, _Exporter] = OrderedDict()  # who have announced nothing yet
        self._shapes: dict[_Key, Shape] = {}
        self._fields = 0
        self.count = 0
        """Templates there are."""
        self.evicted = 0
        """Templates that had to make room, so far."""
        self.changes = 0
        """Grows with every template that is new or gone."""

    def domain(self, address: str, version: int, number: int) -> Domain:
        """The domain, there from now on; its exporter is the last to be forgotten."""
        exporter = self._exporter(address)
        found = exporter.domains.get((version, number))
        if found is None:
            found = exporter.domains[version, number] = Domain(version, number)
            if len(exporter.domains) > MAX_DOMAINS:
                self._forget_domain(exporter)
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
            self._strangers.popitem(last=False)
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
            self._drop(exporter, domain, template_id)
        shape = self._shape(template, has_uptime=domain.version <= V9)
        shape.users += 1
        domain.templates[template_id] = shape
        exporter.templates += 1
        self.count += 1
        self.changes += 1
        self._strangers.pop(address, None)
        self._exporters[address] = exporter
        self._make_room(exporter)

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
            self._forget_exporter()
        while exporter.templates > limits.per_exporter:
            self._evict_from(exporter)
        while self._fields > limits.fields or self.count > limits.templates:
            if len(self._exporters) > 1:
                self._forget_exporter()
            else:
                self._evict_from(exporter)

    def _evict_from(self, exporter: _Exporter) -> None:
        """The least recently used template of its least recently used domain that has one."""
        domain = next(one for one in exporter.domains.values() if one.templates)
        self.evicted += 1
        self._drop(exporter, domain, next(iter(domain.templates)))

    def _forget_exporter(self) -> None:
        _, exporter = self._exporters.popitem(last=False)
        for domain in exporter.domains.values():
            self._empty(exporter, domain)

    def _forget_domain(self, exporter: _Exporter) -> None:
        _, domain = exporter.domains.popitem(last=False)
        self._empty(exporter, domain)

    def _empty(self, exporter: _Exporter, domain: Domain) -> None:
        self.evicted += len(domain.templates)
        for template_id in list(domain.templates):
            self._drop(exporter, domain, template_id)

    def _withdraw(self, exporter: _Exporter, domain: Domain, template_id: int, *, is_options: bool) -> None:
        """RFC 7011 §8.1; over UDP there should be none, but whoever sends one means it."""
        for known, shape in list(domain.templates.items()):
            if known == template_id or (template_id < FIRST_DATA_SET and bool(shape.template.scopes) == is_options):
                self._drop(exporter, domain, known)

    def _drop(self, exporter: _Exporter, domain: Domain, template_id: int) -> None:
        shape = domain.templates.pop(template_id)
        shape.users -= 1
        if not shape.users:
            del self._shapes[shape.key]
            self._fields -= len(shape.template.fields)
        exporter.templates -= 1
        self.count -= 1
        self.changes += 1
