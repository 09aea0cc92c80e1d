"""Carries out the configuration's `tests:` with the decoder, the routes and the formats that the daemon would use.

Promises: what passes here is what outputs get, but for two things: `sample` keeps every event (one event says nothing
of a share), and event ids are of a spool named `test`. Refuses: spools, outputs, I/O.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import orjson

from ndagent.core.settings import OutputConfig
from ndagent.wire.codec import make_decoder
from ndagent.wire.ecs import DecodeSettings
from ndagent.wire.record import Batch, EventBatch, Flags, Framing, Origin, Section, pack_body
from ndcollector.formats import formatter
from ndcollector.routing.config import RoutedConfig
from ndcollector.routing.engine import make_engine
from ndcollector.routing.paths import find, parse_path
from ndcollector.routing.trials_config import Expectation, TrialConfig, nanoseconds

SPOOL_ID = "test"


@dataclass(frozen=True, slots=True)
class Outcome:
    """One test at one output; no `wrongs`: it passed."""

    test: str
    output: str
    wrongs: tuple[str, ...]

    def __str__(self) -> str:
        head = f"{'FAIL' if self.wrongs else 'ok'}: {self.test}: {self.output}"
        return "\n    ".join([head, *self.wrongs])


def carry_out(
    trials: Mapping[str, TrialConfig], outputs: Mapping[str, OutputConfig], settings: DecodeSettings
) -> Iterator[Outcome]:
    """Every test at every output that it expects something of."""
    for name, trial in trials.items():
        for output, expected in trial.expect.items():
            yield Outcome(name, output, tuple(_wrongs(trial, outputs[output], expected, settings)))


def _wrongs(trial: TrialConfig, config: OutputConfig, expected: Expectation, settings: DecodeSettings) -> Iterator[str]:
    keeps = "always" if isinstance(config, RoutedConfig) and config.needs_originals else settings.keep_original
    events = decoded(trial, replace(settings, keep_original=keeps))
    sent, why = events.select(()), f"stream {trial.stream} is not among its streams"
    if config.wants(trial.stream):
        sent, why = _sent(events, config) if isinstance(config, RoutedConfig) else (events, "")
    if bool(len(sent)) != expected.delivered:
        yield "not delivered: " + why if expected.delivered else f"delivered: {_text(sent.ndjson)}"
    elif len(sent):
        yield from _unlike(orjson.loads(sent.ndjson), expected)
        yield from _other_line(sent, config, expected)


def decoded(trial: TrialConfig, settings: DecodeSettings) -> EventBatch:
    """The test's message as a batch of one event."""
    given, event = trial.input, trial.input.event
    origin = Origin(**given.origin.model_dump())
    raw = given.message if event is None else orjson.dumps(event)
    section = Section(origin, Framing.WHOLE, Flags.NONE, len(raw), 1)
    received = nanoseconds(given.received_at)
    batch = Batch(trial.stream, "syslog" if event is None else "ecs", received, [section], [raw])
    return make_decoder(settings).decode(
        b"".join(pack_body(batch)), stream=trial.stream, spool_id=SPOOL_ID, sequence=0, received_at_ns=received
    )


def _sent(events: EventBatch, config: RoutedConfig) -> tuple[EventBatch, str]:
    """What the output is sent, and why it is nothing."""
    engine = make_engine(config, sampled=False)
    if engine is None:
        return events, ""
    found = engine(events)
    if found.failed:
        return found.events, f"a dead letter: {found.failed[0][1]}"
    return found.events, f"where: {config.where}"


def _unlike(event: dict[str, Any], expected: Expectation) -> Iterator[str]:
    for name, value in expected.fields.items():
        values = find(event, parse_path(name))
        if not any(_same(one, value) for one in values):
            came = " and ".join(_text(orjson.dumps(one)) for one in values) or "nothing"
            yield f"{name}: expected {_text(orjson.dumps(value))}, got {came}"
    for name in expected.absent:
        for value in find(event, parse_path(name)):
            yield f"{name}: expected nothing, got {_text(orjson.dumps(value))}"


def _same(one: Any, other: Any) -> bool:
    """Equal, and no number for a truth value."""
    return bool(one == other) and isinstance(one, bool) == isinstance(other, bool)


def _other_line(sent: EventBatch, config: OutputConfig, expected: Expectation) -> Iterator[str]:
    if expected.line is None:
        return
    form = formatter(config.format) if isinstance(config, RoutedConfig) else None
    line = (sent if form is None else form(sent)).ndjson[:-1]
    if line != expected.line.encode():
        yield f"line: expected {expected.line!r}"
        yield f"line: got      {_text(line)!r}"


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "replace").rstrip("\n")
