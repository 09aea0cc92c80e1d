"""HTTP/1.1 on our TLS, byte by byte: what clients do on purpose, by accident and in bad faith."""

import asyncio
import contextlib
import gc
import gzip
import socket
import ssl
import subprocess
from pathlib import Path

import aiohttp
import pytest
from https_site import (
    AGENT,
    WAIT_SECONDS,
    Serve,
    Site,
    envelope,
    events,
    post,
    read_all,
    read_responses,
    request,
    status_of,
    until,
)  # fmt: skip
from services import fetch
from services.need import need

from ndagent.wire import routes


async def talk(site: Site, data: bytes, count: int = 1, *, agent_id: str | None = AGENT) -> list[bytes]:
    """Send bytes over a new connection and read so many responses."""
    with await site.raw(agent_id) as client:
        await asyncio.to_thread(client.sendall, data)
        return await asyncio.to_thread(read_responses, client, count)


# ---- ordinary clients


async def test_a_connection_serves_one_request_after_the_other(serve: Serve) -> None:
    """A hundred over one connection, a hundred in the spool."""
    async with serve() as site, site.client(limit=1) as client:
        for first in range(1, 101):
            assert (await post(client, envelope(1, first=first)))[0] == 200
        assert len(site.disk.batches) == 100
        assert site.sample("nd_input_accepted_connections_total") == 1


async def test_pipelined_requests_are_answered_in_order(serve: Serve) -> None:
    """Sixty in one write; each answer belongs to its request."""
    data = b"".join(request(events(1, first=n)) + request(method="GET", path=f"/{n}") for n in range(30))
    async with serve() as site:
        responses = await talk(site, data, 60)
        assert [status_of(one) for one in responses] == [200, 404] * 30
        assert site.disk.lines == events(30, first=0).splitlines()


async def test_a_flood_of_pipelined_requests_is_read_no_faster_than_it_is_answered(serve: Serve) -> None:
    """The peer reads nothing: its answers fill what the kernels hold, then nothing more is read or made."""
    one = request(method="GET", path="/" + "x" * 100)
    async with serve(response_timeout=60) as site:
        with await site.raw() as client:
            client.setblocking(False)
            sent, quiet = 0, 0
            while quiet < 100:
                try:
                    sent += client.send(one * 1000)
                    quiet = 0
                except ssl.SSLWantWriteError:
                    quiet += 1
                    await asyncio.sleep(0.01)
                assert sent < 64 << 20
            answered = site.answered("other", 404)
            gc.collect()
            waiting = [one for one in gc.get_objects() if isinstance(one, aiohttp.web.BaseRequest)]
            assert len(waiting) < 100
            await asyncio.sleep(0.1)
            assert site.answered("other", 404) == answered


async def test_chunked_bodies_arrive_whole(serve: Serve) -> None:
    """In chunks of one byte, with extensions and trailers."""
    body = events(2)
    chunks = b"".join(b"1;x=y\r\n%c\r\n" % byte for byte in body) + b"0\r\nTrailer: x\r\n\r\n"
    head = f"POST {routes.BATCHES} HTTP/1.1\r\nHost: x\r\nContent-Type: {routes.NDJSON_TYPE}\r\n"
    async with serve() as site:
        (response,) = await talk(site, head.encode() + b"Transfer-Encoding: chunked\r\n\r\n" + chunks)
        assert status_of(response) == 200
        assert site.disk.lines == body.splitlines()


async def test_a_request_in_pieces_is_one_request(serve: Serve) -> None:
    """Byte by byte, each in a TLS record of its own."""
    async with serve() as site:
        with await site.raw() as client:
            for byte in request(events(1)):
                await asyncio.to_thread(client.sendall, bytes([byte]))
            (response,) = await asyncio.to_thread(read_responses, client, 1)
        assert status_of(response) == 200


