"""The life of connections and of the input: reloads, revocation, limits, and a stop that answers what is under way."""

import asyncio
import contextlib
import time

import pytest
from https_site import (
    AGENT,
    OTHER,
    Serve,
    envelope,
    events,
    post,
    read_all,
    read_responses,
    request,
    status_of,
    until,
)  # fmt: skip
from tls_peers import wait_refused

from ndagent.wire import routes


async def test_new_certificates_are_taken_up_and_connections_stay(serve: Serve) -> None:
    """The old connection goes on, a new one sees the new certificate."""
    async with serve() as site, site.client(limit=1) as client:
        assert (await post(client, envelope()))[0] == 200
        with await site.raw() as before:
            serial = before.getpeercert()["serialNumber"]
        site.files.server = site.files.authority.issue(
            "collector", names=["DNS:localhost"], usage=[site.files.server.certificate.extensions[1].value._usages[0]]
        )
        site.files.write()
        assert site.contexts.reload()
        with await site.raw() as after:
            assert after.getpeercert()["serialNumber"] != serial
        accepted = site.sample("nd_input_accepted_connections_total")
        assert (await post(client, envelope(first=10)))[0] == 200
        assert site.sample("nd_input_accepted_connections_total") == accepted


async def test_a_revoked_agent_is_cut_off_within_five_seconds(serve: Serve) -> None:
    """On a live keep-alive connection, by the CRL alone; another agent's connection goes on; no new one gets in."""
    async with serve(crl=True) as site, site.client(OTHER, limit=1) as other:
        watching = asyncio.create_task(site.contexts.watch())
        assert (await post(other, envelope(agent_id=OTHER, spool_id="f" * 16)))[0] == 200
        with await site.raw() as client:
            client.sendall(request(events(1)))
            await asyncio.to_thread(read_responses, client, 1)
            context = site.context()
            began = time.monotonic()
            site.files.authority.revoke(site.pair())
            (site.directory / "new.crl").write_bytes(site.files.authority.crl())
            (site.directory / "new.crl").replace(site.directory / "ca.crl")  # as the pki command does it
            assert await asyncio.to_thread(read_all, client) == b""
            assert time.monotonic() - began < 5
        assert site.refused("certificate_revoked") == 1
        assert await asyncio.to_thread(wait_refused, context, site.port)
        accepted = site.sample("nd_input_accepted_connections_total")
        assert (await post(other, envelope(agent_id=OTHER, spool_id="f" * 16, first=10)))[0] == 200
        assert site.sample("nd_input_accepted_connections_total") == accepted
        watching.cancel()
        await asyncio.wait({watching})


async def test_an_agent_that_the_fleet_revokes_is_refused_on_its_live_connection(serve: Serve) -> None:
    """Before the CRL says so, or where the customer's PKI has none."""
    async with serve() as site, site.client(limit=1) as client:
        assert (await post(client, envelope()))[0] == 200
        site.fleet.refused[AGENT] = "revoked_agent"
        for path in (routes.BATCHES, routes.STATUS, routes.POLICY):
            method = "GET" if path == routes.POLICY else "POST"
            async with client.request(method, path, headers={"Content-Type": routes.NDJSON_TYPE}) as response:
                assert (response.status, (await response.json())["error"]) == (403, "revoked_agent")
        assert site.sample("nd_input_accepted_connections_total") == 1


async def test_a_fleet_that_cannot_answer_is_not_a_no(serve: Serve) -> None:
    """503: the agent keeps its batch and comes back."""
    async with serve() as site, site.client() as client:
        site.fleet.refused[AGENT] = "unavailable"
        async with client.post(
            routes.BATCHES, data=envelope(), headers={"Content-Type": routes.ENVELOPE_TYPE}
        ) as response:
            assert (response.status, response.headers["Retry-After"]) == (503, "1")
        assert site.fleet.audited == []


@pytest.mark.parametrize("names", [["URI:nd:device:fw-1"], ["URI:nd:server:c"], ["DNS:host"], []])
async def test_a_certificate_that_is_no_agents_gets_nowhere(serve: Serve, names: list[str]) -> None:
    """Not even to the routes that need none."""
    async with serve() as site:
        pair = site.files.authority.issue("x", names=names)
        assert await asyncio.to_thread(wait_refused, site.files.client(pair), site.port)
        assert site.refused("wrong_kind") == 1


