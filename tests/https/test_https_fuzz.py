"""Whatever an agent sends: one answer for each request, of a status that is meant, and never a 500."""

import asyncio
import gzip
import ssl
import zlib

from backports import zstd
from https_site import SPOOL, Serve, envelope, events, post, read_all, request, status_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tls_peers import connect

from ndagent.wire import routes

MEANT = {200, 204, 304, 400, 403, 404, 405, 408, 411, 413, 415, 417, 429, 501, 503}
EXAMPLES = 40

TOKENS = st.text(st.characters(min_codepoint=33, max_codepoint=126, exclude_characters=":"), min_size=1, max_size=20)
VALUES = st.one_of(
    st.sampled_from(
        ["gzip", "zstd", "deflate", "identity", "chunked", "100-continue", "close", "keep-alive", "0", "-1"]
    ),
    st.sampled_from([routes.NDJSON_TYPE, routes.ENVELOPE_TYPE, "text/plain", "*", '"', ";;;", "application/x-ndjson;"]),
    st.text(st.characters(min_codepoint=32, max_codepoint=255, exclude_characters="\x7f"), max_size=40),
)
NAMES = st.one_of(
    st.sampled_from(
        ["Content-Type", "Content-Encoding", "Content-Length", "Transfer-Encoding", "Expect", "Idempotency-Key",
         "If-None-Match", "Connection", "Upgrade", "Host"],
    ),
    TOKENS,
)  # fmt: skip
HEADERS = st.lists(st.tuples(NAMES, VALUES), max_size=5)
PATHS = st.one_of(
    st.sampled_from(
        [routes.BATCHES, routes.STATUS, routes.POLICY, "/agents/v1/batches?stream=alerts", "*", "//", "/%"]
    ),
    st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=30).map(lambda text: f"/{text}"),
)
METHODS = st.sampled_from(["POST", "POST", "POST", "GET", "HEAD", "OPTIONS", "CONNECT", "PUT"])
ENVELOPES = st.builds(
    envelope,
    st.integers(1, 5),
    ndjson=st.one_of(st.none(), st.binary(max_size=50), st.just(events(3))),
    length=st.one_of(st.just(100), st.integers(0, 2**63)),
    spool_id=st.one_of(st.just(SPOOL), st.text(min_size=1, max_size=20)),
    stream=st.sampled_from(["security_events", "metrics", "alerts", "x"]),
)
WHOLE = st.one_of(st.binary(max_size=300), ENVELOPES, st.just(events(3)))
BODIES = st.one_of(
    WHOLE,
    WHOLE.map(gzip.compress),
    WHOLE.map(zlib.compress),
    WHOLE.map(zstd.compress),
    st.tuples(WHOLE, st.integers(0, 400), st.integers(0, 255)).map(lambda one: flipped(*one)),
)


def flipped(body: bytes, at: int, bits: int) -> bytes:
    """One byte of it is another."""
    at = at % len(body) if body else 0
    return body[:at] + bytes([(body[at] if body else 0) ^ bits]) + body[at + 1 :]


def exchange(context: ssl.SSLContext, port: int, data: bytes) -> bytes:
    """Send it over a connection of its own, with a last request that asks for the end; all that comes back."""
    with connect(context, port, timeout=15) as client:
        client.sendall(data)
        return read_all(client)


async def test_any_body_with_any_header_gets_an_answer_that_is_meant(serve: Serve) -> None:
    """Bytes that are a request of HTTP, and a body that is nothing in particular."""
    async with serve(body_timeout=0.1, header_timeout=0.1, keepalive_timeout=0.1) as site:
        context = site.context()
        seen: set[int] = set()

        @settings(max_examples=EXAMPLES, suppress_health_check=list(HealthCheck))
        @given(method=METHODS, path=PATHS, headers=HEADERS, body=BODIES)
        def one(method: str, path: str, headers: list[tuple[str, str]], body: bytes) -> None:
            more = "".join(f"{name}: {value}\r\n" for name, value in headers) + "Connection: close\r\n"
            data = request(body, method=method, path=path, more=more.encode("latin-1", "replace").decode("latin-1"))
            answer = exchange(context, site.port, data)
            if answer:
                seen.add(status_of(answer.removeprefix(b"HTTP/1.1 100 Continue\r\n\r\n")))

        await asyncio.to_thread(one)
        assert seen <= MEANT
        assert 200 in seen or 400 in seen
        async with site.client() as client:
            assert (await post(client, envelope(first=1000)))[0] == 200


async def test_any_bytes_at_all_end_in_an_answer_or_the_end(serve: Serve) -> None:
    """Garbage before, inside and behind requests; the input lives."""
    async with serve(body_timeout=0.1, header_timeout=0.1, keepalive_timeout=0.1) as site:
        context = site.context()
        good = request(events(1))

        @settings(max_examples=EXAMPLES, suppress_health_check=list(HealthCheck))
        @given(before=st.binary(max_size=30), cut=st.integers(0, len(good)), behind=st.binary(max_size=60))
        def one(before: bytes, cut: int, behind: bytes) -> None:
            answer = exchange(context, site.port, before + good[:cut] + behind)
            while answer:
                head, _, rest = answer.partition(b"\r\n\r\n")
                assert status_of(head) in MEANT
                length = next(int(one[15:]) for one in head.split(b"\r\n") if one.startswith(b"Content-Length:"))
                answer = rest[length:]

        await asyncio.to_thread(one)
        assert site.answered("batches", 500) == site.answered("other", 500) == 0
