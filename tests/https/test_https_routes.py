"""Status, policy and enrolment over HTTPS; enrolment with a real fleet behind it."""

import ssl
from pathlib import Path
from typing import Any

import aiohttp
import orjson
import pytest
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from fleet_site import FleetSite, Key, csr, new_key
from fleet_site import request as enrol_request
from https_site import AGENT, OTHER, Serve, Site, envelope, post

from ndagent.wire import routes
from ndagent.wire.enrolment import MAX_REQUEST_BYTES, Answer, Refusal, RenewRequest, Token, certificates_of
from ndagent.wire.status import MAX_STATUS_BYTES, AgentStatus

REPORT = AgentStatus("00112233445566aa", 1, "0.1.0", "linux", "web-1").to_json()


async def send(client: aiohttp.ClientSession, method: str, path: str, **options: Any) -> tuple[int, bytes, Any]:
    async with client.request(method, path, **options) as response:
        return response.status, await response.read(), response.headers


# ---- status and policy


async def test_a_report_reaches_the_fleet_as_it_came(serve: Serve) -> None:
    """204; whose it is says the certificate."""
    async with serve() as site, site.client() as client:
        assert (await send(client, "POST", routes.STATUS, data=REPORT))[:2] == (204, b"")
        assert site.fleet.reports == [(AGENT, REPORT)]
        assert site.answered("status", 204) == 1


@pytest.mark.parametrize(
    ("document", "expected"),
    [(b"", 400), (b"{}", 400), (b"[]", 400), (b"\xff", 400), (b"{" * MAX_STATUS_BYTES, 400),
     (b" " * (MAX_STATUS_BYTES + 1), 413)],
    ids=map(str, range(6)),
)  # fmt: skip
async def test_what_is_no_report_is_refused(serve: Serve, document: bytes, expected: int) -> None:
    """The reason is said, the connection stays."""
    async with serve() as site, site.client(limit=1) as client:
        status, body, _ = await send(client, "POST", routes.STATUS, data=document)
        assert (status, bool(orjson.loads(body)["error"])) == (expected, True)
        assert (await send(client, "POST", routes.STATUS, data=REPORT))[0] == 204
        assert len(site.fleet.reports) == 1


async def test_a_policy_is_sent_once_and_again_when_it_is_another(serve: Serve) -> None:
    """ETag and If-None-Match, strong, weak, in a list, and any."""
    async with serve() as site, site.client() as client, site.client(OTHER) as other:
        assert (await send(client, "GET", routes.POLICY))[0] == 204
        site.fleet.policies[AGENT] = b"NDP1 first"
        status, body, headers = await send(client, "GET", routes.POLICY)
        assert (status, body) == (200, b"NDP1 first")
        tag = headers["ETag"]
        for condition in (tag, f"W/{tag}", f'"x", {tag}', "*"):
            status, body, headers = await send(client, "GET", routes.POLICY, headers={"If-None-Match": condition})
            assert (status, body, headers["ETag"]) == (304, b"", tag)
        for condition in ('"x"', "", tag[:-2], tag[1:-1]):
            assert (await send(client, "GET", routes.POLICY, headers={"If-None-Match": condition}))[0] == 200
        site.fleet.policies[AGENT] = b"NDP1 second"
        status, body, headers = await send(client, "GET", routes.POLICY, headers={"If-None-Match": tag})
        assert (status, body) == (200, b"NDP1 second")
        assert headers["ETag"] != tag
        assert (await send(other, "GET", routes.POLICY))[0] == 204  # it is nobody else's


# ---- enrolment


@pytest.fixture
def fleet_site(tmp_path: Path) -> FleetSite:
    directory = tmp_path / "fleet"
    directory.mkdir()
    return FleetSite(directory, wrong_tokens_per_minute=2)


