"""The published schemas are held against events that the decoder and the agents' inputs really make."""

import json
from pathlib import Path
from typing import Any

import orjson
import pytest
from jsonschema import Draft202012Validator, ValidationError
from netflow_datagrams import NOON, ipfix, lines_of, pack_set, template, v5, v5_flow

from ndagent.core.metrics import Metrics
from ndagent.wire.codec import make_decoder
from ndagent.wire.devices import FAMILIES
from ndagent.wire.ecs import DecodeSettings
from ndagent.wire.netflow.decoder import FlowDecoder
from ndagent.wire.record import Batch, Flags, Framing, Origin, Section, pack_body
from ndcollector.__main__ import main
from ndcollector.schema import STREAMS, schema
from ndcollector.sources.alerts import Alerts, What
from ndcollector.sources.table import Source
from tests import agent_events
from tests.wire.decode_twins import ARGUMENTS, body_of_sections, section

VECTORS = Path(__file__).parent / "wire" / "vectors" / "decode"
DEVICES = Path(__file__).parent / "wire" / "vectors" / "devices"
ORIGINS = (
    Origin("syslog_tls", "192.0.2.50", 6514),
    Origin("syslog_tls", "not an address", 0),
    Origin("syslog_tls", "2001:db8::1", 1, subject="CN=fw", serial="0A", names=("URI:nd:device:fw",)),
)


def messages() -> list[bytes]:
    """Every message of the decoder's golden vectors."""
    lines = [line for file in sorted(VECTORS.glob("*.jsonl")) for line in file.read_text().splitlines()]
    vectors = [json.loads(line) for line in lines]
    return [bytes.fromhex(one["hex"]) if "hex" in one else one["text"].encode() for one in vectors]


def events() -> list[dict[str, Any]]:
    """They, from several origins, with every flag and whatever is kept of the original."""
    found = []
    for keep in ("always", "on_error", "never"):
        decoder = make_decoder(DecodeSettings(observer_name="c", keep_original=keep))
        for flags in (Flags.NONE, Flags.TRUNCATED, Flags.FRAMING_ERROR):
            sections = [
                section(one, framing=Framing.WHOLE, flags=flags, origin=ORIGINS[number % len(ORIGINS)])
                for number, one in enumerate(messages())
            ]
            batch = decoder.decode(body_of_sections(sections), **ARGUMENTS)
            found += [orjson.loads(line) for line in batch.lines()]
    return found


def told_by_devices() -> list[dict[str, Any]]:
    """Events of every family of devices, with both ways to name what they tell."""
    lines = [line for file in sorted(DEVICES.glob("*.jsonl")) for line in file.read_text().splitlines()]
    raw = [json.loads(line)["text"].encode() for line in lines]
    sections = [section(one, framing=Framing.WHOLE, origin=origin) for one in raw for origin in ORIGINS[:2]]
    body = body_of_sections(sections)
    found = []
    for fields in ("added", "elastic"):
        settings = DecodeSettings(observer_name="c", devices=FAMILIES, device_fields=fields)
        found += [orjson.loads(line) for line in make_decoder(settings).decode(body, **ARGUMENTS).lines()]
    return found


def flows() -> list[dict[str, Any]]:
    """Of every version, and one template with all that ECS has a field for."""
    fields = [
        (8, 4), (12, 4), (7, 2), (11, 2), (4, 1), (56, 6), (80, 6), (16, 4), (17, 4), (231, 4), (232, 4), (298, 4),
        (299, 4), (152, 8), (153, 8), (10, 4), (58, 2), (14, 4), (59, 2), (61, 1), (243, 2), (82, 4),
    ]  # fmt: skip
    record = b"".join(bytes([number + 1] * length) for number, (_, length) in enumerate(fields[:13]))
    record += (NOON * 1000).to_bytes(8) * 2 + b"".join(bytes([1] * length) for _, length in fields[15:])
    datagrams = [v5(v5_flow(source_as=1)), ipfix(pack_set(2, template(256, fields)), pack_set(256, record))]
    feeder = FlowDecoder()
    lines = [line for data in datagrams for line in lines_of(feeder, "192.0.2.9", data, now=NOON)]
    payload = b"".join(lines)
    sections = [Section(ORIGINS[0], Framing.LF, Flags.OWN, len(payload), len(lines))]
    body = b"".join(pack_body(Batch("security_events", "ecs", NOON * 10**9, sections, [payload])))
    batch = make_decoder(DecodeSettings(observer_name="c")).decode(body, **ARGUMENTS)
    return [orjson.loads(line) for line in batch.lines()]


def alerts() -> list[dict[str, Any]]:
    """About a source that went quiet, and about one that is back."""
    said = Alerts(node_name="c", metrics=Metrics(), next_sequence=lambda: 0, said=lambda _: None)
    cases: tuple[tuple[What, str], ...] = (("quiet", ""), ("back", "journald.log"))
    for what, channel in cases:
        source = Source("nd:agent:a1", channel, float(NOON), input="https")
        said.say(source, what, now=NOON + 600.0, since=float(NOON), usual=60.0)
    body = b"".join(pack_body(said._batch(said._waiting)))
    batch = make_decoder(DecodeSettings(observer_name="c")).decode(body, **ARGUMENTS)
    return [orjson.loads(line) for line in batch.lines()]


