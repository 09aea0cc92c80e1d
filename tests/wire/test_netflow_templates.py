"""Templates of many exporters: whose they are, what waits for them, how many there may be; and what sequences tell."""

import struct

import orjson
import pytest
from netflow_datagrams import NOON, ipfix, lines_of, options_template, pack_set, template, v5, v5_flow, v9

from ndagent.wire.netflow.decoder import FlowDecoder
from ndagent.wire.netflow.held import OVERHEAD_BYTES
from ndagent.wire.netflow.sequence import LATE_WITHIN, Passed, Sequence
from ndagent.wire.netflow.template import MAX_FIELDS
from ndagent.wire.netflow.templates import MAX_DOMAINS, MAX_SAMPLERS, Domain, TemplateLimits

SHAPE = pack_set(2, template(256, [(8, 4), (1, 4)]))
SHAPE_OF_V9 = pack_set(0, template(256, [(8, 4), (1, 4)]))


def flow(source: int = 1, octets: int = 5, *, template_id: int = 256) -> bytes:
    """A data set with one record of SHAPE."""
    return pack_set(template_id, struct.pack(">II", 0x0A000000 + source, octets))


def sources(decoder: FlowDecoder, *datagrams: bytes, exporter: str = "192.0.2.9", now: float = NOON) -> list[str]:
    """source.ip of each event."""
    return [
        orjson.loads(line).get("source", {}).get("ip")
        for data in datagrams
        for line in lines_of(decoder, exporter, data, now=now)
    ]


def test_each_exporter_and_domain_has_its_own_templates() -> None:
    """The same number means another shape elsewhere; v9 and IPFIX of one box are two exporters."""
    decoder = FlowDecoder()
    other = pack_set(2, template(256, [(1, 4), (12, 4)]))
    sources(decoder, ipfix(SHAPE), ipfix(other, domain=8), v9(pack_set(0, template(256, [(2, 4), (8, 4)]))))
    assert sources(decoder, ipfix(flow()), ipfix(flow(), domain=8), v9(flow())) == ["10.0.0.1", None, "0.0.0.5"]
    assert sources(decoder, ipfix(flow()), exporter="192.0.2.10") == []


def test_a_template_id_that_comes_again_with_another_shape_has_that() -> None:
    """An exporter that was configured anew; records before and after it in one message."""
    decoder = FlowDecoder()
    other = pack_set(2, template(256, [(1, 4), (8, 4)]))
    assert sources(decoder, ipfix(SHAPE, flow(), other, flow(octets=9))) == ["10.0.0.1", "0.0.0.9"]
    assert sources(decoder, ipfix(other)) == []
    assert (decoder.templates.redefined, decoder.templates.redefined_last) == (1, "192.0.2.9, domain 7, template 256")


@pytest.mark.parametrize("withdrawn", [256, 2])
def test_a_withdrawn_template_is_gone(withdrawn: int) -> None:
    """RFC 7011 §8.1: one, or all flow templates; options stay."""
    decoder = FlowDecoder()
    options = pack_set(3, options_template(300, [(149, 4)], [(41, 4)]))
    end = pack_set(2, struct.pack(">HH", withdrawn, 0))
    said = pack_set(300, bytes(8))
    assert sources(decoder, ipfix(SHAPE, options, end, flow(), said)) == [None]
    assert decoder.templates.count == 1


def test_data_waits_for_its_template() -> None:
    """In order, with their own headers' times; and once."""
    decoder = FlowDecoder()
    assert sources(decoder, v9(flow(1), seconds=NOON - 60), v9(flow(2), sequence=1)) == []
    lines = lines_of(decoder, "192.0.2.9", v9(SHAPE_OF_V9, flow(3), sequence=2), now=NOON)
    events = [orjson.loads(line) for line in lines]
    assert [event["source"]["ip"] for event in events] == ["10.0.0.1", "10.0.0.2", "10.0.0.3"]
    assert events[0]["@timestamp"] == "2024-03-15T11:59:00.000Z"
    assert sources(decoder, v9(SHAPE_OF_V9, sequence=3)) == []
    assert decoder.take_counts().no_template == 0


