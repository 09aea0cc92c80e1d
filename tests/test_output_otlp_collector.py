"""The `otlp` output against the OpenTelemetry Collector itself."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from services import fetch
from services.otel_collector import OtelCollector

from ndagent.core.interfaces import Rejected, Unavailable
from ndagent.core.metrics import Metrics
from ndagent.wire import otlp as wire
from ndcollector.outputs import OutputContext, otlp
from ndcollector.traffic.request import Request, judge
from tests.test_output_otlp_records import decoded

pytestmark = [pytest.mark.long, pytest.mark.timeout(1800)]  # it is built from source


@pytest.fixture
def collector(tmp_path: Path) -> Iterator[OtelCollector]:
    try:
        made = OtelCollector(tmp_path)
    except fetch.ServiceMissingError as error:
        if fetch.required():
            pytest.fail(str(error))
        pytest.skip(str(error))
    with made.process:
        yield made


def output(url: str, **settings: str) -> otlp.OtlpOutput:
    context = OutputContext(state_dir=Path("/nowhere"), metrics=Metrics(), clock=lambda: 0.0)
    return otlp.build("otel", otlp.Config(url=url, **settings), context)


@pytest.mark.parametrize("compression", ["gzip", "none"])
async def test_it_reads_what_we_send(collector: OtelCollector, compression: str) -> None:
    """Every part of a record, in its words."""
    message = b'<34>1 2026-11-23T22:14:15.003Z fw-1 su 77 ID47 [x@32473 a="1"] su root failed'
    events = decoded(message, b"no syslog \xff at all")
    plug = output(collector.url, compression=compression)
    await plug.send(events)
    await plug.aclose()
    collector.process.wait_until(lambda: "LogRecord #0" in collector.process.log.read_text(), "a record")
    said = collector.process.log.read_text()
    for expected in (
        "host.name: Str(fw-1)", "service.name: Str(su)", "observer.name: Str(collector-1)",
        "InstrumentationScope ndcollector", "ndcollector.stream: Str(security_events)",
        "Timestamp: 2026-11-23 22:14:15.003 +0000 UTC", "SeverityText: critical", "SeverityNumber: Error2(18)",
        "Body: Str(su root failed)", "log.record.uid: Str(s0-14)", "process.pid: Int(77)", "_parse_failure",
        'log.syslog.structured_data: Map({"x@32473":{"a":"1"}})',
    ):  # fmt: skip
        assert expected in said, expected
    assert said.count("log.record.uid") == 2


async def test_what_it_says_to_rubbish_is_understood(collector: OtelCollector) -> None:
    """Its google.rpc.Status, and its 404 where there is no such path."""
    plug = output(collector.url)
    answer = await plug._exchange(Request("POST", "/v1/logs", b"rubbish", plug._headers | {"content-encoding": ""}))
    text = wire.read_status(answer.body, is_json=False)
    assert text
    with pytest.raises(Rejected, match="400"):
        judge(replace(answer, body=text.encode()))
    await plug.aclose()
    lost = output(collector.url, path="/v1/nowhere")
    with pytest.raises(Unavailable, match=r"404.*check its URL"):
        await lost.send(decoded(b"<34>1 - h a - - - m"))
    await lost.aclose()
