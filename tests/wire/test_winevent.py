"""Windows events as XML become ECS lines: what each means, and that any text at all becomes an event."""

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ndagent.wire.winevent import MAX_DEPTH, MAX_FIELDS, parse
from ndagent.wire.winevent_ecs import Rules, event_line
from ndagent.wire.winevent_table import meaning_of
from ndagent.wire.winevent_values import READERS

CREATED = "2026-11-26T00:00:00.000000Z"
BASE = {
    "ecs": {"version": "8.17.0"}, "agent": {"type": "ndagent"}, "host": {"hostname": "ws01", "name": "ws01"},
}  # fmt: skip
RULES = Rules(base=BASE)
VECTORS = [
    json.loads(line)
    for path in sorted(Path(__file__).parent.joinpath("vectors/winevent").glob("*.jsonl"))
    for line in path.read_text().splitlines()
]
NAMESPACE = "http://schemas.microsoft.com/win/2004/08/events/event"


def event(payload: str, *, system: str = "", tail: str = "") -> str:
    """The XML of an event with this data."""
    return (
        f"<Event xmlns='{NAMESPACE}'><System><Provider Name='P'/><EventID>7</EventID>{system}"
        f"<Channel>C</Channel><Computer>WS01</Computer></System>{payload}{tail}</Event>"
    )


def document(xml: str, **rules: Any) -> dict[str, Any]:
    """The event that this XML becomes."""
    line = event_line(xml, created=CREATED, rules=Rules(base=BASE, **rules))
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    found: dict[str, Any] = json.loads(line)
    return found


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector["name"])
def test_an_event_means_what_the_vector_says(vector: dict[str, Any]) -> None:
    """The whole document; what the XML has that UTF-8 has not stands in the vector as UTF-16."""
    xml = vector.get("xml") or bytes.fromhex(vector["xml_utf16le_hex"]).decode("utf-16-le", "surrogatepass")
    assert document(xml) == {**BASE, **vector["expected"]}


def test_the_vectors_have_every_event_that_is_promised() -> None:
    promised = """4624 4625 4634 4647 4648 4672 4688 4689 4697 4698 4699 4700 4701 4702 4719 4720 4722 4723 4724 4725
        4726 4728 4729 4732 4733 4738 4740 4756 4757 4767 4768 4769 4771 4776 4778 4779 1102 1100 104 7045 7036 6005
        6006 6008 1 3 7 8 10 11 12 13 22 4103 4104"""
    with_action = {v["expected"]["event"].get("code") for v in VECTORS if "action" in v["expected"]["event"]}
    assert set(promised.split()) <= with_action


def test_all_data_of_an_event_stays_below_winlog_whatever_else_is_made_of_it() -> None:
    data = {"SubjectUserName": "a", "TargetUserName": "b", "Own": "c"}
    payload = "".join(f"<Data Name='{name}'>{value}</Data>" for name, value in data.items())
    assert document(event(f"<EventData>{payload}</EventData>"))["winlog"]["event_data"] == data


def test_an_id_means_nothing_without_its_provider() -> None:
    assert meaning_of("Microsoft-Windows-Security-Auditing", "4624") is not None
    assert meaning_of("MICROSOFT-WINDOWS-SECURITY-AUDITING", "4624") is not None
    assert meaning_of("Own-Provider", "4624") is None


@pytest.mark.parametrize("size", [1000, 100_000])
def test_an_entity_bomb_expands_to_nothing(size: int) -> None:
    """No DTD is read at all; what the DOCTYPE says does not even reach the fields."""
    levels = "".join(f"<!ENTITY e{n} '{f'&e{n - 1};' * 10}'>" for n in range(1, 9))
    bomb = f"<!DOCTYPE e [<!ENTITY e0 '{'x' * size}'>{levels}]>" + event("<EventData><Data>&e8;</Data></EventData>")
    found = document(bomb)
    assert found["tags"] == ["_parse_failure"]
    assert "DOCTYPE" in found["error"]["message"]
    assert found["event"]["code"] == "7"
    assert found["event"]["original"] == bomb
    assert "xxxx" not in json.dumps(found["winlog"])


