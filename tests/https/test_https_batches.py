"""Agents' batches over HTTPS: what is acknowledged, what is refused and how, and what comes twice."""

import asyncio
import gzip
import resource
import zlib
from typing import Any

import aiohttp
import orjson
import pytest
from backports import zstd
from https_site import AGENT, OTHER, SPOOL, Serve, envelope, events, post, until

from ndagent.core.spool import SpoolClosed
from ndagent.wire import routes
from ndcollector.inputs.https import Config

NDJSON = {"Content_Type": routes.NDJSON_TYPE}


def reason(answer: tuple[int, dict[str, Any]]) -> tuple[int, str]:
    """Status and reason of a refusal, which says what happened and what helps."""
    status, document = answer
    assert document["error"]
    assert document["remedy"]
    return status, document["reason"]


async def test_an_agent_that_sends_too_fast_is_told_when_to_come_again_and_others_are_not(serve: Serve) -> None:
    """429 with Retry-After: the agent keeps its events; a batch is never cut in two."""
    async with serve(events_per_second_per_origin=10.0) as site, site.client() as client:
        assert (await post(client, envelope(40)))[0] == 200
        kind = {"Content-Type": routes.ENVELOPE_TYPE}
        async with client.post(routes.BATCHES, data=envelope(1), headers=kind) as late:
            assert late.status == 429
            assert 1 <= int(late.headers["Retry-After"]) <= 3
            assert (await late.json())["reason"] == "too_fast"
        async with site.client(OTHER) as other:
            assert (await post(other, envelope(1, agent_id=OTHER, spool_id="f" * 16)))[0] == 200
        assert len(site.disk.lines) == 41
        assert site.sample("nd_input_limited_seconds_total") >= 1


# ---- what is taken


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
        assert site.sample("nd_input_received_bytes_total") > 0
        assert site.answered("batches", 200) == 1


async def test_nothing_is_said_before_it_is_durable(serve: Serve) -> None:
    """While the spool waits the agent waits."""
    async with serve() as site, site.client() as client:
        site.disk.room.clear()
        answer = asyncio.create_task(post(client, envelope()))
        await until(lambda: site.disk.asked == 1)
        await asyncio.sleep(0)
        assert not answer.done()
        site.disk.room.set()
        assert (await answer)[0] == 200


@pytest.mark.parametrize(
    ("encoding", "encode"),
    [
        ("identity", bytes),
        ("gzip", gzip.compress),
        ("deflate", zlib.compress),
        ("deflate", lambda data: zlib.compress(data, wbits=-15)),
        ("zstd", zstd.compress),
        ("GZIP", gzip.compress),
    ],
)
@pytest.mark.parametrize("count", [3, 9000])
async def test_plain_lines_are_taken_in_any_coding(serve: Serve, encoding: str, encode: Any, count: int) -> None:
    """Their ids are not believed: the origin names no spool, so the decoder gives new ones."""
    async with serve() as site, site.client() as client:
        body = encode(events(count))
        assert (await post(client, body, Content_Encoding=encoding, **NDJSON))[0] == 200
        (batch,) = site.disk.batches
        assert b"".join(batch.payload) == events(count)
        assert batch.sections[0].origin.spool_id == ""


async def test_plain_lines_go_to_the_stream_they_name(serve: Serve) -> None:
    """?stream=metrics; one that does not exist is refused before it could be looked for."""
    async with serve() as site, site.client() as client:
        headers = {"Content-Type": "application/x-ndjson; charset=utf-8"}
        async with client.post(f"{routes.BATCHES}?stream=metrics", data=b'{"a":1}', headers=headers) as response:
            assert response.status == 200
        assert site.disk.batches[0].stream == "metrics"
        assert b"".join(site.disk.batches[0].payload) == b'{"a":1}\n'
        async with client.post(f"{routes.BATCHES}?stream=../etc", data=b"{}", headers=headers) as response:
            assert (response.status, (await response.json())["reason"]) == (400, "unknown_stream")


# ---- what is refused


