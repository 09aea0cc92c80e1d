"""Naming lines of our own, in both twins: the same lines, keys and refusals for whatever a section holds."""

from array import array
from importlib import import_module

import pytest
from decode_twins import PURE_ONLY
from hypothesis import example, given
from hypothesis import strategies as st

from ndagent.wire.ecs import partition_key
from ndagent.wire.event_names import NO_KEY, NameLines, name_lines

TWINS: dict[str, NameLines] = {"pure": name_lines}
if not PURE_ONLY:
    TWINS["compiled"] = import_module("ndagent.wire._codec").name_lines
GOOD = b'{"@timestamp":"t","event":{"kind":"event"},"source":{"ip":"192.0.2.1","port":7}}\n'


@pytest.mark.parametrize("twin", TWINS)
def test_lines_are_named_in_a_row_and_keyed_by_their_source(twin: str) -> None:
    """Ids count in base 36; a line without source.ip says so."""
    lines = [GOOD, b'{"event":{"kind":"event"},"source":{"port":7}}\n']
    found = TWINS[twin](b"".join(lines), 2, b"k3v9", 35)
    assert found is not None
    assert found[0] == [
        b'{"@timestamp":"t","event":{"id":"k3v9-z","kind":"event"},"source":{"ip":"192.0.2.1","port":7}}\n',
        b'{"event":{"id":"k3v9-10","kind":"event"},"source":{"port":7}}\n',
    ]
    assert found[1] == array("I", [partition_key(b"192.0.2.1"), NO_KEY])


PIECES = st.sampled_from(
    [
        b'{"event":{"', b'"event":{', b"kind", b'":"', b"{", b"}", b'"', b"\n", b"}\n", b"\r\n", b"\0\n", b'"host":{',
        b'"syslog":{', b'"source":{"ip":"', b'"source":{', b"192.0.2.1", b'\\"event\\":{\\"', b"event:", GOOD,
    ]
)  # fmt: skip


@pytest.mark.skipif(PURE_ONLY, reason="ND_PURE_CODEC=1 asked for the pure twin alone")
@given(st.lists(PIECES, max_size=40), st.integers(0, 4), st.integers(0, 36**9))
@example([], 0, 0)
@example([b"\n"], 0, 0)
@example([GOOD, b'{"event":{"', b"\n"], 0, 1)
def test_the_twins_agree(pieces: list[bytes], miscounted: int, first: int) -> None:
    """Marks whole and in parts, in any order, and counts that are wrong."""
    payload = b"".join(pieces)
    count = max(0, payload.count(b"\n") - (miscounted == 4))
    assert TWINS["compiled"](payload, count, b"k3v9", first) == name_lines(payload, count, b"k3v9", first)
