"""Who an output says it is: tokens that change, tokens that are refused, signatures, and that no secret gets out."""

import asyncio
import base64
import hashlib
import hmac
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from http_far_side import Received, answer, far_side, says, until
from pools import POST, context, pool, refusal
from pydantic import ValidationError

from ndagent.core.interfaces import Unavailable
from ndcollector.oauth import ClientCredentials, TokenError
from ndcollector.traffic import pool as pool_module
from ndcollector.traffic.config import HttpOutputConfig
from ndcollector.traffic.request import Request, judge

SECRET = "s3cret-9f2c"


async def test_each_kind_of_login_is_shown_as_its_standard_says() -> None:
    """And further fields beside it."""
    async with far_side() as server:
        for login, name, value in [
            ({"bearer": {"token": SECRET}}, "authorization", f"Bearer {SECRET}"),
            ({"bearer": {"token": SECRET, "scheme": "Splunk"}}, "authorization", f"Splunk {SECRET}"),
            ({"basic": {"username": "us", "password": "pä:ss"}}, "authorization", "Basic dXM6cMOkOnNz"),
            ({"api_key": {"header": "X-Key", "key": SECRET}}, "x-key", SECRET),
        ]:
            async with pool(server.url, credentials=login, headers={"X-Tenant": "blue"}) as made:
                await made(POST)
            assert server.requests[-1].headers[name] == value
            assert server.requests[-1].headers["x-tenant"] == "blue"