BAD_ENVELOPES = [
    (b"", (400, "bad_batch")),
    (b"NDE1", (400, "bad_batch")),
    (b"\x00" * 100, (400, "bad_batch")),
    (b"NDE1" + b"\xff" * 2000, (400, "bad_batch")),
    (envelope(3)[:-1], (400, "bad_batch")),
    (envelope(3) + b"x", (400, "bad_batch")),
    (envelope(3, length=5), (400, "bad_batch")),
    (envelope(2, ndjson=events(3)), (400, "bad_batch")),
    (envelope(5, ndjson=b"\n" * 5), (400, "bad_batch")),
    (envelope(3, length=1 << 40), (413, "too_large")),
    (envelope(10_001, ndjson=b"{}\n" * 10_001), (413, "too_large")),
    (envelope(10**6, ndjson=b"\n" * 10**6), (400, "bad_batch")),
    (envelope(10**6, ndjson=b"{}\n" * 10**6), (413, "too_large")),
    (envelope(2, agent_id=OTHER), (403, "wrong_sender")),
    (envelope(2, stream="nonsense"), (403, "wrong_sender")),
]


@pytest.mark.parametrize(("data", "expected"), BAD_ENVELOPES, ids=map(str, range(len(BAD_ENVELOPES))))
async def test_a_bad_envelope_is_refused_and_the_connection_stays(
    serve: Serve, data: bytes, expected: tuple[int, str]
) -> None:
    """Each by its own status; the next batch comes over the same connection."""
    async with serve() as site, site.client(limit=1) as client:
        assert reason(await post(client, data)) == expected
        assert (await post(client, envelope(1)))[0] == 200
        assert len(site.disk.batches) == 1
        assert site.sample("nd_input_accepted_connections_total") == 1
        assert site.answered("batches", expected[0]) == 1


BAD_LINES: list[tuple[bytes, dict[str, str], tuple[int, str]]] = [
    (b"", {}, (400, "bad_batch")),
    (b"\n\n\r\n\n", {}, (400, "bad_batch")),
    (b"{}\n" * 10_001, {}, (413, "too_large")),
    (zstd.compress(b"x" * (64 << 20)), {"Content_Encoding": "zstd"}, (413, "too_large")),
    (gzip.compress(b"\n" * (64 << 20)), {"Content_Encoding": "gzip"}, (413, "too_large")),
    (gzip.compress(b"{}\n" * 10**6), {"Content_Encoding": "gzip"}, (413, "too_large")),
    (gzip.compress(b"{}")[:-3], {"Content_Encoding": "gzip"}, (400, "bad_body")),
    (gzip.compress(b"{}") * 2, {"Content_Encoding": "gzip"}, (400, "bad_body")),
    (b"no gzip", {"Content_Encoding": "gzip"}, (400, "bad_body")),
    (b"\x78", {"Content_Encoding": "deflate"}, (400, "bad_body")),
    (b"", {"Content_Encoding": "deflate"}, (400, "bad_body")),
    (zstd.compress(b"{}")[:-1], {"Content_Encoding": "zstd"}, (400, "bad_body")),
    (b"{}", {"Content_Encoding": "br"}, (415, "unknown_encoding")),
    (b"{}", {"Content_Encoding": "gzip, gzip"}, (415, "unknown_encoding")),
    (b"{}", {"Content_Type": "application/json"}, (415, "unknown_type")),
    (b"{}", {"Content_Type": routes.ENVELOPE_TYPE, "Content_Encoding": "gzip"}, (415, "unknown_type")),
    (b"{}", {"Idempotency_Key": "k" * 129}, (400, "bad_key")),
    (b"{}", {"Idempotency_Key": ""}, (400, "bad_key")),
    (b"{}", {"Expect": "miracles"}, (417, "unknown_expectation")),
]


@pytest.mark.parametrize(("data", "headers", "expected"), BAD_LINES, ids=map(str, range(len(BAD_LINES))))
async def test_bad_lines_are_refused_and_the_connection_stays(
    serve: Serve, data: bytes, headers: dict[str, str], expected: tuple[int, str]
) -> None:
    """Bombs and floods of empty events among them."""
    async with serve() as site, site.client(limit=1) as client:
        assert reason(await post(client, data, **{**NDJSON, **headers})) == expected
        assert (await post(client, events(1), **NDJSON))[0] == 200
        assert len(site.disk.batches) == 1
        assert site.sample("nd_input_accepted_connections_total") == 1


