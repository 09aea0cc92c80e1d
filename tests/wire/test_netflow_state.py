"""Templates that outlive a restart: what was packed works again, what is not whole is refused."""

import struct

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from netflow_datagrams import NOON, ipfix, lines_of, options_template, pack_set, template, v9, v9_options_template

from ndagent.wire.netflow.decoder import FlowDecoder
from ndagent.wire.netflow.state import LIFETIME_SECONDS, pack, restore
from ndagent.wire.netflow.templates import TemplateLimits

FLOW = pack_set(256, struct.pack(">IIIBH", 0x0A000001, 1000, 500, 5, 0xBEEF))
FIELDS = [(8, 4), (1, 4), (22, 4), (48, 1)]


def filled() -> FlowDecoder:
    """A decoder that has heard templates, options and rates of two exporters."""
    decoder = FlowDecoder()
    shape = template(256, [*FIELDS, (9, 77, 2)])
    options = options_template(300, [(149, 4)], [(160, 8), (48, 1), (34, 4)])
    said = pack_set(300, struct.pack(">IQBI", 7, NOON * 1000, 5, 100))
    lines_of(decoder, "192.0.2.9", ipfix(pack_set(2, shape), pack_set(3, options), said), now=NOON)
    nine = pack_set(1, v9_options_template(301, [(2, 4)], [(82, 8)]))
    lines_of(decoder, "2001:db8::9", v9(pack_set(0, template(256, FIELDS)), nine), now=NOON)
    return decoder


def test_a_decoder_goes_on_where_the_last_one_stopped() -> None:
    """Shapes, enterprises, scopes, sampling rates, boot times: the same line comes out."""
    before, after = filled(), FlowDecoder()
    assert restore(after.templates, pack(before.templates, now=NOON), now=NOON + 60) == 4
    for exporter, datagram in (
        ("192.0.2.9", ipfix(FLOW, sequence=1)),
        ("2001:db8::9", v9(pack_set(301, struct.pack(">I8s", 3, b"ge-0/0/1")), sequence=1)),
    ):
        lines = lines_of(after, exporter, datagram, now=NOON)
        assert lines == lines_of(before, exporter, datagram, now=NOON)
        assert len(lines) == 1
    event = orjson.loads(lines_of(after, "192.0.2.9", ipfix(FLOW, sequence=2), now=NOON)[0])
    assert event["source"]["bytes"] == 100_000
    assert event["event"]["start"] == "2024-03-15T12:00:00.500Z"


def test_old_templates_are_not_believed() -> None:
    """A day is enough for an exporter to become another one."""
    data = pack(filled().templates, now=NOON)
    assert restore(FlowDecoder().templates, data, now=NOON + LIFETIME_SECONDS) == 4
    assert restore(FlowDecoder().templates, data, now=NOON + LIFETIME_SECONDS + 1) == 0


def test_limits_hold_for_what_is_restored() -> None:
    """They may be lower than they were."""
    decoder = FlowDecoder(limits=TemplateLimits(per_exporter=1))
    assert restore(decoder.templates, pack(filled().templates, now=NOON), now=NOON) == 2


def test_a_boot_that_no_calendar_has_is_not_believed() -> None:
    """Nor is it what makes a file that cannot be written."""
    decoder = FlowDecoder()
    options = pack_set(3, options_template(300, [(149, 4)], [(160, 8)]))
    for milliseconds in (2**64 - 1, NOON * 1000):
        lines_of(decoder, "192.0.2.9", ipfix(options, pack_set(300, struct.pack(">IQ", 7, milliseconds))), now=NOON)
        assert restore(FlowDecoder().templates, pack(decoder.templates, now=NOON), now=NOON) == 1
    assert decoder.templates.domain("192.0.2.9", 10, 7).boot_us == NOON * 1_000_000


def test_a_rate_that_changes_is_worth_saving() -> None:
    """Else a restart would go on with the one of before; the same again is not."""
    decoder = filled()
    said = struct.Struct(">IQBI")
    for rate, is_new in ((100, False), (50, True), (50, False)):
        before = decoder.templates.changes
        data = ipfix(pack_set(300, said.pack(7, NOON * 1000, 5, rate)))
        lines_of(decoder, "192.0.2.9", data, now=NOON)
        assert (decoder.templates.changes > before) is is_new


def test_a_file_has_room_for_those_used_last(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is longer than what is read would be as good as none."""
    decoder = FlowDecoder()
    for number in range(20):
        for domain in range(4):
            shape = pack_set(2, template(256, FIELDS))
            lines_of(decoder, f"192.0.2.{number}", ipfix(shape, domain=domain), now=NOON)
    most = 2000
    monkeypatch.setattr("ndagent.wire.netflow.state.MAX_STATE_BYTES", most)
    data = pack(decoder.templates, now=NOON)
    assert most // 3 < len(data) <= most
    after = FlowDecoder().templates
    assert restore(after, data, now=NOON) >= 10
    whole = [(address, domain.number) for address, domain in decoder.templates.all()]
    kept = [(address, domain.number) for address, domain in after.all()]
    assert kept == whole[-len(kept) :]


@given(st.data())
def test_a_file_with_a_changed_byte_is_refused(draw: st.DataObject) -> None:
    """Anywhere in it; or cut."""
    data = bytearray(pack(filled().templates, now=NOON))
    at = draw.draw(st.integers(0, len(data) - 1))
    if draw.draw(st.booleans()):
        data[at] ^= draw.draw(st.integers(1, 255))
    else:
        del data[at:]
    with pytest.raises(ValueError, match=r"checksum|not a file"):
        restore(FlowDecoder().templates, bytes(data), now=NOON)


@pytest.mark.parametrize(
    "body", [[], [NOON], [NOON, [["a", [[9, 1, [], None, [[256, 0, b"123"]]]]]]], [NOON, [[1, [2]]]]]
)
def test_a_file_that_is_whole_and_wrong_is_refused(body: object) -> None:
    """Written by somebody else."""
    import msgpack

    from ndagent.wire.netflow import state

    packed = msgpack.packb(body)
    with pytest.raises(ValueError, match="not templates"):
        restore(FlowDecoder().templates, state._MAGIC + state._CRC.pack(state.crc32(packed)) + packed, now=NOON)