def test_data_waits_so_long_and_then_is_counted() -> None:
    """The template comes a second too late."""
    decoder = FlowDecoder(held_seconds=60)
    sources(decoder, ipfix(flow(1)))
    sources(decoder, ipfix(flow(2)), now=NOON + 30)
    decoder.expire(NOON + 59)
    assert decoder.take_counts().no_template == 0
    decoder.expire(NOON + 60)
    assert decoder.take_counts().no_template == 1
    assert sources(decoder, ipfix(SHAPE), now=NOON + 61) == ["10.0.0.2"]


def test_a_withdrawal_does_not_make_data_wait_anew() -> None:
    """Nor look at what waits: a datagram has room for 16 000 of them, and 16 MiB may wait."""
    decoder = FlowDecoder(held_seconds=60)
    sources(decoder, ipfix(flow(1)))
    sources(decoder, ipfix(pack_set(2, struct.pack(">HH", 256, 0) * 3)), now=NOON + 30)
    decoder.expire(NOON + 60)
    assert decoder.take_counts().no_template == 1


def test_so_much_data_waits_and_no_more() -> None:
    """Sat on the limit, and one set above it; the oldest goes."""
    decoder = FlowDecoder(held_bytes=3 * (8 + OVERHEAD_BYTES))
    sources(decoder, *(ipfix(flow(number)) for number in (1, 2, 3)))
    assert decoder.take_counts().no_template == 0
    sources(decoder, ipfix(flow(4)))
    assert decoder.take_counts().no_template == 1
    assert sources(decoder, ipfix(SHAPE)) == ["10.0.0.2", "10.0.0.3", "10.0.0.4"]
    sources(decoder, ipfix(flow(5, template_id=999)))
    decoder.close()
    assert decoder.take_counts().no_template == 1


def test_an_exporter_has_so_many_templates() -> None:
    """The least recently used goes, counted; nobody else's."""
    decoder = FlowDecoder(limits=TemplateLimits(per_exporter=3))
    sources(decoder, ipfix(SHAPE), exporter="192.0.2.1")
    three = [template(number, [(8, 4), (1, 4)]) for number in (256, 257, 258)]
    sources(decoder, ipfix(pack_set(2, b"".join(three))), ipfix(flow(template_id=256)))
    sources(decoder, ipfix(pack_set(2, template(259, [(8, 4)]))))
    assert decoder.templates.evicted == 1
    assert sources(decoder, ipfix(flow(template_id=257))) == []
    assert sources(decoder, ipfix(flow(template_id=256))) == ["10.0.0.1"]
    assert sources(decoder, ipfix(flow()), exporter="192.0.2.1") == ["10.0.0.1"]


def test_endless_templates_from_endless_exporters_are_bounded() -> None:
    """By number, by their fields, and by exporters; what is in use last stays."""
    limits = TemplateLimits(exporters=10, per_exporter=8, fields=400, templates=50)
    decoder = FlowDecoder(limits=limits)
    for number in range(2000):
        fields = [(8, 4), (1, 4), *((element, 4) for element in range(300, 300 + number % 40))]
        data = ipfix(pack_set(2, template(256 + number % 9, fields)), domain=number % 3)
        sources(decoder, data, exporter=f"10.0.{number // 7 % 50}.1")
        assert decoder.templates.count <= 50
        assert len(list(decoder.templates.all())) <= 10 * 3
    assert decoder.templates.evicted > 1000
    assert sources(decoder, ipfix(SHAPE, flow())) == ["10.0.0.1"]


def test_a_burst_of_forged_addresses_costs_no_template() -> None:
    """A hundred thousand that announce nothing: a bounded table, in which the exporters stay."""
    decoder = FlowDecoder(limits=TemplateLimits(exporters=100))
    sources(decoder, ipfix(SHAPE))
    for number in range(100_000):
        sources(decoder, b"\0\x0a\0\x10" + bytes(12), exporter=str(number))
    assert len(decoder.templates._strangers) == 100
    assert sources(decoder, ipfix(flow())) == ["10.0.0.1"]


def test_exporters_are_bounded_the_one_heard_of_longest_ago_goes_first() -> None:
    """Sat on the limit, and one above it."""
    decoder = FlowDecoder(limits=TemplateLimits(exporters=2))
    for exporter in ("a", "b"):
        sources(decoder, ipfix(SHAPE), exporter=exporter)
    assert sources(decoder, ipfix(flow()), exporter="a") == ["10.0.0.1"]
    assert decoder.templates.evicted == 0
    sources(decoder, ipfix(SHAPE), exporter="c")
    assert decoder.templates.evicted == 1
    assert sources(decoder, ipfix(flow()), exporter="b") == []
    assert sources(decoder, ipfix(flow()), exporter="a") == ["10.0.0.1"]