async def test_bombs_cost_no_more_than_their_limit(serve: Serve) -> None:
    """Forty at once, 64 MiB each: what this process ever held grows by less than one of them."""
    bomb = zstd.compress(b"{}\n" * ((64 << 20) // 3))
    async with serve(requests_per_agent=64) as site, site.client() as client:
        await post(client, bomb, Content_Encoding="zstd", **NDJSON)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for _ in range(5):
            answers = await asyncio.gather(*(post(client, bomb, Content_Encoding="zstd", **NDJSON) for _ in range(8)))
            assert {status for status, _ in answers} <= {413, 503}
        assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) < 64 << 10


@pytest.mark.parametrize("size", [4 << 20, (4 << 20) + 1])
async def test_a_body_is_measured_against_its_limit(serve: Serve, size: int) -> None:
    """To the byte, declared or in chunks; the one that is too large is refused by what it declares."""
    line = b'{"m":"' + b"x" * 1000 + b'"}\n'
    body = (line * (size // len(line))).ljust(size, b" ")

    async def chunks() -> Any:
        for start in range(0, size, 1 << 16):
            yield body[start : start + (1 << 16)]

    async with serve() as site, site.client() as client:
        expected = 200 if size == 4 << 20 else 413
        assert (await post(client, body, **NDJSON))[0] == expected
        assert (await post(client, chunks(), **NDJSON))[0] == expected
        assert len(site.disk.batches) == (2 if expected == 200 else 0)


async def test_bodies_of_all_together_are_limited(serve: Serve) -> None:
    """What waits for the spool counts until it is durable; beyond it agents are sent elsewhere."""
    line = b'{"m":"' + b"x" * (600 << 10) + b'"}\n'
    async with serve(buffer_bytes="1MiB") as site, site.client() as client:
        site.disk.room.clear()
        first = asyncio.create_task(post(client, line, **NDJSON))
        await until(lambda: site.disk.asked == 1)
        async with client.post(routes.BATCHES, data=line, headers={"Content-Type": routes.NDJSON_TYPE}) as response:
            assert (response.status, response.headers["Retry-After"]) == (503, "1")
            assert (await response.json())["reason"] == "no_memory"
        site.disk.room.set()
        assert (await first)[0] == 200
        assert (await post(client, line, **NDJSON))[0] == 200


async def test_requests_under_way_are_limited_for_one_agent_and_for_all(serve: Serve) -> None:
    """429 with Retry-After; whose requests they are decides which limit."""
    async with serve(requests=3, requests_per_agent=2) as site:  # noqa: SIM117 - both are the site's
        async with site.client() as client, site.client(OTHER) as other:
            site.disk.room.clear()
            waiting = [asyncio.create_task(post(client, events(1), **NDJSON)) for _ in range(2)]
            await until(lambda: site.disk.asked == 2)
            answer = await post(client, events(1), **NDJSON)
            assert reason(answer) == (429, "too_many_requests")
            assert "requests_per_agent is 2" in answer[1]["error"]
            waiting.append(asyncio.create_task(post(other, events(1), **NDJSON)))
            await until(lambda: site.disk.asked == 3)
            async with other.post(routes.BATCHES, data=b"{}", headers={"Content-Type": routes.NDJSON_TYPE}) as response:
                assert (response.status, response.headers["Retry-After"]) == (429, "1")
                assert "requests is 3" in (await response.json())["error"]
            site.disk.room.set()
            assert [status for status, _ in await asyncio.gather(*waiting)] == [200] * 3
            assert (await post(client, events(1), **NDJSON))[0] == 200


# ---- whose they are


async def test_an_agent_that_the_fleet_does_not_want_is_refused_with_the_reason(serve: Serve) -> None:
    """Nothing of its body is taken."""
    async with serve() as site, site.client() as client:
        site.fleet.refused[AGENT] = "revoked_agent"
        status, document = await post(client, envelope())
        assert (status, document["reason"], document["error"]) == (403, "not_admitted", "revoked_agent")
        assert site.disk.asked == 0


async def test_an_envelope_in_another_name_is_audited_once(serve: Serve) -> None:
    """However often it comes."""
    async with serve() as site, site.client() as client:
        for _ in range(3):
            assert reason(await post(client, envelope(agent_id=OTHER))) == (403, "wrong_sender")
        assert [kind for kind, _ in site.fleet.audited] == ["https_wrong_sender"]
        assert site.fleet.audited[0][1]["agent_id"] == AGENT


async def test_the_spool_of_another_agent_is_refused(serve: Serve) -> None:
    """Else one agent could name another's events."""
    async with serve() as site, site.client() as client, site.client(OTHER) as other:
        assert (await post(client, envelope()))[0] == 200
        status, document = await post(other, envelope(agent_id=OTHER))
        assert status == 403
        assert SPOOL in document["error"]
        assert len(site.disk.batches) == 1


async def test_who_is_taken_is_told_to_the_fleet(serve: Serve) -> None:
    """Last seen, and over what."""
    async with serve() as site, site.client() as client:
        await post(client, envelope())
        assert set(site.fleet.heard) == {(AGENT, "https")}


# ---- what comes twice


async def test_a_key_that_names_another_batch_of_the_same_checksum_loses_nothing(serve: Serve) -> None:
    """A script may send one key for ever: among some hundred batches a CRC-32 would be wrong twice a year."""
    one, other = b"plumless\n", b"buckeroo\n"
    assert zlib.crc32(one) == zlib.crc32(other)
    async with serve() as site, site.client() as client:
        for body in (one, other, one):
            assert (await post(client, body, Idempotency_Key="a", **NDJSON))[0] == 200
        assert site.disk.lines == [b"plumless", b"buckeroo"]


async def test_a_batch_that_comes_again_is_stored_once(serve: Serve) -> None:
    """An envelope by its own key, lines by the header's; also over another connection."""
    async with serve() as site:
        data = envelope()
        for _ in range(3):
            async with site.client() as client:
                assert (await post(client, data))[0] == 200
                assert (await post(client, events(2), Idempotency_Key="a", **NDJSON))[0] == 200
        assert len(site.disk.batches) == 2
        assert site.sample("nd_input_known_events_total") == 2 * (3 + 2)
        assert site.sample("nd_input_received_events_total") == 5


async def test_lines_without_a_key_are_stored_as_often_as_they_come(serve: Serve) -> None:
    """Nobody said that they are the same."""
    async with serve() as site, site.client() as client:
        for _ in range(2):
            assert (await post(client, events(1), **NDJSON))[0] == 200
        assert len(site.disk.batches) == 2


async def test_a_key_that_comes_with_other_bytes_names_another_batch(serve: Serve) -> None:
    """A script that sends one key for ever, a host set back to a snapshot: nothing acknowledged may be lost."""
    async with serve() as site, site.client() as client:
        for first in (1, 2):
            assert (await post(client, events(1, first=first), Idempotency_Key="a", **NDJSON))[0] == 200
        assert (await post(client, envelope(ndjson=b'{"m": 1}\n' * 3)))[0] == 200
        assert (await post(client, envelope(ndjson=b'{"m": 2}\n' * 3)))[0] == 200
        assert len(site.disk.batches) == 4


async def test_two_agents_with_one_key_are_two(serve: Serve) -> None:
    """A key names a batch of its agent."""
    async with serve() as site, site.client() as client, site.client(OTHER) as other:
        for one in (client, other):
            assert (await post(one, events(1), Idempotency_Key="a", **NDJSON))[0] == 200
        assert len(site.disk.batches) == 2


@pytest.mark.parametrize("count", [3, 9000])
async def test_the_same_batch_at_the_same_time_waits_for_the_first(serve: Serve, count: int) -> None:
    """Five at once over five connections, opened in the loop or in threads: one append, five acknowledgements."""
    async with serve() as site, site.client() as client:
        site.disk.room.clear()
        ndjson = b"".join(orjson.dumps({"m": hash((n, "x"))}) + b"\n" for n in range(count))
        data = envelope(count, ndjson=ndjson)
        answers = [asyncio.create_task(post(client, data)) for _ in range(5)]
        await until(lambda: site.input._server._under_way == 5)
        await until(lambda: site.disk.asked == 1)
        assert site.disk.asked == 1
        site.disk.room.set()
        assert [status for status, _ in await asyncio.gather(*answers)] == [200] * 5
        assert len(site.disk.batches) == 1


async def test_a_batch_that_failed_may_come_again(serve: Serve) -> None:
    """A failure is not remembered; everyone who waited for it is told to come back."""
    async with serve() as site, site.client() as client:
        site.disk.room.clear()
        site.disk.failing = OSError("disk")
        answers = [asyncio.create_task(post(client, envelope())) for _ in range(2)]
        await until(lambda: site.input._server._under_way == 2)
        await until(lambda: site.disk.asked == 1)
        site.disk.room.set()
        assert [reason(one) for one in await asyncio.gather(*answers)] == [(503, "not_stored")] * 2
        site.disk.failing = None
        assert (await post(client, envelope()))[0] == 200
        assert len(site.disk.batches) == 1


async def test_a_closed_spool_sends_agents_elsewhere(serve: Serve) -> None:
    """It happens at the end of a stop."""
    async with serve() as site, site.client() as client:
        site.disk.failing = SpoolClosed("closed")
        assert reason(await post(client, envelope())) == (503, "stopping")


# ---- back-pressure


async def test_a_spool_without_room_sends_agents_elsewhere(serve: Serve) -> None:
    """503 after accept_timeout, at once for whoever comes later; what was taken is stored once there is room."""
    async with serve(accept_timeout=0.1) as site, site.client() as client:
        site.disk.room.clear()
        async with client.post(
            routes.BATCHES, data=envelope(), headers={"Content-Type": routes.ENVELOPE_TYPE}
        ) as response:
            assert (response.status, response.headers["Retry-After"]) == (503, "5")
            assert (await response.json())["reason"] == "no_room"
        assert site.sample("nd_input_paused") == 1
        assert reason(await post(client, envelope(first=10))) == (503, "no_room")
        assert reason(await post(client, envelope())) == (503, "no_room")
        assert reason(await post(client, events(1), **NDJSON)) == (503, "no_room")
        assert site.disk.asked == 1
        site.disk.room.set()
        await until(lambda: len(site.disk.batches) == 1)
        assert (await post(client, envelope()))[0] == 200  # it is known: not stored again
        assert len(site.disk.batches) == 1
        assert site.sample("nd_input_paused") == 0


async def test_one_full_stream_does_not_keep_an_agent_from_the_others(serve: Serve) -> None:
    """Its batches that wait hold memory and no places."""
    async with serve(accept_timeout=0.1, requests_per_agent=2) as site, site.client() as client:
        site.disk.full.add("metrics")
        waiting = (post(client, envelope(first=first, stream="metrics")) for first in (1, 10))
        assert [reason(one) for one in await asyncio.gather(*waiting)] == [(503, "no_room")] * 2
        assert (await post(client, envelope(first=100)))[0] == 200
        site.disk.full.clear()
        await until(lambda: site.sample("nd_input_paused") == 0)
        assert (await post(client, envelope(first=1, stream="metrics")))[0] == 200
        assert [batch.stream for batch in site.disk.batches].count("metrics") == 2
        assert site.input._server._under_way == 0


async def test_an_agent_that_goes_away_has_its_batch_stored_and_remembered(serve: Serve) -> None:
    """Its retry is acknowledged without a second append."""
    async with serve() as site:
        site.disk.room.clear()
        async with site.client() as client:
            with pytest.raises(TimeoutError):
                async with client.post(
                    routes.BATCHES, data=envelope(), headers={"Content-Type": routes.ENVELOPE_TYPE},
                    timeout=aiohttp.ClientTimeout(total=0.2),
                ):  # fmt: skip
                    pass
        await until(lambda: site.disk.asked == 1)
        site.disk.room.set()
        async with site.client() as client:
            assert (await post(client, envelope()))[0] == 200
        assert len(site.disk.batches) == 1


def test_streams_of_the_input_are_those_of_the_wire() -> None:
    """The composition root opens a spool for each."""
    assert Config.streams == ("alerts", "metrics", "security_events")