async def test_who_asks_first_is_told_to_continue_or_why_not(serve: Serve) -> None:
    """RFC 9110 §10.1.1: a body that would be refused is not sent at all."""
    async with serve(max_body_bytes=2000) as site:
        with await site.raw() as client:
            head, body = request(events(1), more="Expect: 100-continue\r\n").split(b"\r\n\r\n")
            client.sendall(head + b"\r\n\r\n")
            assert await asyncio.to_thread(client.recv, 1000) == b"HTTP/1.1 100 Continue\r\n\r\n"
            client.sendall(body)
            (response,) = await asyncio.to_thread(read_responses, client, 1)
            assert status_of(response) == 200
        with await site.raw() as client:
            head = request(b"x" * 2001, more="Expect: 100-continue\r\n").split(b"\r\n\r\n")[0]
            client.sendall(head + b"\r\n\r\n")
            (response,) = await asyncio.to_thread(read_responses, client, 1)
            assert status_of(response) == 413


async def test_http_1_0_gets_its_answer_and_the_end(serve: Serve) -> None:
    """Without keep-alive the connection closes with close_notify, and whole."""
    async with serve() as site:
        with await site.raw() as client:
            client.sendall(request(events(1)).replace(b"HTTP/1.1", b"HTTP/1.0"))
            data = await asyncio.to_thread(read_all, client)
            assert status_of(data) == 200
            assert data.endswith(b'{"stored":true}')


@pytest.mark.parametrize("kind", ["envelope", "lines", "chunked", "gzip"])
async def test_curl_is_understood(serve: Serve, tmp_path: Path, kind: str) -> None:
    """Debian's curl, with an agent's certificate; bodies over a megabyte make it ask first (100-continue)."""
    need(fetch.TOOLS)
    async with serve() as site:
        site.pair().write(tmp_path / "agent.crt", tmp_path / "agent.key")
        body = tmp_path / "body"
        lines = b'{"m":"' + b"x" * 1000 + b'"}\n'
        data = {"envelope": envelope(), "lines": lines * 2000, "chunked": lines * 2000, "gzip": lines}[kind]
        body.write_bytes(gzip.compress(data) if kind == "gzip" else data)
        headers = [f"Content-Type: {routes.ENVELOPE_TYPE if kind == 'envelope' else routes.NDJSON_TYPE}"]
        headers += {"gzip": ["Content-Encoding: gzip"], "chunked": ["Transfer-Encoding: chunked"]}.get(kind, [])
        command = [str(fetch.TOOLS.path("usr/bin/curl")), "-sS", "--fail-with-body"]
        command += ["--cacert", "ca.crt", "--cert", "agent.crt", "--key", "agent.key"]
        command += [part for header in headers for part in ("-H", header)]
        command += ["--data-binary", f"@{body}", f"{site.url}{routes.BATCHES}"]
        environment = fetch.together(fetch.TOOLS)
        done = await asyncio.to_thread(
            subprocess.run, command, cwd=tmp_path, capture_output=True, timeout=WAIT_SECONDS, env=environment
        )
        assert (done.returncode, done.stdout, done.stderr) == (0, b'{"stored":true}', b"")
        assert len(site.disk.batches) == 1


# ---- large answers, slow readers


async def test_a_large_answer_arrives_whole_at_a_slow_reader(serve: Serve) -> None:
    """16 MiB through a small window; meanwhile little is encrypted ahead, and others are served."""
    bundle = bytes(range(256)) * 65536
    async with serve() as site:
        site.fleet.policies[AGENT] = bundle
        with await site.raw() as client, await site.raw() as other:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
            client.sendall(request(method="GET", path=routes.POLICY))
            other.sendall(request(events(1)))
            assert status_of((await asyncio.to_thread(read_responses, other, 1))[0]) == 200
            await until(lambda: any(one._waiting for one in site.input._server._open))
            for transport in site.input._server._open:
                assert transport._connection.unread_bytes < 128 << 10
            (response,) = await asyncio.to_thread(read_responses, client, 1)
            assert response[-len(bundle) :] == bundle, "not as it was"
            client.sendall(request(events(1)))
            assert status_of((await asyncio.to_thread(read_responses, client, 1))[0]) == 200


async def test_a_peer_that_does_not_read_its_answer_is_closed(serve: Serve) -> None:
    """And counted; its memory is given back."""
    async with serve(response_timeout=0.3) as site:
        site.fleet.policies[AGENT] = b"x" * (16 << 20)
        with await site.raw() as client:
            client.sendall(request(method="GET", path=routes.POLICY))
            await until(lambda: site.refused("response_timeout") == 1)
            await until(lambda: site.sample("nd_input_connections") == 0)
            await until(lambda: not site.input._server._open)