async def test_a_token_file_is_read_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When it changes, and at once after a 401; half-written or empty it leaves the last good token."""
    monkeypatch.setattr(pool_module, "LOOK_AT_FILES_SECONDS", 0.05)
    file = tmp_path / "token"
    login = {"bearer": {"token_file": str(file)}}
    async with far_side() as server, pool(server.url, credentials=login) as made:
        assert f"{file}: no token in it" in (await refusal(made)).reason
        file.write_text("one\n")
        await made(POST)
        assert server.requests[-1].headers["authorization"] == "Bearer one"
        file.write_text("")
        await asyncio.sleep(0.1)
        await made(POST)
        assert server.requests[-1].headers["authorization"] == "Bearer one"
        file.write_text("two")
        async with asyncio.timeout(20):
            while server.requests[-1].headers["authorization"] != "Bearer two":
                await made(POST)
                await asyncio.sleep(0.01)


async def test_401_and_then_a_good_token(tmp_path: Path) -> None:
    """Once more with the newer token; without a newer one the answer stands, and a person must act."""
    file = tmp_path / "token"
    file.write_text("old")
    login = {"bearer": {"token_file": str(file)}}

    def reply(request: Received) -> bytes:
        return answer(200 if request.headers["authorization"] == "Bearer new" else 401)

    async with far_side(reply) as server, pool(server.url, credentials=login) as made:
        found = await made(POST)
        assert (found.status, len(server.requests)) == (401, 1)
        with pytest.raises(Unavailable, match="answered 401; check its credentials"):
            judge(found)
        file.write_text("new")
        assert (await made(POST)).status == 200
        assert len(server.requests) == 3


async def test_once_more_waits_for_a_place_as_everybody_does(tmp_path: Path) -> None:
    """Or a token that runs out amid a busy hour doubles the requests to a far side that bears no more."""
    file = tmp_path / "token"
    file.write_text("old")
    refuse, release = asyncio.Event(), asyncio.Event()

    def reply(request: Received) -> Any:
        async def late(_reader: object, writer: asyncio.StreamWriter) -> None:
            await (release if request.path == "/other" else refuse).wait()
            status = 401 if request.headers["authorization"] == "Bearer old" and request.path != "/other" else 200
            writer.write(answer(status, Connection="close"))
            await writer.drain()

        return late

    login, places = {"bearer": {"token_file": str(file)}}, {"maximum": 1, "adaptive": False}
    async with far_side(reply) as server, pool(server.url, credentials=login, concurrency=places) as made:
        first = asyncio.ensure_future(made(POST))
        await until(lambda: server.requests)
        other = asyncio.ensure_future(made(Request("POST", "/other", b"events")))
        await asyncio.sleep(0)
        file.write_text("new")
        refuse.set()
        await until(lambda: len(server.requests) >= 2)
        await asyncio.sleep(0.05)
        release.set()
        assert [one.status for one in await asyncio.gather(first, other)] == [200, 200]
    assert server.most_under_way == 1


class TokenServer:
    """An authorisation server by hand: `life` of its tokens, `asked` for how many."""

    def __init__(self) -> None:
        self.asked = 0
        self.life: float | None = 3600
        self.delay = 0.0
        self.status = 200
        self.body: bytes | None = None
        self.last: Received | None = None

    def reply(self, request: Received) -> Any:
        self.asked += 1
        self.last = request
        document: dict[str, object] = {"access_token": f"token-{self.asked}", "token_type": "Bearer"}
        if self.life is not None:
            document["expires_in"] = self.life
        body = json.dumps(document).encode() if self.body is None else self.body

        async def late(_reader: object, writer: asyncio.StreamWriter) -> None:
            await asyncio.sleep(self.delay)
            writer.write(answer(self.status, body, Connection="close"))
            await writer.drain()

        return late


def oauth(url: str) -> dict[str, object]:
    return {"oauth2": {"token_url": url + "/token", "client_id": "us+them", "client_secret": SECRET, "scope": "logs"}}


async def test_oauth_token_by_client_credentials() -> None:
    """RFC 6749 §4.4 and §2.3.1: the form, and both parts form-encoded inside Basic; asked once for many requests."""
    tokens = TokenServer()
    tokens.delay = 0.05
    async with (
        far_side(tokens.reply) as issuer,
        far_side() as server,
        pool(server.url, credentials=oauth(issuer.url)) as made,
    ):
        await asyncio.gather(*(made(POST) for _ in range(6)))
    assert tokens.asked == 1
    assert {one.headers["authorization"] for one in server.requests} == {"Bearer token-1"}
    assert tokens.last is not None
    assert tokens.last.body == b"grant_type=client_credentials&scope=logs"
    assert tokens.last.headers["authorization"] == "Basic dXMlMkJ0aGVtOnMzY3JldC05ZjJj"


async def test_a_refused_oauth_token_is_replaced_once() -> None:
    """A 401 amid its life (it was revoked): one new token for all who were refused, one more try for each, no loop."""
    tokens = TokenServer()
    good: Callable[[str], bool] = lambda text: text == "Bearer token-2"  # noqa: E731 - read at each request
    async with (
        far_side(tokens.reply) as issuer,
        far_side(lambda request: answer(200 if good(request.headers["authorization"]) else 401)) as server,
        pool(server.url, credentials=oauth(issuer.url)) as made,
    ):
        found = await asyncio.gather(*(made(POST) for _ in range(4)))
        assert {one.status for one in found} == {200}
        assert tokens.asked == 2
        good = lambda text: False  # noqa: E731
        before = len(server.requests)
        assert (await made(POST)).status == 401
        assert len(server.requests) == before + 2
        assert tokens.asked == 3


async def test_a_token_is_renewed_before_it_runs_out() -> None:
    """A minute before, half its life where that is short, and not for long where its life is not told."""
    tokens = TokenServer()
    now = 0.0
    async with far_side(tokens.reply) as issuer:
        source = ClientCredentials(issuer.url, client_id="us", client_secret=SECRET, clock=lambda: now)
        assert await source.token() == "token-1"
        now = 3539.0
        assert await source.token() == "token-1"
        now, tokens.life = 3540.0, 20
        assert await source.token() == "token-2"
        now = 3549.0
        assert await source.token() == "token-2"
        now, tokens.life = 3551.0, None
        assert await source.token() == "token-3"
        now = 3580.0
        assert await source.token() == "token-3"
        now = 3581.0
        assert await source.token() == "token-4"
        source.forget("token-3")  # a late refusal of an older one
        assert await source.token() == "token-4"


@pytest.mark.parametrize(
    ("body", "status", "text"),
    [
        (b'{"error": "invalid_client", "secret": "%s"}' % SECRET.encode(), 401, "HTTP 401: .*check client_id"),
        (b"<html>", 200, "no token: JSONDecodeError"),
        (b"[]", 200, "no token"),
        (b'{"token": 1}', 200, "no token: KeyError"),
        (b'{"access_token": "a", "expires_in": "soon"}', 200, "no token: ValueError"),
        (b'{"access_token": "a\\r\\nX-B: b"}', 200, "no token: what it gave is none that a header field can carry"),
        (b'{"access_token": ""}', 200, "no token: what it gave is none"),
        (b"x" * 2_000_000, 200, "too much for one"),
        (b"", 302, "HTTP 302"),
    ],
)
async def test_a_token_that_cannot_be_had(body: bytes, status: int, text: str) -> None:
    """Unavailable with the server's name and reason, and without our secret, even if it is sent back."""
    tokens = TokenServer()
    tokens.body, tokens.status = body, status
    async with far_side(tokens.reply) as issuer, far_side() as server:
        async with pool(server.url, credentials=oauth(issuer.url)) as made:
            with pytest.raises(Unavailable, match=text) as caught:
                await made(POST)
        assert issuer.url in caught.value.reason
        assert SECRET not in caught.value.reason
        assert server.requests == []


