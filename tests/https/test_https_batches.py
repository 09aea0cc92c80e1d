"""Agents' batches over HTTPS: what is acknowledged, what is refused and how, and what comes twice."""

from conftest import Serve
from https_site import AGENT, SPOOL, envelope, events, post

from ndagent.wire import routes


async def test_an_envelope_is_acknowledged_once_it_is_durable(serve: Serve) -> None:
    """200, and the spool has its lines under the agent's name and spool."""
    async with serve() as site, site.client() as client:
        assert await post(client, envelope(3)) == (200, {"stored": True})
        (batch,) = site.disk.batches
        (section,) = batch.sections
        assert b"".join(batch.payload) == events(3)
        assert (batch.stream, batch.format, section.count) == ("security_events", "ecs", 3)
        assert section.origin.agent_id == AGENT
        assert section.origin.spool_id == SPOOL
        assert section.origin.input == "https"
        assert site.sample("nd_input_received_events_total") == 3
        assert site.answered("batches", 200) == 1