def test_one_exporter_has_so_many_domains() -> None:
    """Forged source ids; the template of the last one works."""
    decoder = FlowDecoder()
    for domain in range(MAX_DOMAINS + 10):
        assert sources(decoder, ipfix(SHAPE, flow(), domain=domain)) == ["10.0.0.1"]
    assert len(list(decoder.templates.all())) == MAX_DOMAINS


def remembered(decoder: FlowDecoder) -> list[Domain]:
    """Of those who announced something and of those who did not."""
    table = decoder.templates
    exporters = (*table._exporters.values(), *table._strangers.values())
    return [domain for exporter in exporters for domain in exporter.domains.values()]


def test_domains_of_all_exporters_are_bounded_and_strangers_go_first() -> None:
    """Forged headers without a set, from many addresses with many domains each."""
    decoder = FlowDecoder(limits=TemplateLimits(domains=MAX_DOMAINS))
    sources(decoder, ipfix(SHAPE))
    for number in range(8):
        for domain in range(MAX_DOMAINS - 1 if number else 3):
            sources(decoder, ipfix(domain=domain), exporter=f"192.0.2.1{number}")
            assert len(remembered(decoder)) <= MAX_DOMAINS
    assert len(remembered(decoder)) == MAX_DOMAINS
    assert sources(decoder, ipfix(flow())) == ["10.0.0.1"]
    for domain in range(MAX_DOMAINS - 1):
        sources(decoder, ipfix(SHAPE, domain=domain), exporter="192.0.2.20")
    assert len(remembered(decoder)) <= MAX_DOMAINS
    sources(decoder, ipfix(SHAPE), exporter="192.0.2.21")
    assert len(remembered(decoder)) <= MAX_DOMAINS
    assert sources(decoder, ipfix(flow()), exporter="192.0.2.21") == ["10.0.0.1"]


def test_sampling_rates_are_bounded_for_each_exporter_and_for_all() -> None:
    """Options that tell of ever new samplers, in every domain; the last told are known."""
    decoder = FlowDecoder(limits=TemplateLimits(samplers=2 * MAX_SAMPLERS))
    options = pack_set(3, options_template(300, [(149, 4)], [(302, 4), (34, 4)]))
    said = b"".join(struct.pack(">III", 7, sampler, 10) for sampler in range(MAX_SAMPLERS - 100))
    for exporter in range(5):
        for domain in range(3):
            sources(decoder, ipfix(options, pack_set(300, said), domain=domain), exporter=f"192.0.2.{exporter}")
            found = [len(one.rates) for one in remembered(decoder)]
            assert sum(found) <= min(exporter + 1, 2) * MAX_SAMPLERS
    last = decoder.templates.domain("192.0.2.4", 10, 2)
    assert len(last.rates) == MAX_SAMPLERS - 100
    assert decoder.templates._samplers == sum(len(one.rates) for one in remembered(decoder))


def test_one_exporter_does_not_push_out_the_others() -> None:
    """However long its templates are: fields have a share, too."""
    decoder = FlowDecoder(limits=TemplateLimits(fields=4 * MAX_FIELDS))
    sources(decoder, ipfix(SHAPE))
    for number in range(20):
        long = template(256 + number, [(8, 4), *[(1 + number, 4)] * (MAX_FIELDS - 1)])
        sources(decoder, ipfix(pack_set(2, long)), exporter="192.0.2.66")
    assert sources(decoder, ipfix(flow())) == ["10.0.0.1"]
    assert decoder.templates.count == 2
    assert decoder.templates.evicted == 19


def test_the_same_shape_is_compiled_once() -> None:
    """A thousand boxes of one model."""
    decoder = FlowDecoder(limits=TemplateLimits(fields=10))
    for number in range(1000):
        sources(decoder, ipfix(SHAPE), exporter=f"10.1.{number // 250}.{number % 250}")
    assert decoder.templates.count == 1000


# ---- sequences


def passed(*steps: tuple[int, int | None], seconds: int = NOON) -> list[Passed]:
    """Numbers and counts, one a second."""
    sequence = Sequence()
    return [
        sequence.take(number, count, second=seconds + at, uptime_ms=None) for at, (number, count) in enumerate(steps)
    ]