async def test_one_agents_connections_are_limited_and_so_are_those_of_nobody(serve: Serve) -> None:
    """The limit itself still gets in; a place is free again once its connection is gone."""
    async with serve(connections_per_agent=2, connections_without_certificate=1) as site:
        with contextlib.ExitStack() as stack:
            for agent_id in (AGENT, AGENT, OTHER, None):
                stack.enter_context(await site.raw(agent_id))
            await until(lambda: len(site.input._server._open) == 4)
            assert await asyncio.to_thread(wait_refused, site.context(), site.port)
            assert await asyncio.to_thread(wait_refused, site.context(None), site.port)
            assert site.refused("too_many_from_agent") == 1
            assert site.refused("too_many_without_certificate") == 1
        await until(lambda: site.sample("nd_input_connections") == 0)
        with await site.raw() as client:
            client.sendall(request(events(1)))
            assert status_of((await asyncio.to_thread(read_responses, client, 1))[0]) == 200


# ---- the end


async def test_a_stop_answers_what_is_under_way_and_closes_what_is_idle(serve: Serve) -> None:
    """A batch that waits for the spool and one whose body is still coming are answered 200, the idle one is closed."""
    async with serve() as site:
        site.disk.room.clear()
        with await site.raw() as idle, await site.raw() as waiting, await site.raw(OTHER) as sending:
            waiting.sendall(request(events(1)))
            data = request(events(1000))
            sending.sendall(data[:2000])
            await until(lambda: site.disk.asked == 1 and site.input._server._under_way == 2)
            stopping = asyncio.create_task(site.stop())
            assert await asyncio.to_thread(read_all, idle) == b""
            assert await asyncio.to_thread(wait_refused, site.context(), site.port)
            sending.sendall(data[2000:])
            await until(lambda: site.disk.asked == 2)
            site.disk.room.set()
            for client in (waiting, sending):
                answer = await asyncio.to_thread(read_all, client)
                assert status_of(answer) == 200
                assert b"\r\nConnection: close\r\n" in answer
            await stopping
        assert len(site.disk.lines) == 1001


async def test_a_stop_refuses_what_comes_while_it_waits(serve: Serve) -> None:
    """A second request behind one under way: 503 where it is still read, closed in any case, stored in none."""
    async with serve() as site:
        site.disk.room.clear()
        with await site.raw() as client:
            client.sendall(request(events(1)) + request(events(1, first=2)))
            await until(lambda: site.disk.asked == 1)
            stopping = asyncio.create_task(site.stop())
            await until(lambda: site.input._server.stopping)
            site.disk.room.set()
            answer = await asyncio.to_thread(read_all, client)
            assert status_of(answer) == 200
            await stopping
        assert len(site.disk.batches) == 1


async def test_a_stop_does_not_wait_for_ever_for_a_spool_without_room(serve: Serve) -> None:
    """Whoever waits gets 503 and nothing of it is stored later: nobody was told that it is."""
    async with serve(drain_timeout=0.2) as site:
        site.disk.room.clear()
        with await site.raw() as client:
            client.sendall(request(events(1)))
            await until(lambda: site.disk.asked == 1)
            began = time.monotonic()
            stopping = asyncio.create_task(site.stop())
            answer = await asyncio.to_thread(read_all, client)
            assert status_of(answer) == 503
            assert b"\r\nRetry-After: 5\r\n" in answer
            await stopping
            assert time.monotonic() - began < 5
        site.disk.room.set()
        assert site.disk.batches == []


async def test_nothing_is_left_of_connections_that_are_gone(serve: Serve) -> None:
    """Two hundred, ended in every way: no transport, no place, no task stays."""
    async with serve() as site:
        tasks = len(asyncio.all_tasks())
        for number in range(50):
            with await site.raw() as client:
                if number % 4 == 1:
                    client.sendall(request(events(1)))
                    await asyncio.to_thread(read_responses, client, 1)
                elif number % 4 == 2:
                    client.sendall(request(events(9))[:-5])
                elif number % 4 == 3:
                    client.sendall(b"\0\r\n\r\n")
                    await asyncio.to_thread(read_all, client)
        await until(lambda: site.sample("nd_input_connections") == 0)
        await until(lambda: not site.input._server._open and not site.input._crowd._open)
        await until(lambda: len(asyncio.all_tasks()) <= tasks)


async def test_the_input_starts_again_after_a_stop(serve: Serve) -> None:
    """As the supervisor does it after a failure: on the same object."""
    async with serve() as site:
        await site.stop()
        site._running = asyncio.create_task(site.input.run(site.disk.accept))
        await until(lambda: bool(site.input.addresses))
        site.port = site.input.addresses[0].port
        async with site.client() as client:
            assert (await post(client, envelope()))[0] == 200