# ---- endings


async def test_what_was_sent_whole_before_the_end_is_stored(serve: Serve) -> None:
    """A peer that closes its side at once gets no answer; its batch is there all the same."""
    async with serve() as site:
        for _ in range(5):
            with await site.raw() as client:
                client.sendall(request(events(1)))
                with contextlib.suppress(ssl.SSLError, OSError):
                    client.settimeout(0)
                    client.unwrap()
        await until(lambda: len(site.disk.batches) == 5)
        await until(lambda: site.sample("nd_input_connections") == 0)


async def test_a_body_that_breaks_off_leaves_nothing(serve: Serve) -> None:
    """No event, no place taken, no traceback."""
    async with serve(requests_per_agent=1) as site:
        for reset in (True, False):
            with await site.raw() as client:
                client.sendall(request(events(100))[:-10])
                await until(lambda: len(site.input._server._open) == 1)
                if reset:
                    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            await until(lambda: site.sample("nd_input_connections") == 0)
        async with site.client() as client:
            assert (await post(client, envelope()))[0] == 200
        assert len(site.disk.batches) == 1


async def test_an_answer_to_a_body_that_is_too_large_arrives(serve: Serve) -> None:
    """At a client that sends all of it first: it is read on for a while, a reset would destroy the answer."""
    async with serve(max_body_bytes=4096) as site:
        with await site.raw() as client:
            await asyncio.to_thread(client.sendall, request(b"x" * (2 << 20)))
            assert status_of((await asyncio.to_thread(read_responses, client, 1))[0]) == 413


async def test_a_refused_body_that_comes_to_its_end_leaves_a_good_connection(serve: Serve) -> None:
    """What is read and thrown away after the answer is no header that drips."""
    async with serve(header_timeout=0.3) as site:
        with await site.raw(None) as client:
            data = request(b"x" * 100_000)
            client.sendall(data[:50_000])
            assert status_of((await asyncio.to_thread(read_responses, client, 1))[0]) == 401
            for start in range(50_000, len(data), 20_000):
                client.sendall(data[start : start + 20_000])
                await asyncio.sleep(0.1)
            await asyncio.sleep(0.6)
            client.sendall(request(method="GET", path="/"))
            assert status_of((await asyncio.to_thread(read_responses, client, 1))[0]) == 404
        assert site.refused("request_timeout") == 0