def client_of(site: Site, fleet_site: FleetSite, answer: Answer | None, key: Key | None = None) -> Any:
    """A client that trusts the fleet's CA, with the certificate of this answer if there is one."""
    context = ssl.create_default_context(cafile=fleet_site.pki / "ca.crt")
    if answer is not None and key is not None:
        private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        file = site.directory / "agent.pem"
        file.write_bytes(private + answer.certificate.encode())
        context.load_cert_chain(file)
    return aiohttp.ClientSession(site.url, connector=aiohttp.TCPConnector(ssl=context))


async def test_a_host_enrols_sends_and_renews(serve: Serve, fleet_site: FleetSite) -> None:
    """CA first, a certificate for a token without having one, a batch with it, and the next one with the first."""
    async with fleet_site.fleet() as fleet, serve(enrolment=fleet.enrolment, pki=fleet_site.pki) as site:
        key = new_key()
        async with client_of(site, fleet_site, None) as stranger:
            status, pem, headers = await send(stranger, "GET", routes.CA)
            assert (status, headers["Content-Type"].split(";")[0]) == (200, "application/pem-certificate-chain")
            assert len(certificates_of(pem.decode())) == 1
            request = enrol_request(fleet_site.token(), key=key)
            status, body, _ = await send(stranger, "POST", routes.ENROLL, data=request.to_json())
            assert status == 200
            answer = Answer.from_json(body)
            status, body, _ = await send(stranger, "POST", routes.RENEW, data=RenewRequest(csr(key)).to_json())
            assert (status, Refusal.from_json(body).reason) == (401, "no_certificate")
        async with client_of(site, fleet_site, answer, key) as agent:
            assert (await post(agent, envelope(agent_id=answer.agent_id)))[0] == 200
            status, body, _ = await send(agent, "POST", routes.RENEW, data=RenewRequest(csr()).to_json())
            assert (status, Answer.from_json(body).agent_id) == (200, answer.agent_id)


async def test_a_token_is_refused_with_its_reason_and_guessing_with_429(serve: Serve, fleet_site: FleetSite) -> None:
    """403 for one that is used up, 429 with Retry-After for an address that was wrong too often."""
    async with fleet_site.fleet() as fleet, serve(enrolment=fleet.enrolment, pki=fleet_site.pki) as site:  # noqa: SIM117 - the client is the site's
        async with client_of(site, fleet_site, None) as stranger:
            token = fleet_site.token()
            await send(stranger, "POST", routes.ENROLL, data=enrol_request(token).to_json())
            status, body, _ = await send(stranger, "POST", routes.ENROLL, data=enrol_request(token).to_json())
            assert (status, Refusal.from_json(body).reason) == (403, "used_token")
            wrong = Token(token.id, bytes(24), token.ca_fingerprints)
            answers = [await send(stranger, "POST", routes.ENROLL, data=enrol_request(wrong).to_json()) for _ in "123"]
            assert [status for status, *_ in answers] == [403, 403, 429]
            assert 0 < int(answers[-1][2]["Retry-After"]) <= 60
            for document in (b"", b"{}", b"[" * 1000):
                status, body, _ = await send(stranger, "POST", routes.ENROLL, data=document)
                assert (status, Refusal.from_json(body).reason) == (400, "bad_request")
            status, body, _ = await send(stranger, "POST", routes.ENROLL, data=b"x" * (MAX_REQUEST_BYTES + 1))
            assert (status, Refusal.from_json(body).reason) == (413, "too_large")


async def test_without_a_fleet_agents_may_send_and_probe(serve: Serve) -> None:
    """Every good agent certificate may; ids of its spool are not vouched for; there is nothing to enrol with."""
    async with serve() as site:
        site.fleet = None
        await site.stop()
        await site.start()
        async with site.client() as client:
            assert (await post(client, envelope()))[0] == 200
            assert site.disk.batches[0].sections[0].origin.spool_id == ""
            assert (await send(client, "POST", routes.STATUS, data=REPORT))[0] == 204
            assert (await send(client, "GET", routes.POLICY))[0] == 204
            assert (await send(client, "GET", routes.CA))[0] == 204
            assert (await send(client, "POST", routes.ENROLL, data=b"{}"))[0] == 404