def test_numbers_without_a_gap() -> None:
    """Over the wrap, too."""
    assert passed((2**32 - 2, 1), (2**32 - 1, 1), (0, 1), (1, 30), (31, 0), (31, 1)) == [Passed()] * 6


def test_a_gap_is_as_long_as_it_is() -> None:
    """Also one over the wrap."""
    assert [one.missing for one in passed((10, 5), (20, 5), (2**31, 5))] == [0, 5, 2**31 - 25]
    assert [one.missing for one in passed((2**32 - 10, 5), (5, 1))] == [0, 10]


def test_what_comes_late_was_not_lost() -> None:
    """By the same clock or an earlier one; never more than was missing."""
    sequence = Sequence()
    sequence.take(10, 5, second=NOON, uptime_ms=None)
    assert sequence.take(25, 5, second=NOON + 1, uptime_ms=None) == Passed(missing=10)
    assert sequence.take(15, 5, second=NOON, uptime_ms=None) == Passed(late=5)
    assert sequence.take(20, 5, second=NOON + 1, uptime_ms=None) == Passed(late=5)
    assert sequence.take(20, 5, second=NOON + 1, uptime_ms=None) == Passed()  # a duplicate
    assert sequence.take(30, 5, second=NOON + 2, uptime_ms=None) == Passed()


def test_an_exporter_that_begins_anew_has_no_gap() -> None:
    """Its number falls back while its clock goes on; or it rises, and only the uptime fell."""
    assert [one.is_restart for one in passed((10**6, 5), (0, 5), (5, 5))] == [False, True, False]
    assert [one.is_restart for one in passed((LATE_WITHIN, 1), (1, 1))] == [False, True]
    sequence = Sequence()
    sequence.take(10, 5, second=NOON, uptime_ms=10**9)
    assert sequence.take(5000, 5, second=NOON + 60, uptime_ms=1000) == Passed(is_restart=True)


def test_an_exporter_without_uptime_begins_anew_however_far_it_was() -> None:
    """Beyond 2**31 its fall to zero looks like a gap of the rest."""
    assert passed((3_000_000_000, 10), (0, 10), (10, 5))[1:] == [Passed(is_restart=True), Passed()]
    assert passed((2**32 - 10, 10), (5, 10))[1:] == [Passed(missing=5)]


def test_uptime_that_wraps_is_no_new_beginning() -> None:
    """After 49.7 days, with a gap in the same second."""
    sequence = Sequence()
    sequence.take(10, 5, second=NOON, uptime_ms=2**32 - 10)
    assert sequence.take(20, 5, second=NOON + 1, uptime_ms=990) == Passed(missing=5)


def test_a_datagram_that_nobody_can_count_makes_no_gap() -> None:
    """Its template is missing: the next one is where we go on."""
    assert [one.missing for one in passed((10, 5), (15, None), (40, 5), (46, 5))] == [0, 0, 0, 1]


def test_each_version_has_its_unit() -> None:
    """Flows, datagrams, data records of all sets, options too."""
    decoder = FlowDecoder()
    sources(decoder, v5(v5_flow(), v5_flow(), sequence=100), v5(v5_flow(), sequence=105))
    sources(decoder, v9(SHAPE_OF_V9, flow(), flow(), sequence=100), v9(flow(), sequence=103))
    options = pack_set(3, options_template(300, [(149, 4)], [(41, 4)]))
    sources(decoder, ipfix(SHAPE, options, flow(), flow(), pack_set(300, bytes(16)), sequence=100))
    sources(decoder, ipfix(flow(), sequence=111), ipfix(flow(), sequence=104))
    counts = decoder.take_counts()
    assert counts.missing == {"flows": 3, "datagrams": 2, "records": 7}
    assert counts.late == {"records": 1}


def test_domains_are_numbered_apart() -> None:
    """And so are the engines of v5."""
    decoder = FlowDecoder()
    sources(decoder, v9(SHAPE_OF_V9, sequence=1), v9(SHAPE_OF_V9, sequence=900, source=8), v9(flow(), sequence=2))
    sources(decoder, v5(v5_flow(), sequence=1), v5(v5_flow(), sequence=900, engine=1), v5(v5_flow(), sequence=2))
    assert decoder.take_counts().missing == {}
