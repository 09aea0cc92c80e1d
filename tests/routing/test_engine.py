"""An output's route over batches: any event, any chain, one line or filtered; arrays that fit; the same every time."""

import hashlib
import hmac
import time
from dataclasses import replace
from itertools import accumulate
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from routing.routed import ecs, only, route, sent, syslog

from ndagent.core.decoding import join_small
from ndagent.core.interfaces import Routed
from ndagent.wire.record import NO_PRIORITY, EventBatch
from ndagent.wire.where import compile_where, origin_of
from ndcollector.formats import FormatConfig, formatter
from ndcollector.routing import steps
from ndcollector.routing.config import RoutedConfig
from ndcollector.routing.engine import make_engine

MESSAGES = [
    b"<38>1 2026-01-01T00:00:00Z fw-1 sshd 17 - - Failed password for root",
    b'<11>1 2026-01-01T00:00:00Z fw-2 app - - [x@1 user="bob" n="1"][y@1 user="eve"] hello',
    b"<165>Jan  1 00:00:00 sw-3 %LINK-3-UPDOWN: down",
    b"no priority at all",
    b"<13>1 2026-01-01T00:00:00Z - - - - - caf\xe9 password=x",
    b"",
]
PLAIN = {"@timestamp": "2026-01-01T00:00:00Z", "event": {"id": "x-1"}}


def mixed() -> EventBatch:
    """Syslog of all kinds and somebody's ECS in one batch, as a feed joins them."""
    theirs = ecs({**PLAIN, "user": {"name": "bob"}}, {**PLAIN, "user.name": "eve", "host": {"name": "h"}}, b"{}", b"[]",
                 sequence=len(MESSAGES))  # fmt: skip
    (batch,) = join_small([syslog(*MESSAGES), theirs])
    return batch


def fits(batch: EventBatch) -> None:
    """Every array says of each line what the line says."""
    assert len(batch.sequences) == len(batch.priorities) == len(batch.keys) == len(batch.origins) == len(batch)
    assert sum(batch.lengths) == len(batch.ndjson)
    starts = list(accumulate(batch.lengths, initial=0))
    for position, line in enumerate(batch.lines()):
        assert line.endswith(b"\n")
        assert line.count(b"\n") == 1
        event = orjson.loads(line)
        host = event.get("host", {})
        name = (host.get("hostname") or host.get("name")) if isinstance(host, dict) else None
        offset, length = batch.host_offsets[position], batch.host_lengths[position]
        if isinstance(name, str) and name:
            start = starts[position] + offset
            assert orjson.loads(b'"%b"' % batch.ndjson[start : start + length]) == name
        else:
            assert offset == 0
        if batch.priorities[position] != NO_PRIORITY:
            assert event["log"]["syslog"]["priority"] == batch.priorities[position]


# ---- which


def test_where_keeps_what_matches_and_counts_the_rest_by_origin() -> None:
    """The kept lines are the decoder's own bytes."""
    events = syslog(*MESSAGES)
    found = route(events, where="severity <= err or host == fw-1")
    assert events.lines()[:2] == found.events.lines()
    assert list(found.filtered) == [events.origins[position] for position in range(2, 6)]
    assert found.events.sequences == [0, 1]
    assert list(found.events.keys) == list(events.keys[:2])


def test_an_output_without_wishes_has_no_route() -> None:
    """It pays nothing."""
    assert make_engine(RoutedConfig(type="test")) is None


def test_masks_and_events_agree() -> None:
    """`where` over a batch gives what it gives event by event, also behind steps that took fields away."""
    for expression in ("severity <= 4", "host glob 'fw-*'", "not host exists", "facility == 20", "tags exists",
                       "origin glob 'nd:*' and not app == sshd", "user.name == bob"):  # fmt: skip
        where = compile_where(expression)
        for steps_ in ([], [{"drop_fields": ["log", "host.hostname"]}], [{"rename": {"host.name": "host.hostname"}}],
                       [{"rename": {"process.name": "host.hostname"}}], [{"add": {"log.syslog.priority": 0}}],
                       [{"hash": ["host.hostname"]}]):  # fmt: skip
            batch = route(mixed(), transform=steps_).events
            fits(batch)
            each = [
                where.matches(orjson.loads(line), stream=batch.stream, origin=origin_of(batch.origin_blobs[origin]))
                for line, origin in zip(batch.lines(), batch.origins, strict=True)
            ]
            assert where.select(batch) == [position for position, is_kept in enumerate(each) if is_kept]