async def test_a_failure_counts_for_all_who_waited() -> None:
    """One question, not one after the other; a second later it is asked anew."""
    tokens = TokenServer()
    tokens.status, tokens.delay = 503, 0.05
    now = 0.0
    async with far_side(tokens.reply) as issuer:
        source = ClientCredentials(issuer.url, client_id="us", client_secret=SECRET, clock=lambda: now)
        found = await asyncio.gather(*(source.token() for _ in range(5)), return_exceptions=True)
        assert all(isinstance(one, TokenError) and "HTTP 503" in str(one) for one in found)
        assert tokens.asked == 1
        now, tokens.status = 1.0, 200
        assert await source.token() == "token-2"


async def test_a_token_server_that_is_away_or_garbled() -> None:
    """As any far side: in words."""
    async with far_side(lambda _: says(b"nonsense\r\n\r\n")) as issuer:
        source = ClientCredentials(issuer.url, client_id="us", client_secret=SECRET)
        with pytest.raises(TokenError, match="no token"):
            await source.token()
        await issuer.stop()
        with pytest.raises(TokenError, match="no token"):
            await source.token()


async def test_a_signature_that_a_receiver_can_check() -> None:
    """As docs/traffic.md shows: over time, a full stop and the body as it came; on the loop and in a thread."""
    async with far_side() as server:
        for algorithm in ("sha256", "sha512"):
            for size in (10, 300_000):
                settings = {"secret": SECRET, "algorithm": algorithm, "header": "X-Nd-Signature"}
                async with pool(server.url, hmac=settings) as made:
                    await made(Request("POST", "", b"x" * size))
                got = server.requests[-1]
                stamp, _, signature = got.headers["x-nd-signature"].partition(",")
                text = stamp.removeprefix("t=").encode() + b"." + got.body
                expected = hmac.new(SECRET.encode(), text, getattr(hashlib, algorithm)).hexdigest()
                assert signature == f"{algorithm}={expected}"


async def test_a_request_may_be_signed_for_its_endpoint() -> None:
    """What signs is told the URL that it really goes to, each time."""
    told: list[tuple[str, int]] = []

    def sign(url: str, body: bytes) -> dict[str, str]:
        told.append((url, len(body)))
        return {"X-Signed": url}

    async with far_side(lambda _: answer(500)) as a, far_side() as b, pool(a.url, b.url) as made:
        for body in (b"small", b"x" * 200_000):
            await made(Request("PUT", "/key?x=1", body, sign=sign))
    assert [url for url, _ in told] == [f"{one.url}/key?x=1" for one in (a, b, a, b)]
    assert b.requests[0].headers["x-signed"] == f"{b.url}/key?x=1"