def closed(part: Any) -> Any:
    """The schema with no further keys allowed: what it does not describe, fails."""
    if isinstance(part, list):
        return [closed(one) for one in part]
    if not isinstance(part, dict):
        return part
    found = {key: closed(one) for key, one in part.items()}
    return found | {"additionalProperties": False} if "properties" in part and part.get("type") == "object" else found


FORMATS = Draft202012Validator.FORMAT_CHECKER


def test_every_event_of_the_vectors_is_valid_and_every_key_described() -> None:
    """A key that the decoder gains and the schema lacks fails here."""
    validator = Draft202012Validator(closed(schema("security_events")), format_checker=FORMATS)
    made = [*events(), *told_by_devices(), *flows()]
    assert len(made) > 800
    for event in made:
        validator.validate(event)


def test_what_the_collector_says_itself_is_valid_and_every_key_described() -> None:
    """On the stream alerts."""
    validator = Draft202012Validator(closed(schema("alerts")), format_checker=FORMATS)
    quiet, back = alerts()
    for event in (quiet, back):
        validator.validate(event)
    assert (quiet["event"]["kind"], quiet["event"]["action"]) == ("alert", "source-quiet")
    assert back["ndcollector"]["source"]["channel"] == "journald.log"


@pytest.fixture(scope="module")
def of_agents(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    """Events of every input of an agent, by stream."""
    directory = tmp_path_factory.mktemp("files")
    return {
        "security_events": agent_events.security_events(directory),
        "metrics": agent_events.metric_events(),
    }


@pytest.mark.parametrize("stream", ["security_events", "metrics"])
def test_every_event_of_agents_is_valid_and_every_key_described(
    of_agents: dict[str, list[dict[str, Any]]], stream: str
) -> None:
    """A key that an input gains and the schema lacks fails here. (auditd, journald and system are open objects.)"""
    validator = Draft202012Validator(closed(schema(stream)), format_checker=FORMATS)
    made = of_agents[stream]
    assert len(made) > 20
    for event in made:
        validator.validate(event)
    assert {event["agent"]["id"] for event in made if "agent" in event} == {agent_events.AGENT}


def test_every_key_of_the_schema_is_made_by_something(of_agents: dict[str, list[dict[str, Any]]]) -> None:
    """A key that no event ever has is a promise that nobody keeps."""

    def paths(value: Any, at: tuple[str, ...] = ()) -> set[tuple[str, ...]]:
        if not isinstance(value, dict) or at[-1:] == ("structured_data",):
            return {at}
        return {at} | {found for key, inner in value.items() for found in paths(inner, (*at, key))}

    def described(part: dict[str, Any], at: tuple[str, ...] = ()) -> set[tuple[str, ...]]:
        inner = part.get("properties", {})
        return {at} | {found for key, one in inner.items() for found in described(one, (*at, key))}

    ours = [*events(), *told_by_devices(), *flows(), *alerts()]
    everything = [*ours, *of_agents["security_events"], *of_agents["metrics"]]
    made = set().union(*(paths(event) for event in everything))
    assert described(schema("security_events")) - made == set()


@pytest.mark.parametrize(
    "damage",
    [
        lambda event: event.pop("message"),
        lambda event: event.update({"@timestamp": "yesterday"}),
        lambda event: event["event"].update(sequence=-1),
        lambda event: event["event"].update(kind="nothing"),
        lambda event: event.pop("observer"),
        lambda event: event["event"].update(kind="metric"),
        lambda event: event["observer"].pop("name"),
    ],
)
def test_an_event_that_is_not_one_is_refused(damage: Any) -> None:
    """A schema that takes everything would prove nothing."""
    event = events()[0]
    damage(event)
    with pytest.raises(ValidationError):
        Draft202012Validator(schema("security_events")).validate(event)


@pytest.mark.parametrize("stream", STREAMS)
def test_the_command_prints_a_valid_schema(stream: str, capsys: pytest.CaptureFixture[str]) -> None:
    """One stream to stdout."""
    assert main(["schema", "export", "--stream", stream]) == 0
    printed = json.loads(capsys.readouterr().out)
    Draft202012Validator.check_schema(printed)
    assert printed == schema(stream)


def test_the_command_writes_a_file_for_each_stream(tmp_path: Path) -> None:
    """For a schema registry or a repository."""
    assert main(["schema", "export", "--out", str(tmp_path / "schemas")]) == 0
    assert sorted(path.name for path in (tmp_path / "schemas").iterdir()) == [
        "alerts.schema.json", "metrics.schema.json", "security_events.schema.json",
    ]  # fmt: skip