def test_an_external_entity_is_never_fetched(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("the secret")
    bomb = f"<!DOCTYPE e [<!ENTITY e SYSTEM '{secret.as_uri()}'>]>" + event("<EventData><Data>&e;</Data></EventData>")
    assert "the secret" not in json.dumps(document(bomb))


def test_a_predefined_reference_in_repaired_xml_is_still_read() -> None:
    xml = event("<EventData><Data Name='A'>1 &lt; 2 &amp; x\0 &#x263A;</Data></EventData>")
    found = document(xml)
    assert found["winlog"]["event_data"]["A"] == "1 < 2 & x\ufffd ☺"
    assert found["tags"] == ["_repaired"]
    assert found["event"]["original"] == xml


def test_a_lone_surrogate_is_kept_exactly() -> None:
    xml = event("<EventData><Data Name='A'>x\ud800y</Data></EventData>")
    found = document(xml)
    exact = base64.b64decode(found["event"]["original_base64"]).decode("utf-16-le", "surrogatepass")
    assert exact == xml


def test_a_huge_value_is_cut_and_the_event_says_so() -> None:
    xml = event(f"<EventData><Data Name='A'>{'x' * 500_000}</Data><Data Name='B'>b</Data></EventData>")
    found = document(xml, max_value_chars=1000, max_original_chars=2000, keep_original="always")
    assert found["winlog"]["event_data"] == {"A": "x" * 1000, "B": "b"}
    assert found["tags"] == ["_truncated"]
    assert found["event"]["original"] == xml[:2000]


def test_fields_without_end_are_cut_and_the_event_says_so() -> None:
    found = document(event(f"<EventData>{'<Data>x</Data>' * (MAX_FIELDS + 5)}</EventData>"))
    assert len(found["winlog"]["event_data"]) == MAX_FIELDS
    assert found["tags"] == ["_truncated"]


@pytest.mark.parametrize("depth", [MAX_DEPTH + 1, 100_000])
def test_nesting_without_end_is_cut_and_the_event_says_so(depth: int) -> None:
    found = document(event(f"<UserData>{'<A>' * depth}x{'</A>' * depth}</UserData>"))
    assert found["tags"] == ["_truncated"]
    assert found["event"]["code"] == "7"


def test_an_unfinished_nesting_is_no_xml_and_still_an_event() -> None:
    found = document(event(f"<UserData>{'<A>' * 50_000}"))
    assert found["tags"] == ["_parse_failure"]
    assert found["winlog"]["channel"] == "C"


def test_the_original_is_kept_by_the_policy() -> None:
    good, broken = event("<EventData/>"), event("<EventData>")
    assert document(good, keep_original="always")["event"]["original"] == good
    assert "original" not in document(good, keep_original="on_error")["event"]
    assert document(broken, keep_original="on_error")["event"]["original"] == broken
    assert "original" not in document(broken, keep_original="never")["event"]


def test_an_event_without_the_providers_words_keeps_its_xml_and_strings() -> None:
    xml = event("<EventData><Data>one</Data><Data>two</Data></EventData>")
    line = event_line(xml, created=CREATED, rules=RULES, unrendered="its metadata is not installed")
    found = json.loads(line)
    assert found["tags"] == ["_unrendered"]
    assert found["message"] == "P event 7: one; two"
    assert found["event"]["original"] == xml
    assert "its metadata is not installed" in found["error"]["message"]


def test_a_forwarded_event_is_of_the_host_it_was_written_on() -> None:
    xml = event("<EventData/>").replace("WS01", "far.example")
    assert document(xml)["host"] == {"hostname": "far.example", "name": "far.example"}
    assert document(event("<EventData/>"))["host"] == BASE["host"]
    assert document(event("<EventData/>").replace("WS01", "WS01.corp.example"))["host"] == BASE["host"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2026-11-20T08:15:47.0001007Z", "2026-11-20T08:15:47.0001007Z"),
        ("2026-11-20T08:15:47.000000000Z", "2026-11-20T08:15:47.000000000Z"),
        ("2026-11-20T08:15:47Z", "2026-11-20T08:15:47Z"),
        ("2026-11-20T08:15:47.12345678901Z", CREATED),
        ("2026-13-20T08:15:47Z", CREATED),
        ("0000-01-01T00:00:00Z", CREATED),
        ("yesterday", CREATED),
    ],
)
def test_a_time_is_the_events_own_if_there_is_such_a_time(text: str, expected: str) -> None:
    assert document(event("", system=f"<TimeCreated SystemTime='{text}'/>"))["@timestamp"] == expected


@given(st.text(alphabet=st.characters(), max_size=200))
def test_any_text_becomes_an_event(text: str) -> None:
    """Surrogates, controls, quotes: `characters()` has them all."""
    for xml in (text, event(f"<EventData><Data Name='A'>{text}</Data></EventData>"), event("", system=text)):
        found = json.loads(event_line(xml, created=CREATED, rules=RULES))
        assert found["event"]["kind"] == "event"
        if "tags" in found:
            assert "original" in found["event"]


@given(st.data())
def test_any_beginning_of_an_event_becomes_an_event(data: st.DataObject) -> None:
    """What a cut leaves keeps what it has."""
    whole = data.draw(st.sampled_from([vector["xml"] for vector in VECTORS if "xml" in vector]))
    cut = whole[: data.draw(st.integers(0, len(whole.rstrip()) - 1))]  # a line end is no part of it
    found = document(cut)
    assert "_parse_failure" in found["tags"]
    assert found["event"]["original"] == cut
    code = parse(whole, max_value_chars=100).system.get("EventID")
    if "</EventID>" in cut and "<!DOCTYPE" not in cut:
        assert found["event"]["code"] == code


@given(st.sampled_from(sorted(READERS)), st.text(max_size=300))
def test_no_reader_of_values_ever_fails(reader: str, text: str) -> None:
    READERS[reader](text)