def test_a_sample_is_the_same_after_a_replay_and_at_every_output() -> None:
    """By the id alone: not by the batch, the order, or the process."""
    batches = [syslog(*[b"<13>x"] * 50, sequence=first) for first in range(0, 400, 50)]
    (together,) = join_small(batches)
    kept = [n for batch in batches for n in route(batch, sample=4).events.sequences]
    assert kept == list(route(replace(together, replay=True), sample=4).events.sequences)
    assert 60 <= len(kept) <= 140  # a hundred of four hundred; the draw is fixed
    other = list(route(together, sample={"keep": 4, "salt": "b"}).events.sequences)
    assert set(other) != set(kept)
    assert set(kept) <= set(route(together, sample="50%").events.sequences)
    assert len(route(together, sample="100%").events) == 400


def test_an_id_that_another_spool_gave_decides_wherever_it_comes_by() -> None:
    """An agent's events pass several collectors, whose own sequences differ."""
    lines = [orjson.dumps({**PLAIN, "event": {"id": f"agent-{n}"}}) for n in range(200)]
    here, there = ecs(*lines), ecs(*lines, sequence=7000)
    kept = [orjson.loads(line)["event"]["id"] for line in route(here, sample=5).events.lines()]
    assert kept == [orjson.loads(line)["event"]["id"] for line in route(there, sample=5).events.lines()]
    assert 20 <= len(kept) <= 60


def test_only_matching_events_are_sampled() -> None:
    """The rest is kept whole."""
    events = syslog(*[b"<14>info", b"<11>error"] * 100)
    found = route(events, sample={"keep": 10, "where": "severity == info"}).events
    severities = [priority & 7 for priority in found.priorities]
    assert severities.count(3) == 100
    assert 1 <= severities.count(6) <= 30


# ---- how


def test_steps_change_what_they_say() -> None:
    """One after the other, each on what the one before left."""
    event = {"user": {"name": "bob", "full.name": "B"}, "a": {"b": {"c": 1}}, "x": {"token": "t"}, "tags": ["v"]}
    found = only(
        ecs({**PLAIN, **event}),
        {"drop_fields": ["user.full.name", "x.*"]},
        {"rename": {"a.b.c": "labels.c", "nowhere": "labels.no"}},
        {"hash": {"fields": ["user.name", "tags"]}},
        {"hash": {"fields": ["labels.c"], "secret": "0123456789abcdef"}},
        {"add": {"labels.team": "blue", "labels.n": 2, "user.ok": True}},
    )
    assert found == {
        **PLAIN,
        "user": {"name": hashlib.sha256(b"bob").hexdigest(), "ok": True},
        "x": {},
        "tags": [hashlib.sha256(b"v").hexdigest()],
        "labels": {"c": hmac.new(b"0123456789abcdef", b"1", "sha256").hexdigest(), "team": "blue", "n": 2},
    }


@pytest.mark.parametrize(
    ("event", "fields"),
    [
        ({"user": {"name": "s"}}, ["user.name"]),
        ({"user.name": "s"}, ["user.name"]),
        ({"user": [{"name": "s"}, [{"name": "s"}]]}, ["user.name"]),
        ({"user.name.first": "s"}, ["user.name"]),
        ({"user": {"name.first": "s", "name": {"x": "s"}}}, ["user.name"]),
        ({"user": {"name": "s"}}, ["user.*"]),
        ({"user": {"a": {"b": "s"}}}, ["user"]),
        ({"user": {"na.me": "s"}}, ['user."na.me"']),
        ({"a": {"b": {"password": "s"}}, "password": "s"}, ["**.password"]),
        ({"a": {"b": {"c": "s"}}}, ["a.**.c"]),
        ({"a": {"c": "s"}}, ["a.**.c"]),
        ({"a": {"user_name": "s"}}, ["a.*_na?e"]),
    ],
)
def test_a_field_is_gone_however_it_is_written(event: dict[str, Any], fields: list[str]) -> None:
    """Nested, dotted, in between, in lists: there is no second spelling to hide behind."""
    for step in ({"drop_fields": fields}, {"hash": fields}):
        assert '"s"' not in orjson.dumps(only(ecs({**PLAIN, **event}), step)).decode()


def test_a_neighbour_of_a_dropped_field_stays() -> None:
    """Names that only begin alike are other fields."""
    event = {**PLAIN, "user": {"name": "s", "name2": "t"}, "username": "u", "x": {"user": {"name": "v"}}}
    found = only(ecs(event), {"drop_fields": ["user.name"]})
    assert found == {**PLAIN, "user": {"name2": "t"}, "username": "u", "x": {"user": {"name": "v"}}}


def test_two_patterns_that_mean_one_field_hash_it_once() -> None:
    """Whoever compares hashes must be able to tell what they are of."""
    found = only(ecs({**PLAIN, "user": {"name": "bob"}}), {"hash": ["user.name", "**.name", "user.*"]})
    assert found["user"]["name"] == hashlib.sha256(b"bob").hexdigest()


