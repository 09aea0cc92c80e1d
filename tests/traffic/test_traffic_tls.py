"""Whom an output believes, who it is, and certificates that change or expire while it runs."""

import datetime as dt
import logging
import re
import shutil
import ssl
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)
from http_far_side import answer, cut, far_side, says, until
from pools import POST, pool, refusal
from pydantic import ValidationError
from tls_peers import CLIENT, SERVER, Authority, Pair

from ndagent.core.metrics import Metrics
from ndcollector.traffic import pool as pool_module
from ndcollector.traffic.tls import ClientTls, ClientTlsConfig
from tests.agent.tls_server import relay

EXPIRED = dt.timedelta(seconds=-60)


class Site:
    """A CA, the files of both sides, and contexts for the server."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.authority = Authority()
        self.ca = directory / "ca.crt"
        self.ca.write_bytes(self.authority.pem())
        self.cert, self.key = directory / "client.crt", directory / "client.key"

    def server(
        self, *, name: str = "DNS:localhost", authority: Authority | None = None, until: dt.timedelta | None = None
    ) -> ssl.SSLContext:
        life = {} if until is None else {"until": until}
        pair = (authority or self.authority).issue("siem", names=[name], usage=[SERVER], **life)
        return self._context(pair)

    def mutual(self) -> ssl.SSLContext:
        """Wants a certificate of our CA."""
        context = self.server()
        context.load_verify_locations(self.ca)
        context.verify_mode = ssl.CERT_REQUIRED
        return context

    def issue(self, *, until: dt.timedelta | None = None, authority: Authority | None = None) -> None:
        """Our certificate, into the files."""
        life = {} if until is None else {"until": until}
        (authority or self.authority).issue("us", usage=[CLIENT], **life).write(self.cert, self.key)

    @property
    def us(self) -> dict[str, str]:
        return {"ca_file": str(self.ca), "cert_file": str(self.cert), "key_file": str(self.key)}

    def _context(self, pair: Pair) -> ssl.SSLContext:
        pair.write(self.directory / "s.crt", self.directory / "s.key")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.directory / "s.crt", self.directory / "s.key")
        return context


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files are looked at as often as a test can wait for."""
    monkeypatch.setattr(pool_module, "LOOK_AT_FILES_SECONDS", 0.05)


async def test_a_certificate_of_our_ca_with_the_right_name(site: Site) -> None:
    """The plain case."""
    async with far_side(context=site.server()) as server, pool(server.url, tls={"ca_file": str(site.ca)}) as made:
        assert (await made(POST)).status == 200


async def test_whom_we_do_not_believe(site: Site) -> None:
    """Each with the reason and whose it is to mend it; nothing of the request was sent."""
    ours = {"ca_file": str(site.ca)}
    cases = [
        (site.server(until=EXPIRED), ours, "has a certificate that has expired: whoever runs it must renew it"),
        (site.server(name="DNS:other"), ours, "for another name .*correct url, or set tls.server_name"),
        (site.server(authority=Authority("rogue")), ours, "that we do not trust .*put its CA into tls.ca_file"),
        (site.server(), {}, "that we do not trust"),
    ]
    for context, tls, text in cases:
        async with far_side(context=context) as server, pool(server.url, tls=tls) as made:
            error = await refusal(made)
            assert error.reason.startswith(server.url)
            assert re.search(text, error.reason), error.reason
            assert server.requests == []


async def test_another_name_may_be_expected(site: Site) -> None:
    """For an address, or a name that only we use."""
    tls = {"ca_file": str(site.ca), "server_name": "siem.example"}
    async with far_side(context=site.server(name="DNS:siem.example")) as server, pool(server.url, tls=tls) as made:
        assert (await made(POST)).status == 200


