"""Records as lines of Elastic Common Schema JSON: one format per template, filled in by whole columns.

Promises:
  * every field of a record is in its line: in the ECS field that means it (flow.py), else in `netflow.<IANA's name>`;
  * where packets were sampled, bytes and packets are multiplied by the rate, and what the exporter counted stands
    beside it under `netflow`, with `netflow.samplingRate`;
  * no line has an `event.id` (the spool gives it), and `"event":{"` stands in it exactly once (own_lines.py);
  * C goes through columns where Python would go through fields: 3 to 5 µs a flow; the compiled codec goes through
    records and needs a fifth of that, for every template of fixed length whose parts it knows (steps.py).
Refuses: reading records (template.py), knowing rates (sampling.py).
"""

from collections.abc import Sequence
from functools import cached_property
from itertools import repeat
from typing import NamedTuple

from ndagent.wire.codec import FlowWriter, flow_writer
from ndagent.wire.netflow.flow import FlowParts
from ndagent.wire.netflow.parts import Context, Maker, Part, Stepped, about, mapped, observer, taken
from ndagent.wire.netflow.sampling import rate_of_all, rates_of
from ndagent.wire.netflow.steps import Op, Step, plan_of
from ndagent.wire.netflow.template import Records, Template, names
from ndagent.wire.netflow.values import Reading


class Written(NamedTuple):
    """Lines, each with its LF."""

    lines: int
    text: bytes


NOTHING = Written(0, b"")


class _Form(NamedTuple):
    """`writer`: the compiled twin's, if it knows all parts; `needs_uptime`: it does where the context says one."""

    text: bytes
    makers: Sequence[Maker]
    writer: FlowWriter | None
    needs_uptime: bool


class Lines:
    """Writes the records of one template."""

    def __init__(
        self, template: Template, *, has_uptime: bool, community_ids: bool = True, may_be_compiled: bool = True
    ) -> None:
        self._template = template
        self._may_be_compiled = may_be_compiled
        self._has_uptime = has_uptime
        self._community_ids = community_ids

    def write(self, records: Records, context: Context) -> Written:
        """One line for each record."""
        if not records.total:
            return NOTHING
        columns = list(records.columns)
        rates = None if self._template.scopes else rates_of(self._template, columns, records.total, context)
        form = self._plain if rates is None else self._sampled
        if rates is not None:
            columns.append(rates)
        values = [make(columns, context) for make in form.makers]
        lines = map(form.text.__mod__, zip(repeat(context.head, records.total), *values, strict=False))
        return Written(records.total, b"".join(lines))

    def write_set(self, content: memoryview, context: Context) -> Written | None:
        """The same from a set's content, by the compiled twin; None: it cannot, take the columns."""
        rate = None if self._template.scopes else rate_of_all(self._template, context)
        if rate is None:
            return None
        form = self._plain if rate == 1 else self._sampled
        if form.writer is None or (form.needs_uptime and context.uptime_ms is None):
            return None
        text = form.writer.write(
            content, head=context.head, observer=context.observer, about=context.about, rate=rate,
            export_ms=context.export_us // 1000, uptime_ms=context.uptime_ms or 0,
        )  # fmt: skip
        return Written(len(content) // self._template.record_bytes, text)

    @cached_property
    def _plain(self) -> _Form:
        return self._form(rate_at=None)

    @cached_property
    def _sampled(self) -> _Form:
        return self._form(rate_at=len(self._template.readings))

    def _form(self, *, rate_at: int | None) -> _Form:
        template = self._template
        if template.scopes:
            parts, used = [Part(b'},"observer":{%b}', (observer,))], set[int]()
        else:
            flow = FlowParts(template, rate_at=rate_at, has_uptime=self._has_uptime, community_ids=self._community_ids)
            parts, used = [flow.times, Part(b"}", ()), *flow.objects], flow.used
        parts.append(Part(b',"netflow":{%b', (about,)))
        columns = zip(names(template), template.readings, strict=True)
        parts += [_rest(at, key, read) for at, (key, read) in enumerate(columns) if at not in used]
        if rate_at is not None:
            parts.append(Part(b',"samplingRate":%d', (Stepped(taken(rate_at), Step(Op.RATE)),)))
        parts.append(Part(b"}}\n", ()))
        return self._of(b"%b" + b"".join(part.text for part in parts), [make for part in parts for make in part.makers])

    def _of(self, text: bytes, makers: Sequence[Maker]) -> _Form:
        steps = [make.step if isinstance(make, Stepped) else None for make in makers]
        plan = plan_of(self._template, text, steps) if self._may_be_compiled else None
        needs_uptime = any(step is not None and step.op is Op.UPTIME_SPAN for step in steps)
        return _Form(text, makers, flow_writer(plan) if plan is not None else None, needs_uptime)


def _rest(at: int, key: bytes, read: Reading) -> Part:
    """A field under its own name."""
    if read.text is None:
        return Part(b',"%b":%%d' % key, (taken(at),))
    return Part(b',"%b":%%b' % key, (mapped(at, read.text),))