def test_a_rename_into_a_value_moves_nothing() -> None:
    """There is no place below a text; the field is better where it was than nowhere."""
    event = {**PLAIN, "message": "m", "user": {"name": "bob"}}
    assert only(ecs(event), {"rename": {"user.name": "message.user"}}) == event
    assert only(ecs(event), {"add": {"message.user": "x"}}) == event


def test_a_step_may_be_for_some_only_and_sees_what_the_ones_before_did() -> None:
    """`where` of a step is asked of the event as it is by then."""
    changes = [
        {"add": {"labels.seen": True}, "where": "host == fw-1"},
        {"add": {"labels.twice": True}, "where": "labels.seen == true"},
        {"drop_fields": ["message"], "where": "severity == err"},
    ]
    events = sent(syslog(*MESSAGES[:3], keep_original="never"), transform=changes)
    assert [event.get("labels") for event in events] == [{"seen": True, "twice": True}, None, None]
    assert ["message" in event for event in events] == [True, False, True]


def test_a_line_that_no_step_touches_is_the_same_bytes() -> None:
    """Also in a batch where its neighbours change."""
    events = syslog(*MESSAGES)
    lines = route(events, transform=[{"add": {"x": 1}, "where": "host == fw-2"}, {"redact": None}]).events.lines()
    assert [a == b for a, b in zip(events.lines(), lines, strict=True)] == [True, False, True, True, False, True]
    assert route(events, transform=[{"drop_fields": ["no.such"]}]).events is events


def test_the_partition_stays_that_of_the_host_it_came_from() -> None:
    """A hashed or renamed host's events keep their order on the bus."""
    events = syslog(*MESSAGES)
    found = route(events, transform=[{"hash": ["host.*", "log.syslog.hostname"]}]).events
    assert found.keys == events.keys
    fits(found)


