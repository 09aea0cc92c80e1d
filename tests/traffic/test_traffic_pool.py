"""One exchange after another: which endpoint, how many at a time, what the chain hears, what is done beside them."""

import asyncio
import logging
from collections import Counter

import pytest
from http_far_side import Act, FarSide, Received, answer, far_side, says, silence, until
from pools import POST, pool, refusal, requests_of

from ndagent.core.discovery import Found, Srv
from ndagent.core.interfaces import Unavailable
from ndagent.core.metrics import Metrics
from ndcollector.traffic import members
from ndcollector.traffic.config import HttpOutputConfig
from ndcollector.traffic.discovery import Discovery, Target
from ndcollector.traffic.request import Request
from ndcollector.traffic.resolving import Resolver


async def test_the_request_arrives_as_it_was_made() -> None:
    """Method, path behind the URL's own, query as it stands, fields and body."""
    async with far_side(lambda _: answer(201, b"yes", X_Told="1")) as server, pool(server.url + "/base/") as made:
        found = await made(Request("PUT", "/in?a=%2F&b=+", b"body", {"Content-Type": "text/plain"}))
    [got] = server.requests
    assert (got.method, got.path, got.body) == ("PUT", "/base/in?a=%2F&b=+", b"body")
    assert got.headers["content-type"] == "text/plain"
    assert (found.status, found.body, found.headers["x-told"]) == (201, b"yes", "1")


async def test_without_a_path_the_url_is_as_written() -> None:
    """A trailing slash makes a difference to many servers, and a query may be all that there is."""
    async with far_side() as server, pool(server.url + "/in/?key=1") as made:
        await made(Request("POST", ""))
    assert server.requests[0].path == "/in/?key=1"


async def test_retry_after_reaches_the_chain_only_when_no_endpoint_is_left() -> None:
    """The shortest of them, an absurd one bounded; until then the others work."""
    async with far_side() as first, far_side() as second, pool(first.url, second.url) as made:
        first.reply = lambda _: answer(429, Retry_After="99999999999")
        assert (await made(POST)).endpoint == second.url
        second.reply = lambda _: answer(503, Retry_After="30")
        error = await refusal(made)
        assert 29 < (error.retry_after_seconds or 0) <= 30
        assert len(first.requests) == 1  # it asked for a pause and has it
        assert "it asked to be left alone for 3600s more" in error.reason
        second.reply = lambda _: answer(200)


async def test_an_absurd_retry_after_of_the_only_endpoint_is_an_hour() -> None:
    """Nobody would be there to correct it."""
    async with far_side(lambda _: answer(429, Retry_After="31536000")) as server, pool(server.url) as made:
        assert 3599 < ((await refusal(made)).retry_after_seconds or 0) <= 3600


async def test_a_plain_failure_leaves_the_wait_to_the_chain() -> None:
    """Its full jitter is better than a number of ours."""
    async with far_side(lambda _: answer(500)) as server, pool(server.url) as made:
        for _ in range(5):
            assert (await refusal(made)).retry_after_seconds is None
        assert len(server.requests) == 3  # then its breaker is open, and nothing is sent


