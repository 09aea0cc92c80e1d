"""A host whose clock is wrong: its events carry both times and how far they are apart."""

import time
from dataclasses import replace
from pathlib import Path

import orjson
import pytest
from https_site import Site

from ndagent.https_client import Place
from ndagent.outputs import Target
from ndagent.wire.codec import make_decoder
from ndagent.wire.ecs import DecodeSettings
from ndagent.wire.envelope import pack
from ndagent.wire.record import pack_body
from tests.agent.collector_output import seal, transport
from tests.events import event_batch

DAY_NS = 86400 * 10**9


@pytest.mark.parametrize("days", [-1, 0, 1])
async def test_events_of_a_host_whose_clock_is_a_day_off_carry_both_times_and_the_skew(
    tmp_path: Path, days: int
) -> None:
    """Sent over the real https input, decoded as the collector does."""
    site = Site(tmp_path)
    await site.start()
    try:
        way = transport(site.context(), Target("https", Place("localhost", site.port, "127.0.0.1")))
        events = event_batch([1])
        now_ns = time.time_ns()
        host_ns = now_ns + days * DAY_NS
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime(host_ns // 10**9))
        event = {"@timestamp": stamp, "message": "m", "event": {"id": "0123456789abcdef-1", "created": stamp}}
        ndjson = orjson.dumps(event) + b"\n"
        header = replace(seal(events), spool_id="0123456789abcdef", length=len(ndjson), sent_at_ns=host_ns)
        await way.send(pack(header, ndjson), header)
        await way.aclose()
        (batch,) = site.disk.batches
        assert batch.sections[0].origin.clock_skew_seconds == pytest.approx(days * 86400, abs=1)
        decoder = make_decoder(DecodeSettings(observer_name="here"))
        body = b"".join(pack_body(batch))
        decoded = decoder.decode(
            body, stream="security_events", spool_id="s", sequence=0, received_at_ns=batch.received_at_ns
        )
        found = orjson.loads(decoded.ndjson)
        assert found["@timestamp"] == found["event"]["created"] == stamp
        ingested = found["event"]["ingested"]
        assert ingested[:10] == time.strftime("%Y-%m-%d", time.gmtime(now_ns // 10**9))
        told = found["agent"].get("clock_skew_seconds", 0)
        assert told == pytest.approx(days * 86400, abs=1)
    finally:
        await site.stop()