def test_an_event_on_which_a_step_fails_is_kept_back_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bug in a redaction must neither lose the event nor let it out."""
    apply = steps.Redaction.apply

    def with_a_bug(self: steps.Redaction, event: dict[str, Any]) -> bool:
        if "mallory" in str(event):
            raise ZeroDivisionError("a bug")
        return apply(self, event)

    monkeypatch.setattr(steps.Redaction, "apply", with_a_bug)
    events = syslog(b"<13>h password=a", b"<13>mallory password=b", b"<13>h password=c")
    found = route(events, transform=[{"redact": None}])
    assert found.events.sequences == [0, 2]
    ((kept_back, reason),) = found.failed
    assert kept_back.lines() == [events.lines()[1]]
    assert reason == "transform_failed: ZeroDivisionError: a bug"
    fits(found.events)


def test_an_event_too_deep_to_be_written_anew_is_kept_back() -> None:
    """orjson reads a thousand levels and writes 254. Untouched it leaves; changed it cannot."""
    deep = b'{"@timestamp":"t","event":{"id":"x-1"},"a":' + b'{"a":' * 400 + b'"password=x"' + b"}" * 400 + b"}"
    assert len(route(ecs(deep), transform=[{"add": {"x": 1}, "where": "app == z"}]).events) == 1
    found = route(ecs(deep, PLAIN), transform=[{"redact": None}])
    assert [len(events) for events, _ in found.failed] == [1]
    assert found.events.sequences == [1]


# ---- whatever comes

TEXTS = st.sampled_from(["bob", "password=x", "4111111111111111", "fw-1", "é\u2028\x00", "a@b.de", "", "x" * 300])
SCALARS = TEXTS | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | st.booleans() | st.none()
NAMES = st.sampled_from(
    ["user", "name", "user.name", "host", "hostname", "event", "id", "log", "syslog", "priority", "message",
     "original_base64", "tags", "@timestamp", "a@b.de", "password", "*", ""]
)  # fmt: skip
VALUES = st.recursive(
    SCALARS, lambda inside: st.lists(inside, max_size=3) | st.dictionaries(NAMES, inside, max_size=4), max_leaves=12
)
EVENTS = st.dictionaries(NAMES, VALUES, max_size=6)
FIELDS = st.sampled_from(["user.name", "user.*", "**.name", "host", "message", "tags", "*", "log.syslog.pr*", "a.**.b"])
SPARING = FIELDS.filter(lambda field: field != "*")
TARGETS = st.sampled_from(["labels.x", "user.name", "message", "host.hostname", "log.syslog.priority", "new"])
WHERES = st.none() | st.sampled_from(["severity <= 4", "host glob 'fw*'", "user.name exists", "not message regex 'x'",
                                      "tags == bob or priority > 3", "origin exists and stream == alerts"])  # fmt: skip
STEPS = st.one_of(
    st.lists(SPARING, min_size=1, max_size=3).map(lambda fields: {"drop_fields": fields}),
    st.lists(SPARING, min_size=1, max_size=3).map(lambda fields: {"hash": fields}),
    st.builds(lambda target, value: {"add": {target: value}}, TARGETS, st.sampled_from(["x", 5, 1.5, True])),
    st.builds(lambda old, new: {"rename": {f"{old}": f"moved.{new}"}}, TARGETS, TARGETS),
    st.builds(
        lambda patterns, fields: {"redact": {"patterns": patterns, "fields": fields}},
        st.lists(st.sampled_from(["secret", "card_number", "email", "[a-z]+b", "[0-9]"]), min_size=1, max_size=3),
        st.lists(SPARING, max_size=2),
    ),
)
CHAINS = st.lists(st.builds(lambda step, where: {**step, "where": where}, STEPS, WHERES), max_size=5)


def accounted(events: EventBatch, found: Routed) -> None:
    """Each event once: sent, filtered or kept back."""
    kept_back = [sequence for batch, _ in found.failed for sequence in batch.sequences]
    gone = set(events.sequences) - set(found.events.sequences) - set(kept_back)
    assert len(found.events) + len(kept_back) + len(found.filtered) == len(events)
    assert len(gone) == len(found.filtered)
    assert list(found.events.sequences) == sorted(found.events.sequences)


@settings(max_examples=200, deadline=None)
@given(st.lists(EVENTS, min_size=1, max_size=4), CHAINS, WHERES, st.sampled_from([None, 2, "90%"]))
def test_any_event_through_any_chain_is_one_line_or_filtered(
    events: list[dict[str, Any]], chain: list[dict[str, Any]], where: str | None, sample: object
) -> None:
    """Never an exception, never a line too many; the same again; and bounded in size."""
    batch = ecs(*events)
    found = route(batch, transform=chain, where=where, sample=sample)
    accounted(batch, found)
    fits(found.events)
    assert not found.failed
    assert found == route(batch, transform=chain, where=where, sample=sample)
    assert len(found.events.ndjson) <= 40 * len(batch.ndjson) + 4096 * len(batch)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.binary(max_size=120) | st.sampled_from(MESSAGES), min_size=1, max_size=5), CHAINS, WHERES)
def test_any_message_through_any_chain_is_one_line_or_filtered(
    messages: list[bytes], chain: list[dict[str, Any]], where: str | None
) -> None:
    """The same for syslog of any bytes, whose original goes along."""
    batch = syslog(*messages)
    found = route(batch, transform=chain, where=where)
    accounted(batch, found)
    fits(found.events)


@settings(max_examples=150, deadline=None)
@given(st.lists(EVENTS, min_size=1, max_size=3), st.lists(STEPS, max_size=2))
def test_no_card_number_leaves_wherever_it_stands(events: list[dict[str, Any]], chain: list[dict[str, Any]]) -> None:
    """In values, keys, lists, base64, under any key, behind any steps: only event.id is left as it is."""
    found = route(ecs(*events), transform=[*chain, {"redact": {"patterns": ["card_number"]}}])
    for event in map(orjson.loads, found.events.lines()):
        event["event"].pop("id", None)
        assert b"4111111111111111" not in orjson.dumps(event)


def test_a_hostile_event_costs_linear_time() -> None:
    """Wide, deep in lists, long keys: eight times as much takes about eight times as long."""
    chain = [{"redact": {"patterns": ["secret", "[0-9]x"]}}, {"hash": ["**.password", "a.**.b.**.c"]},
             {"drop_fields": ["**.a*b*c*d"]}, {"redact": {"patterns": ["email"]}}]  # fmt: skip

    def cost(count: int) -> float:
        event = {**PLAIN, "l": [{"a": {"b": {"x": "y"}}}] * count, "k": {"ab" * 50 + str(n): n for n in range(count)}}
        event["m"] = {f"a{n}@b.de": n for n in range(count)}
        batch, best = ecs(event), float("inf")
        for _ in range(3):
            began = time.process_time()
            route(batch, transform=chain)
            best = min(best, time.process_time() - began)
        return best

    assert cost(2000) <= 24 * cost(250) + 0.05


def test_a_batch_that_a_step_or_a_format_changed_no_longer_speaks_for_its_origins() -> None:
    """Kafka's key is then looked for in each event: one whose source was taken away has none."""
    events = syslog(b"<13>1 - - a - - - x", b"<13>1 - - b - - - y")
    kept = route(events, where="app == a").events
    changed = route(events, transform=[{"drop_fields": ["source"]}]).events
    form = formatter(FormatConfig(name="flat"))
    assert form is not None
    flat = form(events)
    assert [one.are_origins_own for one in (events, kept, changed, flat)] == [True, True, False, False]