async def test_requests_at_a_time_are_bounded_and_the_others_wait() -> None:
    """For a place, in this endpoint or in another one."""
    release = asyncio.Event()

    async def hold(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await release.wait()
        writer.write(answer(200, Connection="close"))
        await writer.drain()

    places = {"maximum": 2, "adaptive": False}
    async with (
        far_side(lambda _: hold) as a,
        far_side(lambda _: hold) as b,
        pool(a.url, b.url, balance="least_outstanding", concurrency=places) as made,
    ):
        sending = [asyncio.ensure_future(made(POST)) for _ in range(10)]
        await until(lambda: a.under_way == b.under_way == 2)
        await asyncio.sleep(0.05)
        assert (a.most_under_way, b.most_under_way) == (2, 2)
        release.set()
        await asyncio.gather(*sending)
    assert (a.most_under_way, b.most_under_way) == (2, 2)
    assert len(a.requests) + len(b.requests) == 10


async def test_while_one_request_tries_an_endpoint_again_the_others_wait_for_its_outcome() -> None:
    """They neither storm it nor fail for that."""
    release = asyncio.Event()

    async def hold(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await release.wait()
        writer.write(answer(200, Connection="close"))
        await writer.drain()

    breaker = {"failures": 1, "open_for": "50ms"}
    async with far_side(lambda _: answer(500)) as server, pool(server.url, endpoint_breaker=breaker) as made:
        await refusal(made)
        server.reply = lambda _: hold
        await asyncio.sleep(0.06)  # open_for
        sending = [asyncio.ensure_future(made(POST)) for _ in range(5)]
        await until(lambda: server.under_way)
        await asyncio.sleep(0.05)
        assert len(server.requests) == 2
        release.set()
        assert [found.status for found in await asyncio.gather(*sending)] == [200] * 5


async def test_a_hedge_goes_elsewhere_and_the_first_answer_counts() -> None:
    """Only for what may arrive twice; the slow one is given up and not blamed."""
    metrics = Metrics()
    idempotent = Request("POST", "", b"events", idempotent=True)
    async with (
        far_side(lambda _: silence) as slow,
        far_side(lambda _: answer(200)) as quick,
        pool(slow.url, quick.url, hedge={"after": "30ms"}, metrics=metrics, request_timeout="2s") as made,
    ):
        assert (await made(idempotent)).endpoint == quick.url
        assert metrics.registry.get_sample_value("nd_output_hedged_requests_total", {"output": "siem"}) == 1
        assert (requests_of(metrics, "withdrawn"), requests_of(metrics, "failed")) == (1, 0)
        assert (await made(POST)).endpoint == quick.url  # after request_timeout at the slow one
        assert metrics.registry.get_sample_value("nd_output_hedged_requests_total", {"output": "siem"}) == 1
    assert len(slow.requests) == 2


async def test_a_conflict_that_a_hedge_meets_is_no_answer() -> None:
    """409 says that the first request is still being worked on: its answer is the one to wait for."""
    met = asyncio.Event()

    async def late(_reader: object, writer: asyncio.StreamWriter) -> None:
        await met.wait()
        writer.write(answer(200, b"done", Connection="close"))
        await writer.drain()

    def conflict(_request: Received) -> bytes:
        asyncio.get_running_loop().call_later(0.05, met.set)
        return answer(409)

    idempotent = Request("POST", "", b"events", idempotent=True)
    async with (
        far_side(lambda _: late) as first,
        far_side(conflict) as second,
        pool(first.url, second.url, hedge={"after": "10ms"}) as made,
    ):
        assert (await made(idempotent)).body == b"done"
        first.reply = conflict
        assert (await made(idempotent)).status == 409


async def test_a_hedge_that_finds_nobody_leaves_the_first_alone() -> None:
    """One endpoint: there is nowhere else to go; and when all fail, that is what is said."""
    idempotent = Request("POST", "", b"events", idempotent=True)
    async with far_side(lambda _: says(answer(200, b"late"))) as only, pool(only.url, hedge={"after": "1ms"}) as made:
        assert (await made(idempotent)).body == b"late"
    both_asked = asyncio.Barrier(2)

    def says_then(status: int) -> Act:
        async def act(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await both_asked.wait()
            await says(answer(status))(reader, writer)

        return act

    async with (
        far_side(lambda _: says_then(500)) as a,
        far_side(lambda _: says_then(502)) as b,
        pool(a.url, b.url, hedge={"after": "1ms"}) as made,
    ):
        reason = (await refusal(made, idempotent)).reason
        assert "answered 500" in reason
        assert "answered 502" in reason


async def test_health_checks_say_who_gets_requests() -> None:
    """Without a single request that failed; nothing of our credentials is shown to them."""
    asked: Counter[str] = Counter()

    def reply(status: int) -> object:
        def say(request: Received) -> bytes:
            asked[request.method] += 1
            assert "authorization" not in request.headers or request.method == "POST"
            return answer(status if request.path == "/ready" else 200)

        return say

    async with far_side(reply(500)) as sick, far_side(reply(200)) as well:  # type: ignore[arg-type]
        health = {"path": "/ready", "every": "100ms", "failures": 1}
        login = {"bearer": {"token": "secret"}}
        async with pool(sick.url + "/in", well.url + "/in", health=health, credentials=login) as made:
            await made(Request("POST", ""))  # checks begin
            await until(lambda: any(one.path == "/ready" for one in sick.requests))
            await until(lambda: asked["GET"] >= 4)
            assert {(await made(Request("POST", ""))).endpoint for _ in range(5)} == {well.url}
            await sick.stop()
            well.reply = lambda _: answer(404)
            await until(lambda: len(well.requests) > 20)
            assert (await made(Request("POST", ""))).status == 404  # all fail their check: requests go on all the same


async def test_an_outlier_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    """A fifth of a second longer than its peers on each request, and no error at all."""

    async def slow(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.2)
        writer.write(answer(200, Connection="close"))
        await writer.drain()

    outliers = {"every": "500ms", "requests": 2, "latency_factor": 2}
    async with (
        far_side(lambda _: slow) as bad,
        far_side() as a,
        far_side() as b,
        pool(bad.url, a.url, b.url, balance="round_robin", outliers=outliers) as made,
        asyncio.timeout(60),
    ):
        while "left out" not in caplog.text:
            await made(POST)
        before = len(bad.requests)
        for _ in range(20):
            await made(POST)
        assert len(bad.requests) == before
    assert f"endpoint {bad.url} is left out for 30s: its requests take 0." in caplog.text


class Dns:
    """What name servers say, as a test writes it down; `asked` counts."""

    def __init__(self, addresses: list[str] | None = None, services: list[Srv] | None = None) -> None:
        self.addresses_ = addresses
        self.services_ = services
        self.ttl_seconds = 0.05
        self.asked = 0

    async def addresses(self, _host: str) -> Found[str]:
        self.asked += 1
        if self.addresses_ is None:
            raise OSError("no such name")
        return Found(list(self.addresses_), self.ttl_seconds)

    async def services(self, _name: str) -> Found[Srv]:
        self.asked += 1
        if self.services_ is None:
            raise OSError("no such name")
        return Found(list(self.services_), self.ttl_seconds)

    def discovery(self, **settings: object) -> Discovery:
        config = HttpOutputConfig(type="test", **settings)
        clock = asyncio.get_running_loop().time
        log = logging.getLogger("siem")
        return Discovery(config, log=log, clock=clock, addresses=self.addresses, services=self.services)


async def test_an_output_that_closes_late_leaves_its_successors_figures_alone() -> None:
    """After a reload both have the same labels: the old one's go before anything is waited for."""
    hangs, released = asyncio.Event(), asyncio.Event()
    answers = [Found(["127.0.0.1"], 0.0)]

    async def addresses(_host: str) -> Found[str]:
        if answers:
            return answers.pop()
        hangs.set()
        try:
            await released.wait()
        except asyncio.CancelledError:
            await released.wait()  # as on a dead mount
            raise
        raise OSError("no such name")

    metrics = Metrics()
    async with far_side() as server, asyncio.timeout(20):
        url = f"http://siem.example:{server.port}"
        config = HttpOutputConfig(type="test", url=url, discovery="dns")
        log, clock = logging.getLogger("siem"), asyncio.get_running_loop().time
        hanging = Discovery(config, log=log, clock=clock, addresses=addresses)
        well = Dns(["127.0.0.1"]).discovery(url=url, discovery="dns")
        async with pool(url, metrics=metrics, discovery=hanging) as old:
            await old(POST)
            await hangs.wait()
            closing = asyncio.create_task(old.aclose())
            await asyncio.sleep(0)
            async with pool(url, metrics=metrics, discovery=well) as new:
                await new(POST)
                released.set()
                await closing
                assert requests_of(metrics, "answered") == 1
            assert requests_of(metrics, "answered") == 0


async def test_every_address_of_a_name_is_an_endpoint_and_changes_are_followed() -> None:
    """Asked again when the TTL has passed, beside the sends; who is gone gets nothing more."""
    async with far_side() as server:
        url = f"http://siem.example:{server.port}"
        dns = Dns(["127.0.0.1"])
        metrics = Metrics()
        discovery = dns.discovery(url=url, discovery="dns")
        async with pool(url, discovery=discovery, metrics=metrics) as made:
            assert (await made(POST)).endpoint == f"{url} (127.0.0.1)"
            assert server.requests[0].headers["host"] == f"siem.example:{server.port}"
            dns.addresses_ = ["127.0.0.1", "127.0.0.2"]
            labels = {"output": "siem", "endpoint": f"{url} (127.0.0.2)"}
            await until(lambda: metrics.registry.get_sample_value("nd_output_endpoint_state", labels) is not None)
            dns.addresses_ = ["127.0.0.2"]
            labels["endpoint"] = f"{url} (127.0.0.1)"
            await until(lambda: metrics.registry.get_sample_value("nd_output_endpoint_state", labels) is None)
            assert "127.0.0.2" in (await refusal(made)).reason


async def test_an_endpoint_that_left_while_a_token_was_renewed_is_not_asked_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its connections are closed by then: the refusal stands, and the request is made again elsewhere."""
    monkeypatch.setattr(members, "_MARGIN_SECONDS", 0.0)
    dns, known = Dns(["127.0.0.1"]), asyncio.Event()

    async def renewed(_refused: object) -> bool:
        await known.wait()
        return True

    async with far_side(lambda _: answer(401)) as server:
        url = f"http://siem.example:{server.port}"
        discovery = dns.discovery(url=url, discovery="dns")
        async with pool(url, discovery=discovery, request_timeout="300ms") as made:
            monkeypatch.setattr(made._credentials, "renewed", renewed)
            asking = asyncio.ensure_future(made(POST))
            await until(lambda: server.requests)
            (old,) = made._members
            dns.addresses_ = ["127.0.0.9"]
            await until(lambda: old not in made._members._connections)
            known.set()
            assert (await asking).status == 401
    assert len(server.requests) == 1


async def test_dns_that_returns_nothing_is_unavailable_and_is_asked_again() -> None:
    """With a remedy; and the next exchange finds it there."""
    async with far_side() as server:
        url = f"http://siem.example:{server.port}"
        dns = Dns(None)
        async with pool(url, discovery=dns.discovery(url=url, discovery="dns")) as made:
            assert "DNS knows no address of it; check DNS, or the host in url" in (await refusal(made)).reason
            dns.addresses_ = []
            assert "DNS knows no address" in (await refusal(made)).reason
            dns.addresses_ = ["127.0.0.1"]
            assert (await made(POST)).status == 200


async def test_addresses_of_a_family_that_dns_says_nothing_of_stay() -> None:
    """One lost answer of two: the other family may have no route from here. What is said to be gone, goes."""
    said = [
        Found(["10.0.0.1", "fd00::1"], 60.0),
        Found(["fd00::2"], 30.0, (4,)),
        Found(["fd00::2"], 60.0),
    ]

    async def addresses(_host: str) -> Found[str]:
        return said.pop(0)

    config = HttpOutputConfig(type="test", url="http://both", discovery="dns")
    log, clock = logging.getLogger("siem"), asyncio.get_running_loop().time
    discovery = Discovery(config, log=log, clock=clock, addresses=addresses)
    found = [[one.address for one in (await discovery.targets()).values] for _ in range(3)]
    assert found == [["10.0.0.1", "fd00::1"], ["10.0.0.1", "fd00::2"], ["fd00::2"]]


async def test_names_are_looked_up_together() -> None:
    """One after the other, a dozen names that time out would take longer than a send may."""
    asked: list[str] = []
    all_asked = asyncio.Event()

    async def addresses(host: str) -> Found[str]:
        asked.append(host)
        if len(asked) == 3:
            all_asked.set()
        await all_asked.wait()
        return Found(["127.0.0.1"], 60.0 if host == "b" else 600.0)

    config = HttpOutputConfig(type="test", urls=["http://a", "http://b", "http://c"], discovery="dns")
    log, clock = logging.getLogger("siem"), asyncio.get_running_loop().time
    async with asyncio.timeout(10):
        found = await Discovery(config, log=log, clock=clock, addresses=addresses).targets()
    assert [one.url for one in found.values] == ["http://a", "http://b", "http://c"]
    assert found.ttl_seconds == 60.0


async def test_dns_that_goes_away_or_hangs_changes_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """The last known addresses stay in use, said once; a look-up that hangs holds up no request."""
    async with far_side() as server:
        url = f"http://siem.example:{server.port}"
        dns = Dns(["127.0.0.1"])
        discovery = dns.discovery(url=url, discovery="dns")
        async with pool(url, discovery=discovery) as made:
            await made(POST)
            dns.addresses_ = None
            before = dns.asked
            found = await discovery.targets()
            assert found.values == [Target(url, "127.0.0.1")]
            await until(lambda: dns.asked > before)
            assert (await made(POST)).status == 200
            assert caplog.text.count("cannot be resolved (no such name); what it stood for last stays in use") == 1


async def test_srv_records_give_hosts_ports_priorities_and_weights() -> None:
    """The spare one is used while the main one is down, and the certificate's name would be the record's host."""
    main, spare = FarSide(), FarSide()
    await main.start()
    await spare.start()
    dns = Dns(services=[Srv(20, 0, "localhost", spare.port), Srv(10, 5, "localhost", main.port)])
    url = "http://_siem._tcp.example.net/in"
    discovery = dns.discovery(url=url, discovery="srv")
    async with pool(url, discovery=discovery, balance="least_outstanding") as made:
        assert {(await made(POST)).endpoint for _ in range(3)} == {main.url}
        assert main.requests[0].path == "/in/in"
        await main.stop()
        assert (await made(POST)).endpoint == spare.url
    await spare.stop()


async def test_a_new_connection_uses_known_addresses_while_dns_hangs() -> None:
    """Static URLs too: the system's look-up runs beside the sends once it has succeeded."""
    now = 0.0
    hang = asyncio.Event()
    looked = 0

    async def resolve(_host: str, _port: int) -> list[str]:
        nonlocal looked
        looked += 1
        if looked > 1:
            await hang.wait()
        if looked == 3:
            raise OSError("gone")
        return [f"127.0.0.{looked}"]

    resolver = Resolver(None, clock=lambda: now, resolve=resolve)
    assert [one["host"] for one in await resolver.resolve("siem", 1)] == ["127.0.0.1"]
    now = 100.0
    for _ in range(3):
        assert [one["host"] for one in await resolver.resolve("siem", 1)] == ["127.0.0.1"]
    assert looked <= 2
    hang.set()
    await until(lambda: looked == 2)
    await asyncio.sleep(0)
    assert [one["host"] for one in await resolver.resolve("siem", 1)] == ["127.0.0.2"]
    now = 200.0
    await resolver.resolve("siem", 1)
    await until(lambda: looked == 3)
    assert [one["host"] for one in await resolver.resolve("siem", 1)] == ["127.0.0.2"]
    await resolver.close()


async def test_connections_that_are_opened_together_ask_dns_once() -> None:
    """The system's look-ups share a few threads with those of all other outputs; who gives up takes nobody along."""
    answered = asyncio.Event()
    looked = 0

    async def resolve(_host: str, _port: int) -> list[str]:
        nonlocal looked
        looked += 1
        await answered.wait()
        if looked == 1:
            raise OSError("not now")
        return ["127.0.0.1"]

    resolver = Resolver(None, clock=lambda: 0.0, resolve=resolve)
    asking = [asyncio.ensure_future(resolver.resolve("siem", 1)) for _ in range(8)]
    await asyncio.sleep(0)
    asking.pop().cancel()
    await asyncio.sleep(0)
    answered.set()
    assert {str(one) for one in await asyncio.gather(*asking, return_exceptions=True)} == {"not now"}
    assert looked == 1
    assert [one["host"] for one in await resolver.resolve("siem", 1)] == ["127.0.0.1"]
    await resolver.close()


async def test_a_name_that_dns_cannot_have_is_unavailable() -> None:
    """Not a crash of the resolver."""
    async with pool("http://a..b/") as made:
        assert "cannot be resolved" in (await refusal(made)).reason


async def test_closing_amid_everything_leaves_nothing() -> None:
    """Requests under way, checks, look-ups; twice; and before the first request."""
    before = asyncio.all_tasks()
    async with far_side(lambda _: silence) as server:
        url = f"http://siem.example:{server.port}"
        discovery = Dns(["127.0.0.1"]).discovery(url=url, discovery="dns")
        async with pool(url, discovery=discovery, health={"path": "/", "every": "100ms"}) as made:
            await made.aclose()
            sending = asyncio.ensure_future(made(POST))
            await until(lambda: server.requests)
            sending.cancel()
            await made.aclose()
            with pytest.raises((asyncio.CancelledError, Unavailable)):
                await sending
            await made.aclose()
        await server.stop()
        await until(lambda: asyncio.all_tasks() == before)