async def test_believing_anybody_works_and_is_said(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    """The key's name says what it is, and so does the log, at each start."""
    tls = {"accept_any_certificate_insecurely": True}
    context = site.server(name="DNS:other", authority=Authority("rogue"), until=EXPIRED)
    async with far_side(context=context) as server, pool(server.url, tls=tls) as made:
        assert (await made(POST)).status == 200
    assert "anybody between here and the destination can read and change what is sent" in caplog.text


async def test_a_far_side_that_wants_a_certificate(site: Site) -> None:
    """We are told that it does, and then it gets ours."""
    async with far_side(context=site.mutual()) as server:
        async with pool(server.url, tls={"ca_file": str(site.ca)}) as made:
            assert re.search("wants a certificate of ours: (set )?tls.cert_file", (await refusal(made)).reason)
        site.issue()
        async with pool(server.url, tls=site.us) as made:
            assert (await made(POST)).status == 200


async def test_our_certificate_expires_and_is_renewed_while_running(site: Site) -> None:
    """Said with the remedy; the new one counts at the next try, without a restart."""
    site.issue(until=EXPIRED)
    async with far_side(context=site.mutual()) as server, pool(server.url, tls=site.us) as made:
        assert re.search("our certificate has expired.*: renew tls.cert_file", (await refusal(made)).reason)
        site.issue()
        await refusal(made)  # the failure is when it looks
        assert (await made(POST)).status == 200


async def test_a_new_ca_is_believed_while_running(site: Site, quick: None) -> None:
    """The far side moves to another CA; we learn of it from the file."""
    other = Authority("new CA")
    async with far_side(context=site.server(authority=other)) as server:
        breaker = {"failures": 1000}
        async with pool(server.url, tls={"ca_file": str(site.ca)}, endpoint_breaker=breaker) as made:
            assert "that we do not trust" in (await refusal(made)).reason
            site.ca.write_bytes(site.authority.pem() + other.pem())
            await refusal(made)
            assert (await made(POST)).status == 200


async def test_connections_under_way_are_not_cut_by_new_files(site: Site, quick: None) -> None:
    """New ones use them: what runs, runs on."""
    site.issue()
    async with far_side(context=site.mutual()) as server, pool(server.url, tls=site.us) as made:
        await made(POST)
        made_context = made._tls.context
        site.issue()
        await until(lambda: made._tls.context is not made_context)
        assert (await made(POST)).status == 200
        assert server.connections == 2


def test_half_written_files_leave_the_last_good_ones(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    """Whole or not at all, and said once; the pair that fits is taken."""
    caplog.set_level(logging.INFO)
    site.issue()
    tls = ClientTls(ClientTlsConfig(**site.us), name="siem", metrics=Metrics())
    before = tls.context
    whole = site.cert.read_bytes()
    for content in (whole[: len(whole) // 2], b"", Authority("x").issue("y").pem()):
        site.cert.write_bytes(content)
        for _ in range(3):
            tls.look()
        assert tls.context is before
    site.key.unlink()
    tls.look()
    assert tls.context is before
    warnings = [record for record in caplog.records if record.levelname == "WARNING"]
    assert 1 <= len(warnings) <= 4
    assert str(site.cert) in warnings[0].message
    site.issue()
    tls.look()
    assert tls.context is not before
    assert caplog.records[-1].message == "TLS files were read anew; new connections use them"


async def test_files_that_were_never_good_are_unavailable_not_a_crash(site: Site) -> None:
    """The data waits; the person corrects the files, and it goes on."""
    async with far_side(context=site.mutual()) as server, pool(server.url, tls=site.us) as made:
        error = await refusal(made)
        assert f"TLS files cannot be used ({site.ca}, {site.cert}, {site.key}): No such file" in error.reason
        site.issue()
        assert (await made(POST)).status == 200


async def test_an_encrypted_key_asks_nobody_for_its_password(site: Site) -> None:
    """A daemon that waits at a prompt is down."""
    site.issue()
    key = load_pem_private_key(site.key.read_bytes(), None)
    site.key.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"x")))
    tls = ClientTls(ClientTlsConfig(**site.us), name="siem", metrics=Metrics())
    tls.look()
    assert tls._context is None
    shutil.copy(site.cert, site.key)
    tls.look()
    assert tls._context is None


async def test_tls_goes_through_a_proxy(site: Site) -> None:
    """By CONNECT: the proxy sees a name and a port, and nothing of what is sent."""
    heads: list[bytes] = []
    tls = {"ca_file": str(site.ca)}
    async with (
        far_side(act=relay(heads)) as proxy,
        far_side(context=site.server()) as server,
        pool(server.url, tls=tls, proxy=proxy.url) as made,
    ):
        assert (await made(POST)).status == 200
    assert heads[0].startswith(f"CONNECT localhost:{server.port} HTTP/1.1".encode())
    assert b"events" not in b"".join(heads)


async def test_plain_http_on_the_tls_port_is_told(site: Site) -> None:
    """The commonest slip in a URL, both ways round."""
    async with far_side(act=says(answer(400))) as server, pool(server.url.replace("http:", "https:")) as made:
        assert "does not speak TLS on this port; is it http:// and not https://?" in (await refusal(made)).reason
    async with far_side(context=site.server()) as server, pool(server.url.replace("https:", "http:")) as made:
        assert server.url.removeprefix("https:") in (await refusal(made)).reason


def test_a_certificate_needs_its_key() -> None:
    """Told by check, with the key that is missing."""
    with pytest.raises(ValidationError, match="a certificate and its key come together"):
        ClientTlsConfig(cert_file="a.crt")


async def test_an_answer_over_tls_is_whole(site: Site) -> None:
    """A far side that cuts TLS amid an answer is no success."""
    half = says(answer(200, b"12", Content_Length="50"), then=cut)
    tls = {"ca_file": str(site.ca)}
    async with far_side(lambda _: half, context=site.server()) as server, pool(server.url, tls=tls) as made:
        assert "cut short" in (await refusal(made)).reason