@pytest.mark.parametrize(
    "settings",
    [
        {"credentials": {"bearer": {"token": SECRET}}},
        {"credentials": {"basic": {"username": "us", "password": SECRET}}},
        {"credentials": {"api_key": {"key": SECRET}}},
        {"headers": {"X-Key": SECRET}},
        {"path": f"/in?key={SECRET}"},
    ],
)
async def test_no_secret_reaches_a_log_or_a_reason(settings: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    """Even where the far side sends back what it was shown, as some do in their error pages."""
    caplog.set_level(logging.DEBUG)

    def echo(request: Received) -> bytes:
        shown = [request.headers.get("authorization", ""), request.headers.get("x-api-key", ""), request.path]
        if shown[0].startswith("Basic "):
            shown.append(base64.b64decode(shown[0].removeprefix("Basic ")).decode())
        return answer(status, " ".join([*shown, request.headers.get("x-key", "")]).encode())

    path = settings.pop("path", "")
    async with far_side(echo) as server, pool(server.url + path, **settings) as made:
        for status in (500, 403, 400):  # noqa: B007 - `echo` reads it
            try:
                judge(await made(Request("POST", "")))
            except Exception as error:  # noqa: BLE001 - whatever it says is looked at
                said = f"{error} {getattr(error, 'response', '')}"
            encoded = server.requests[-1].headers.get("authorization", "Basic -").split()[1]
            assert SECRET not in said
            assert encoded == "-" or encoded not in said
    assert SECRET not in caplog.text
    config = HttpOutputConfig(type="test", url="https://a", **settings)
    assert SECRET not in repr(config)
    assert SECRET not in config.model_dump_json()


async def test_what_an_output_shows_itself_is_as_secret() -> None:
    """Splunk's token is the output's, not the pool's."""
    shown = Request("POST", "", b"events", {"Authorization": f"Splunk {SECRET}"})
    echo = lambda one: answer(403, one.headers["authorization"].encode())  # noqa: E731
    async with far_side(echo) as server, pool(server.url) as made:
        assert (await made(shown)).body == b"***"


async def test_an_old_token_is_as_secret_as_the_new_one(tmp_path: Path) -> None:
    """The answer to a request may come when the token that it had was replaced already."""
    file = tmp_path / "token"
    file.write_text("the-old-one")

    def echo(request: Received) -> bytes:
        seen.append(request)
        return answer(403, request.headers["authorization"].encode())

    seen: list[Received] = []
    async with far_side(echo) as server, pool(server.url, credentials={"bearer": {"token_file": str(file)}}) as made:
        asking = asyncio.ensure_future(made(POST))
        while not seen:
            await asyncio.sleep(0)
        file.write_text("the-new-one")
        made._credentials.look()
        assert b"the-" not in (await asking).body


@pytest.mark.parametrize(
    ("settings", "warned"),
    [
        ({"url": "http://a.example.net:81/in?key=k", "credentials": {"bearer": {"token": SECRET}}}, "net:81/in w"),
        ({"url": "https://a.example.net", "credentials": oauth("http://b.example.net")}, "http://b.example.net/token"),
        ({"url": "https://a.example.net", "credentials": {"bearer": {"token": SECRET}}}, ""),
        ({"url": "http://127.0.0.1:81", "credentials": {"bearer": {"token": SECRET}}}, ""),
        ({"url": "http://[::1]:81", "credentials": {"bearer": {"token": SECRET}}}, ""),
        ({"url": "http://a.example.net"}, ""),
    ],
)  # fmt: skip
async def test_credentials_without_tls_are_warned_of(
    settings: dict[str, Any], warned: str, caplog: pytest.LogCaptureFixture
) -> None:
    """At the start, with the URL but not its query; what stays on this machine is nobody's to read."""
    made = pool_module.Pool("siem", HttpOutputConfig(type="test", **settings), context())
    await made.aclose()
    assert (warned in caplog.text) if warned else not caplog.records
    assert "key=k" not in caplog.text


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"credentials": {}}, "write exactly one of"),
        ({"credentials": {"bearer": {"token": "a"}, "basic": {"username": "u", "password": "p"}}}, "exactly one of"),
        ({"credentials": {"bearer": {}}}, "write either token or token_file"),
        ({"credentials": {"bearer": {"token": "a", "token_file": "b"}}}, "write either token or token_file"),
        ({"credentials": {"bearer": {"token": "line\n"}}}, "is there a line feed at the end"),
        ({"credentials": {"basic": {"username": "a:b", "password": "p"}}}, "match pattern"),
        ({"headers": {"X Y": "a"}}, "is not the name of a header field"),
        ({"headers": {"Content-Length": "1"}}, "belongs to the connection"),
        ({"headers": {"X-A": "a\r\nX-B: b"}}, "holds a character that a header field cannot have"),
        ({"hmac": {"secret": ""}}, "is empty"),
        ({"proxy_credentials": {"username": "u", "password": "p"}}, "there is no proxy"),
        ({"url": "https://user:pw@host"}, "holds credentials"),
    ],
)
def test_what_check_refuses(settings: dict[str, Any], text: str) -> None:
    """Before anything is sent; no message shows a secret."""
    with pytest.raises(ValidationError, match=text) as caught:
        HttpOutputConfig(**{"type": "test", "url": "https://a", **settings})
    assert all("pw" not in error["msg"] and "X-B" not in error["msg"] for error in caught.value.errors())


async def test_through_a_proxy() -> None:
    """Plain requests with the whole URL, and its own credentials; what it refuses is told as its own doing."""
    async with far_side() as proxy:
        settings = {"proxy": proxy.url, "proxy_credentials": {"username": "us", "password": SECRET}}
        async with pool("http://siem.invalid:81/in", **settings) as made:
            assert (await made(Request("POST", ""))).status == 200
            assert proxy.requests[-1].path == "http://siem.invalid:81/in"
            assert proxy.requests[-1].headers["proxy-authorization"].startswith("Basic ")
        proxy.reply = lambda _: answer(407)
        async with pool("https://siem.invalid/in", **settings) as made:
            assert "the proxy wants credentials; check proxy_credentials" in (await refusal(made)).reason
        proxy.reply = lambda _: answer(403)
        async with pool("https://siem.invalid/in", **settings) as made:
            assert "the proxy answered 403; may it connect there?" in (await refusal(made)).reason
        await proxy.stop()
        async with pool("https://siem.invalid/in", **settings) as made:
            assert "is not reached: the proxy refuses connections" in (await refusal(made)).reason
