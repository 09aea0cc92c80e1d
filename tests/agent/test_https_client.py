"""The agent's HTTPS client against real TLS servers and proxies, of all characters."""

import asyncio
import contextlib
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ndagent.https_client import Answer, HttpError, HttpsConnection, Place, Proxy, through_proxy
from tests.agent.tls_server import OK, Open, Site, Talk, head, relay, serving

WAIT_SECONDS = 20.0


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def to(
    site: Site, seen: Open, *, host: str = "localhost", seconds: float = WAIT_SECONDS, **more: object
) -> HttpsConnection:
    address = "127.0.0.1" if host == "localhost" else None
    place = Place(host, seen.port, address)
    return HttpsConnection(place, context=site.client, timeout_seconds=seconds, **more)  # type: ignore[arg-type]


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(WAIT_SECONDS):
        while not condition():
            await asyncio.sleep(0.005)


def says(*answers: bytes, then_close: bool = False) -> Talk:
    """Answers each request of a connection with the next of these, then is silent or closes."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for answer in answers:
            await head(reader)
            writer.write(answer)
        if not then_close:
            await reader.read()

    return talk


async def test_a_connection_is_kept_and_used_again(site: Site) -> None:
    """Three requests, one connection."""
    async with serving(says(OK, OK, OK), site.server) as seen:
        connection = to(site, seen)
        for _ in range(3):
            assert (await connection.request("POST", "/x", body=b"body")).body == b"ok"
        assert seen.connections == 1
        await connection.aclose()
        await connection.aclose()
        await until(lambda: seen.open == 0)


async def test_a_kept_connection_that_was_closed_meanwhile_is_opened_anew(site: Site) -> None:
    """The caller hears nothing of it."""
    async with serving(says(OK, then_close=True), site.server) as seen:
        connection = to(site, seen)
        for number in range(3):
            assert (await connection.request("GET", "/")).status == 200
            await until(lambda: seen.open == 0)
            assert seen.connections == number + 1
        await connection.aclose()


async def test_a_far_side_that_always_closes_is_told_after_one_more_try(site: Site) -> None:
    """One fresh connection, not a loop."""
    answers = iter([OK])

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while answer := next(answers, b""):
            await head(reader)
            writer.write(answer)

    async with serving(talk, site.server) as seen:
        connection = to(site, seen)
        await connection.request("GET", "/")
        with pytest.raises(HttpError, match=r"(?i)closed|complete|reset"):
            await connection.request("GET", "/")
        assert seen.connections == 2
        await until(lambda: seen.open == 0)


async def test_an_answer_of_close_is_not_followed_by_a_request_on_that_connection(site: Site) -> None:
    """Connection: close counts."""
    async with serving(says(OK.replace(b"Content", b"Connection: close\r\nContent"), OK), site.server) as seen:
        connection = to(site, seen)
        await connection.request("GET", "/")
        await connection.request("GET", "/")
        assert seen.connections == 2
        await connection.aclose()


SOUND = [
    (b"HTTP/1.1 100 Continue\r\n\r\n" + OK, 200, b"ok"),
    (b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 100 Continue\r\n\r\n" + OK, 200, b"ok"),
    (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n1;x=y\r\nc\r\n0\r\nT: 1\r\n\r\n", 200, b"abc"),
    (b"HTTP/1.1 204 No Content\r\n\r\n", 204, b""),
    (b'HTTP/1.1 304 Not Modified\r\nETag: "x"\r\n\r\n', 304, b""),
    (b"HTTP/1.1 302 Found\r\nLocation: https://elsewhere/\r\nContent-Length: 0\r\n\r\n", 302, b""),
    (b"HTTP/1.1 200 OK\r\nContent-Length: 64\r\n\r\n" + b"x" * 64, 200, b"x" * 64),
]


@pytest.mark.parametrize(("said", "status", "body"), SOUND, ids=range(len(SOUND)))
async def test_whatever_form_an_answer_has(site: Site, said: bytes, status: int, body: bytes) -> None:
    """Interim answers are passed over, chunks joined, redirects handed to the caller and not followed."""
    async with serving(says(said, OK), site.server) as seen:
        connection = to(site, seen, max_answer_bytes=64)
        answer = await connection.request("POST", "/", body=b"x")
        assert (answer.status, answer.body) == (status, body)
        assert (await connection.request("GET", "/")).body == b"ok"
        assert seen.connections == 1
        await connection.aclose()


BAD = [
    (b"HTTP/1.1 200 OK\r\nContent-Length: 65\r\n\r\n" + b"x" * 65, "more than 64 bytes"),
    (b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf", "closed|complete"),
    (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nff\r\nhalf", "closed|complete"),
    (b"HTTP/1.1 200 O", "closed|complete|illegal"),
    (b"\x15\x03\x01 garbage\r\n\r\n", "illegal|status line"),
    (b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 100_000, "too much|exceed|long|receive"),
    (b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n", "Content-Length"),
    (b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n", "."),
    (b"", "closed|complete"),
]


@pytest.mark.parametrize(("said", "words"), BAD, ids=range(len(BAD)))
async def test_what_is_no_answer_is_told_in_words_and_leaves_nothing_open(site: Site, said: bytes, words: str) -> None:
    """Too large, half, garbage, nothing: HttpError names the far side; the next request has a new connection."""
    async with serving(says(said, then_close=True), site.server) as seen:
        connection = to(site, seen, max_answer_bytes=64)
        with pytest.raises(HttpError, match=rf"(?i)^localhost:{seen.port}.*({words})"):
            await connection.request("GET", "/")
        await until(lambda: seen.open == 0)
        assert seen.connections == 1


async def test_silence_ends_in_time_and_leaves_nothing_open(site: Site) -> None:
    """Also one that only sends interim answers, and one that drips."""

    async def drips(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await head(reader)
        while not (reader.at_eof() or writer.is_closing()):  # a reset connection has no end of file
            writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            await asyncio.sleep(0.01)

    for talk in (says(b""), drips):
        async with serving(talk, site.server) as seen:
            with pytest.raises(HttpError, match=r"no answer within 0\.3 s"):
                await to(site, seen, seconds=0.3).request("GET", "/")
            await until(lambda seen=seen: seen.open == 0)


async def test_nobody_that_greets_costs_the_connect_timeout_only(site: Site) -> None:
    """A listener that takes the connection and says nothing: TLS never begins."""

    async def mute(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
        while await reader.read(1000):
            pass

    async with serving(mute) as seen:
        with pytest.raises(HttpError, match=r"no connection within 0\.2 s"):
            await to(site, seen, connect_timeout_seconds=0.2).request("GET", "/")
        await until(lambda: seen.open == 0)


async def test_a_cancelled_request_leaves_no_half_used_connection(site: Site) -> None:
    """Cut at every moment of a request; the next request is answered by its own answer."""

    async def numbers(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            path = (await head(reader)).split()[1]
            await asyncio.sleep(0.002)
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(path) + path)

    async with serving(numbers, site.server) as seen:
        connection = to(site, seen)
        for number in range(40):
            cut = asyncio.ensure_future(connection.request("GET", f"/cut{number}"))
            await asyncio.sleep(number * 0.0004)
            cut.cancel()
            await asyncio.gather(cut, return_exceptions=True)
            assert (await connection.request("GET", f"/{number}")).body == b"/%d" % number
        await connection.aclose()
        await until(lambda: seen.open == 0)


async def test_an_early_refusal_is_heard_although_the_body_was_not_read(site: Site) -> None:
    """413 before 4 MiB have gone out."""

    async def refuses(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 413 Too Large\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
        await asyncio.sleep(WAIT_SECONDS)

    async with serving(refuses, site.server) as seen:
        answer = await to(site, seen).request("POST", "/", body=bytes(4 << 20))
        assert answer.status == 413


async def test_refusals_of_tls_are_told_in_words(site: Site, tmp_path: Path) -> None:
    """A stranger's certificate, another name, no certificate of ours where one is asked for, no TLS at all."""
    (tmp_path / "other").mkdir()
    stranger = Site(tmp_path / "other")
    async with serving(says(OK), stranger.server) as seen:
        with pytest.raises(HttpError, match=r"not trusted.*is this the right collector"):
            await to(site, seen).request("GET", "/")
    async with serving(says(OK), site.server) as seen:
        place = Place("elsewhere.example", seen.port, "127.0.0.1")
        with pytest.raises(HttpError, match=r"not trusted.*[Hh]ostname"):
            await HttpsConnection(place, context=site.client, timeout_seconds=WAIT_SECONDS).request("GET", "/")
    (tmp_path / "strict").mkdir()
    strict = Site(tmp_path / "strict", certificate_required=True)
    async with serving(says(OK), strict.server) as seen:
        with pytest.raises(HttpError, match=r"refused our certificate or TLS|closed"):
            await to(strict, seen).request("GET", "/")

    async def plain(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(OK)
        await reader.read()

    async with serving(plain) as seen:
        with pytest.raises(HttpError, match="TLS failed"):
            await to(site, seen).request("GET", "/")


async def test_nobody_there_is_told_in_words(site: Site) -> None:
    """A closed port, and a name that DNS cannot have."""
    async with serving(says(OK), site.server) as seen:
        pass
    with pytest.raises(HttpError, match=f"^localhost:{seen.port} .*(refused|Connect call failed)"):
        await to(site, seen).request("GET", "/")
    with pytest.raises(HttpError, match=r"^a\.\.b:1: "):
        await HttpsConnection(Place("a..b", 1), context=site.client, timeout_seconds=5).request("GET", "/")


async def test_an_ipv6_literal(site: Site) -> None:
    """In brackets where HTTP wants them, without them where TLS does."""
    heads: list[bytes] = []

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append(await head(reader))
        writer.write(OK)
        await reader.read()

    async with serving(talk, site.server, host="::1") as seen:
        connection = HttpsConnection(Place.parse(f"[::1]:{seen.port}"), context=site.client, timeout_seconds=5)
        assert (await connection.request("GET", "/")).status == 200
        assert f"Host: [::1]:{seen.port}".encode().lower() in heads[0].lower()
        await connection.aclose()


# ---- proxies


async def test_through_a_proxy(site: Site) -> None:
    """CONNECT with host and port of the collector, its credentials, then TLS with the collector itself."""
    heads: list[bytes] = []
    async with serving(says(OK, OK), site.server) as seen, serving(relay(heads)) as proxy:
        connection = to(site, seen, proxy=Proxy.parse(f"http://us%40er:pw@127.0.0.1:{proxy.port}"))
        for _ in range(2):
            assert (await connection.request("POST", "/", body=bytes(300_000))).body == b"ok"
        assert len(heads) == 1
        assert heads[0].startswith(f"CONNECT localhost:{seen.port} HTTP/1.1\r\n".encode())
        assert b"Basic dXNAZXI6cHc=" in heads[0]  # us@er:pw
        await connection.aclose()
        await until(lambda: proxy.open == 0)


REFUSALS = [
    b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n",
    b"HTTP/1.1 502 Bad Gateway\r\n\r\n",
    b"garbage\r\n\r\n",
    b"",
]


@pytest.mark.parametrize("said", REFUSALS, ids=["407", "502", "garbage", "nothing"])
async def test_a_proxy_that_refuses_is_named_and_leaves_nothing_open(site: Site, said: bytes) -> None:
    """Both ways through it: the client's own and the one for blocking sockets."""
    async with serving(says(said, then_close=True)) as proxy:
        through = Proxy("127.0.0.1", proxy.port)
        connection = HttpsConnection(Place("c.example", 1), context=site.client, timeout_seconds=5, proxy=through)
        with pytest.raises(HttpError, match=r"^c\.example:1: "):
            await connection.request("GET", "/")
        with pytest.raises(OSError, match=r"proxy|closed"):
            await asyncio.to_thread(through_proxy, through, Place("c.example", 1), timeout_seconds=5)
        await until(lambda: proxy.open == 0)


async def test_a_proxy_that_is_silent_or_drips_ends_in_time(site: Site) -> None:
    """The blocking way too: its limit is on the whole, not on each byte."""

    async def drips(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\n")
        while not reader.at_eof():
            writer.write(b"A: b\r\n")
            await asyncio.sleep(0.02)

    async with serving(drips) as proxy:
        through = Proxy("127.0.0.1", proxy.port)
        connection = HttpsConnection(
            Place("c.example", 1), context=site.client, timeout_seconds=9, connect_timeout_seconds=0.3, proxy=through
        )
        with pytest.raises(HttpError, match=r"no connection within 0\.3 s"):
            await connection.request("GET", "/")
        with pytest.raises(TimeoutError):
            await asyncio.to_thread(through_proxy, through, Place("c.example", 1), timeout_seconds=0.3)


@pytest.mark.parametrize("padding", [0, 70_000, 140_000])
async def test_nothing_a_proxy_says_in_clear_is_the_collectors_answer(site: Site, padding: int) -> None:
    """A proxy that appends a forged answer behind its own, however it is cut, acknowledges nothing."""

    async def forges(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n" + b"\r\n" * (padding // 2) + OK * 3)
        await reader.read(1 << 16)

    async with serving(forges) as proxy:
        through = Proxy("127.0.0.1", proxy.port)
        place = Place("localhost", 1)
        with pytest.raises(HttpError):
            await HttpsConnection(place, context=site.client, timeout_seconds=5, proxy=through).request("GET", "/")
        await until(lambda: proxy.open == 0)


@pytest.mark.parametrize("url", ["https://p:1", "p:3128", "http://p", "http://p:99999", "http://p:1/path", "http://:1"])
def test_what_is_no_proxy_shows_a_good_one(url: str) -> None:
    """For whoever wrote the configuration."""
    with pytest.raises(ValueError, match="write http://proxy"):
        Proxy.parse(url)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("30", 30.0), ("", None), ("-1", None), ("1.5", None), ("Wed, 21 Oct 2026 07:28:00 GMT", None)],
)
def test_retry_after_is_a_number_of_seconds_or_nothing(text: str, seconds: float | None) -> None:
    """RFC 9110 §10.2.3; a date would need a clock that agrees."""
    assert Answer(503, {"retry-after": text}, b"").retry_after_seconds == seconds


@pytest.fixture(scope="module")
def any_site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    return Site(tmp_path_factory.mktemp("pki"))


PIECES = st.one_of(
    st.binary(max_size=200),
    st.sampled_from(
        [
            OK,
            b"HTTP/1.1 200 OK\r\n",
            b"\r\n",
            b"Content-Length: 5\r\n",
            b"Transfer-Encoding: chunked\r\n",
            b"5\r\nabcde\r\n",
            b"HTTP/1.1 100 C\r\n\r\n",
            b"0\r\n\r\n",
            b"HTTP/1.0 500 \xff\r\n\r\n",
            b"A:\x00b\r\n",
            b"hello",
        ]
    ),
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(said=st.lists(PIECES, max_size=6).map(b"".join))
async def test_any_bytes_are_an_answer_or_an_http_error(any_site: Site, said: bytes) -> None:
    """Nothing else, ever."""
    async with serving(says(said, then_close=True), any_site.server) as seen:
        connection = to(any_site, seen)
        with contextlib.suppress(HttpError):
            assert isinstance(await connection.request("GET", "/"), Answer)
        await connection.aclose()