# ---- bad faith


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01\x00\x00rubbish\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nA" + b"x" * 9000 + b": y\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\n" + b"A: b\r\n" * 200 + b"\r\n",
        b"GET /" + b"x" * 9000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST /agents/v1/batches HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        b"POST /agents/v1/batches HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nxx",
    ],
    ids=map(str, range(8)),
)
async def test_what_is_no_http_is_answered_400_and_closed(
    serve: Serve, data: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """And not a word in the journal: scans are many."""
    async with serve() as site:
        with await site.raw() as client:
            client.sendall(data)
            answer = await asyncio.to_thread(read_all, client)
        assert status_of(answer) == 400
        assert b'"remedy"' in answer
        assert site.answered("other", 400) == 1
    assert not [record for record in caplog.records if record.levelname in ("WARNING", "ERROR")]


async def test_chunks_that_make_no_sense_are_given_up(serve: Serve) -> None:
    """At once where they come with their header; else aiohttp leaves the body without an end, and its time runs out."""
    head = f"POST {routes.BATCHES} HTTP/1.1\r\nHost: x\r\nContent-Type: {routes.NDJSON_TYPE}\r\n"
    head += "Transfer-Encoding: chunked\r\n\r\n"
    async with serve(body_timeout=0.3) as site:
        with await site.raw() as client:
            client.sendall(head.encode() + b"zz\r\n")
            assert status_of(await asyncio.to_thread(read_all, client)) == 400
        with await site.raw() as client:
            client.sendall(head.encode())
            await until(lambda: any(one.busy for one in site.input._server._open))
            client.sendall(b"zz\r\n")
            assert status_of((await asyncio.to_thread(read_responses, client, 1))[0]) == 408
        assert site.disk.asked == 0


async def test_a_header_that_drips_is_given_up(serve: Serve) -> None:
    """Also the second one of a connection; silence between requests is something else."""
    async with serve(header_timeout=0.3) as site:
        with await site.raw() as quiet, await site.raw() as client:
            client.sendall(request(events(1)))
            await asyncio.to_thread(read_responses, client, 1)
            client.sendall(b"POST / HT")
            await until(lambda: site.refused("request_timeout") == 1)
            assert await asyncio.to_thread(read_all, client) == b""
            quiet.sendall(request(events(1)))
            assert status_of((await asyncio.to_thread(read_responses, quiet, 1))[0]) == 200


async def test_a_body_that_drips_is_given_up(serve: Serve) -> None:
    """A byte now and then does not keep a place: 408, whatever each single wait was."""
    async with serve(body_timeout=0.3, body_bytes_per_second=100_000) as site:
        with await site.raw() as client:
            client.sendall(request(events(50))[:-50])
            answer = asyncio.create_task(asyncio.to_thread(read_responses, client, 1))
            while not answer.done():
                with contextlib.suppress(OSError):
                    client.sendall(b" ")
                await asyncio.sleep(0.05)
            assert status_of((await answer)[0]) == 408
        assert site.answered("batches", 408) == 1


async def test_a_slow_but_steady_body_is_taken(serve: Serve) -> None:
    """What keeps the pace may take longer than body_timeout."""
    async with serve(body_timeout=0.3, body_bytes_per_second=1000) as site:
        with await site.raw() as client:
            data = request(events(50))
            loop = asyncio.get_running_loop()
            began = loop.time()
            for start in range(0, len(data), 400):
                client.sendall(data[start : start + 400])
                await asyncio.sleep(0.1)
            assert loop.time() - began > 0.5
            assert status_of((await asyncio.to_thread(read_responses, client, 1))[0]) == 200


async def test_an_idle_connection_ends_after_keepalive_timeout(serve: Serve) -> None:
    """With close_notify, before and after a request."""
    async with serve(keepalive_timeout=0.3) as site:
        with await site.raw() as fresh, await site.raw() as client:
            client.sendall(request(events(1)))
            await asyncio.to_thread(read_responses, client, 1)
            assert await asyncio.to_thread(client.recv, 10) == b""
            assert await asyncio.to_thread(fresh.recv, 10) == b""
        await until(lambda: site.sample("nd_input_connections") == 0)


# ---- the table of routes


@pytest.mark.parametrize(
    ("method", "path", "expected"),
    [
        ("GET", "/", 404),
        ("POST", "/agents/v1/batches/", 404),
        ("POST", "//agents/v1/batches", 404),
        ("GET", "/agents/v1/../../etc/passwd", 404),
        ("GET", "/%00", 404),
        ("GET", routes.BATCHES, 405),
        ("PUT", routes.BATCHES, 405),
        ("POST", routes.POLICY, 405),
        ("OPTIONS", routes.STATUS, 405),
        ("HEAD", routes.POLICY, 405),
    ],
)
async def test_other_paths_are_404_and_other_methods_405(serve: Serve, method: str, path: str, expected: int) -> None:
    """With JSON that says so; a 405 names the method that would do."""
    async with serve() as site:
        with await site.raw() as client:
            client.sendall(request(method=method, path=path, more="Connection: close\r\n"))
            answer = await asyncio.to_thread(read_all, client)
        assert status_of(answer) == expected
        assert (b"\r\nAllow: " in answer) == (expected == 405)


@pytest.mark.parametrize(
    ("method", "path"), [("POST", routes.BATCHES), ("GET", routes.POLICY), ("POST", routes.STATUS)]
)
async def test_every_agents_route_needs_a_certificate(serve: Serve, method: str, path: str) -> None:
    """401 that says what to do; nothing reaches the spool or the fleet."""
    async with serve() as site:
        (response,) = await talk(site, request(events(1), method=method, path=path), agent_id=None)
        assert status_of(response) == 401
        assert b'"remedy":"enrol first' in response
        assert site.disk.asked == 0
        assert site.fleet.heard == []
