"""Flow lines by the compiled codec and by columns: the same bytes, for any template, record and context."""

import struct

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ndagent.wire.codec import codec_name
from ndagent.wire.netflow.elements import IANA, REVERSE
from ndagent.wire.netflow.lines import Lines
from ndagent.wire.netflow.packets import V5_TEMPLATE
from ndagent.wire.netflow.parts import Context
from ndagent.wire.netflow.template import Field, Template

pytestmark = pytest.mark.skipif(codec_name() == "pure", reason="there is one twin without the compiled codec")

COMMON = [
    (8, 4), (12, 4), (27, 16), (28, 16), (7, 2), (11, 2), (4, 1), (32, 2), (139, 2), (1, 4), (1, 8), (2, 8), (85, 8),
    (86, 3), (21, 4), (22, 4), (152, 8), (153, 8), (150, 4), (151, 4), (10, 4), (14, 2), (16, 4), (17, 2), (56, 6),
    (80, 6), (58, 2), (59, 2), (61, 1), (60, 1), (243, 2), (15, 4), (62, 16), (210, 3), (82, 16), (160, 8), (276, 1),
    (320, 8), (433, 2), (48, 1), (34, 4), (305, 4), (306, 4), (434, 4), (434, 5),
]  # fmt: skip
FIELDS = st.one_of(
    st.sampled_from(COMMON).map(lambda one: Field(IANA, *one)),
    st.builds(Field, st.sampled_from([IANA, REVERSE, 9]), st.integers(1, 500), st.integers(1, 17)),
)
OCTETS = st.one_of(st.binary(min_size=64, max_size=64), st.sampled_from([b"\0" * 64, b"\xff" * 64, b"\x06" * 64]))
NOON_US = 1_760_000_000_000_000


def context(**changed: object) -> Context:
    values = {
        "head": b'{"event":{"kind":"event"', "observer": b'"ip":"10.0.0.1"', "about": b'"version":9',
        "export_us": NOON_US, "uptime_ms": 60_000, "rates": {}, "rate": 1,
    }  # fmt: skip
    return Context(**{**values, **changed})  # type: ignore[arg-type]  # any of its fields


def by_both(
    template: Template, content: bytes, given_context: Context, *, has_uptime: bool
) -> tuple[bytes | None, bytes]:
    twin = Lines(template, has_uptime=has_uptime).write_set(memoryview(content), given_context)
    pure = Lines(template, has_uptime=has_uptime, may_be_compiled=False)
    assert pure.write_set(memoryview(content), given_context) is None
    written = pure.write(template.columns(memoryview(content)), given_context)
    assert twin is None or twin.lines == written.lines
    return None if twin is None else twin.text, written.text


@given(
    st.lists(FIELDS, min_size=1, max_size=24), st.lists(OCTETS, min_size=1, max_size=8), st.booleans(),
    st.sampled_from([1, 2, 1000, 2**32]), st.integers(0, 2**32 - 1),
)  # fmt: skip
@example([Field(IANA, 152, 8), Field(IANA, 153, 8)], [b"\0" * 64], True, 1, 0)
@example([Field(IANA, 1, 8)], [b"\xff" * 64], True, 2**32, 0)
def test_both_twins_write_the_same_bytes(fields, octets, has_uptime, rate, uptime_ms):
    """Where the compiled one writes at all."""
    template = Template(fields)
    there = context(rate=rate, uptime_ms=uptime_ms if has_uptime else None)
    twin, pure = by_both(template, b"".join(octets), there, has_uptime=has_uptime)
    assert twin is None or twin == pure


@given(st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1))
@example(253402300799_999, 253402300800_000)
@example(0, 253402300799_999)
@example(5, 4)
def test_instants_of_any_size(start, end):
    """Durations of more nanoseconds than 64 bits hold, too."""
    template = Template([Field(IANA, 152, 8), Field(IANA, 153, 8)])
    twin, pure = by_both(template, struct.pack(">QQ", start, end), context(), has_uptime=False)
    assert twin == pure


@given(st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1), st.sampled_from([0, NOON_US]))
def test_uptimes_around_their_wrap(start, end, uptime_ms, export_us):
    """And before 1970."""
    template = Template([Field(IANA, 22, 4), Field(IANA, 21, 4)])
    there = context(uptime_ms=uptime_ms, export_us=export_us)
    twin, pure = by_both(template, struct.pack(">II", start, end), there, has_uptime=True)
    assert twin == pure


@given(
    st.binary(min_size=32, max_size=32), st.integers(0, 255), st.binary(min_size=4, max_size=4),
    st.sampled_from([4, 16]),
)  # fmt: skip
@example(b"\1" * 32, 6, b"\0\2\0\1", 4)
@example(b"\1" * 32, 17, b"\0\2\0\1", 16)
def test_community_ids_of_every_protocol_and_both_kinds_of_address(addresses, protocol, ports, size):
    """SHA-1 of our own against hashlib's."""
    near, far = (8, 12) if size == 4 else (27, 28)
    fields = [(near, size), (far, size), (4, 1), (7, 2), (11, 2)]
    template = Template([Field(IANA, *one) for one in fields])
    content = addresses[: 2 * size] + bytes([protocol]) + ports
    twin, pure = by_both(template, content, context(), has_uptime=True)
    assert twin == pure
    assert b'"community_id":"1:' in pure


@pytest.mark.parametrize("rate", [1, 100])
def test_ordinary_templates_are_written_by_the_compiled_twin(rate):
    """NetFlow v5, and what routers announce: speed is lost unseen if a part has no step."""
    cisco = [
        (8, 4), (12, 4), (10, 4), (14, 4), (2, 4), (1, 4), (7, 2), (11, 2), (4, 1), (16, 4), (17, 4), (22, 4), (21, 4),
        (56, 6), (80, 6), (58, 2), (61, 1),
    ]  # fmt: skip
    six = [(27, 16), (28, 16), (7, 2), (11, 2), (4, 1), (139, 2), (1, 8), (2, 8), (152, 8), (153, 8)]
    for template in (V5_TEMPLATE, *(Template([Field(IANA, *one) for one in fields]) for fields in (cisco, six))):
        assert Lines(template, has_uptime=True).write_set(memoryview(bytes(200)), context(rate=rate)) is not None
