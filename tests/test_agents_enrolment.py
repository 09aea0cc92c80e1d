"""Enrolment: what a token is good for, what it is not, and that no crash and no repeat gives a use away."""

import asyncio
import base64
import contextlib
import os
import subprocess
import sys
import tempfile
import time
import tracemalloc
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID
from fleet_site import FleetSite, certificate, csr, enrol, new_key, renewal, request, serial
from hypothesis import given, settings
from hypothesis import strategies as st

from ndagent.wire.enrolment import (
    MAX_CSR_CHARACTERS,
    EnrolRequest,
    HostFacts,
    Token,
    certificates_of,
    fingerprint,
    is_agent_id,
)
from ndcollector import pki
from ndcollector.agents import attempts, tokens
from ndcollector.agents.attempts import Attempts
from ndcollector.agents.enrolment import (
    MAX_CERTIFICATES_A_DAY,
    MAX_CURRENT_CERTIFICATES,
    MAX_WAITING,
    EnrolmentRefused,
)
from ndcollector.agents.fleet import Fleet
from ndcollector.agents.inventory import Inventory
from ndcollector.pki.keys import public_key_of
from ndcollector.pki.store import PkiError


@pytest.fixture
def site(tmp_path: Path) -> FleetSite:
    return FleetSite(tmp_path)


async def refusal(fleet: Fleet, wish: EnrolRequest, address: str = "192.0.2.1") -> EnrolmentRefused:
    with pytest.raises(EnrolmentRefused) as caught:
        await fleet.enrolment.enrol(wish, address)
    return caught.value


def agents(site: FleetSite) -> list[str]:
    inventory = site.inventory()
    try:
        return [one.id for one in inventory.agents()]
    finally:
        inventory.close()


def uses_left(site: FleetSite) -> list[int]:
    inventory = site.inventory()
    try:
        return [one.uses_left for one in tokens.list_tokens(inventory)]
    finally:
        inventory.close()


# -- the good way ----------------------------------------------------------------------------------------------------


async def test_a_token_makes_an_agent_with_an_identity_of_the_collectors_making(site: FleetSite) -> None:
    """Subject, SAN and usage are set here; what the request wishes (to be the collector, a CA) is ignored."""
    async with site.fleet() as fleet:
        fleet.policy_key = lambda: b"policy"
        token = site.token(group="web")
        answer = await fleet.enrolment.enrol(request(token), "192.0.2.1")
    found = certificate(answer)
    assert is_agent_id(answer.agent_id)
    extensions = found.extensions
    names = extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert [one.value for one in names] == [f"nd:agent:{answer.agent_id}"]
    usage = extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usage) == [ExtendedKeyUsageOID.CLIENT_AUTH]
    assert not extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert (answer.group, answer.policy_key) == ("web", b"policy")
    assert answer.endpoints.mqtt == ("collector.example:8883",)
    assert abs(answer.renew_after - (site.clock.unix + 60 * 86400)) < 5
    assert [fingerprint(one) for one in certificates_of(answer.ca)] == list(token.ca_fingerprints)
    assert [one.name for one in pki.list_certificates(site.pki)] == ["collector-1", answer.agent_id]
    assert '"kind":"agent_enrolled"' in site.trail
    assert token.text not in site.trail


@pytest.mark.parametrize(
    "key",
    [
        ec.generate_private_key(ec.SECP384R1()),
        rsa.generate_private_key(public_exponent=65537, key_size=2048),
        ed25519.Ed25519PrivateKey.generate(),
    ],
    ids=["P-384", "RSA-2048", "Ed25519"],
)
async def test_every_usual_key_is_taken(site: FleetSite, key: ec.EllipticCurvePrivateKey) -> None:
    """A TPM may offer only one of them."""
    async with site.fleet() as fleet:
        answer = await enrol(site, fleet, key=key)
        assert fleet.public_keys(answer.agent_id)
        assert certificate(answer).public_key() == key.public_key()


async def test_an_answer_that_got_lost_can_be_asked_for_again_with_the_same_key(site: FleetSite) -> None:
    """The same agent, no second use; another key is another agent, and there is no use left for it."""
    key = new_key()
    async with site.fleet() as fleet:
        token = site.token()
        first = await fleet.enrolment.enrol(request(token, key=key), "192.0.2.1")
        again = await fleet.enrolment.enrol(request(token, key=key), "192.0.2.1")
        assert again.agent_id == first.agent_id
        assert (await refusal(fleet, request(token))).reason == "used_token"
        site.clock.pass_by(tokens.REPEAT_SECONDS + 1)
        late = await refusal(fleet, request(token, key=key))
        assert (late.reason, late.status) == ("used_token", 403)
    assert agents(site) == [first.agent_id]


async def test_two_hosts_of_one_name_are_two_agents(site: FleetSite) -> None:
    """Names are for people; the second one's says which it is."""
    async with site.fleet() as fleet:
        one, other = [await enrol(site, fleet, hostname="web") for _ in range(2)]
        assert len(fleet) == 2
    inventory = site.inventory()
    assert {inventory.find(one.agent_id).name, inventory.find(other.agent_id).name} == {
        "web",
        f"web-{other.agent_id}",
    }
    inventory.close()


# -- refusals --------------------------------------------------------------------------------------------------------


async def test_each_bad_token_has_a_reason_of_its_own(site: FleetSite) -> None:
    """So that the agent can say what to do; all of them are 403."""
    async with site.fleet() as fleet:
        used, revoked, expired = site.token(), site.token(), site.token(expires_at=site.clock.unix + 60)
        stranger = Token("00" * 5, b"\0" * 24, used.ca_fingerprints)
        guessed = Token(used.id, b"\0" * 24, used.ca_fingerprints)
        await fleet.enrolment.enrol(request(used), "192.0.2.1")
        inventory = site.inventory()
        tokens.revoke(inventory, revoked.id, now=site.clock.unix)
        inventory.close()
        site.clock.pass_by(60)
        found = [await refusal(fleet, request(one)) for one in (used, revoked, expired, stranger, guessed)]
    expected = ["used_token", "revoked_token", "expired_token", "unknown_token", "unknown_token"]
    assert [one.reason for one in found] == expected
    assert {one.status for one in found} == {403}
    assert site.trail.count('"kind":"enrolment_refused"') == 4  # the second unknown one is silenced


async def test_a_refusal_costs_no_use(site: FleetSite) -> None:
    """A bad request, a weak key, a full inventory, no CA key: the token is as good as before."""
    weak = rsa.generate_private_key(public_exponent=65537, key_size=1024)
    async with site.fleet() as fleet:
        token = site.token()
        for wish in (
            EnrolRequest(token.text, "nonsense", HostFacts("h", "linux")),
            EnrolRequest(token.text, csr()[:-200], HostFacts("h", "linux")),
            request(token, key=weak),
        ):
            found = await refusal(fleet, wish)
            assert (found.reason, found.status) == ("bad_csr", 400)
        site.config = site.config.model_copy(update={"max_agents": 1})
        await enrol(site, fleet)
        full = await refusal(fleet, request(token))
        assert (full.status, "max_agents" in str(full)) == (503, True)
        (site.pki / "ca.key").rename(site.pki / "elsewhere")
        without = await refusal(fleet, request(token))
        assert (without.reason, without.status, "agents add" in str(without)) == ("no_ca_key", 503, True)
        (site.pki / "elsewhere").rename(site.pki / "ca.key")
        site.config = site.config.model_copy(update={"max_agents": 2})
        assert 1 in uses_left(site)
        await fleet.enrolment.enrol(request(token), "192.0.2.1")


async def test_one_key_is_never_two_agents(site: FleetSite) -> None:
    """A copied disk with another token; and a revoked agent's key, which may be in other hands."""
    key = new_key()
    async with site.fleet() as fleet:
        first = await enrol(site, fleet, key=key)
        found = await refusal(fleet, request(site.token(), key=key))
        assert (found.reason, first.agent_id in str(found)) == ("bad_csr", True)
        other = await enrol(site, fleet)
        with pytest.raises(EnrolmentRefused, match="make one of your own"):
            await fleet.enrolment.renew(other.agent_id, renewal(key), serial(other))


async def test_a_full_disk_for_the_audit_trail_lets_nobody_in(site: FleetSite, monkeypatch: pytest.MonkeyPatch) -> None:
    """An identity that left no trace would be worse than a host that waits; the repeat then costs nothing."""
    key = new_key()
    async with site.fleet() as fleet:
        token = site.token()
        with monkeypatch.context() as patched:
            patched.setattr("ndcollector.audit._write", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left")))
            found = await refusal(fleet, request(token, key=key))
            assert (found.reason, found.status, found.retry_after_seconds) == ("unavailable", 503, 5.0)
        await fleet.enrolment.enrol(request(token, key=key), "192.0.2.1")
    assert uses_left(site) == [0]


# -- hostile ---------------------------------------------------------------------------------------------------------


async def test_a_hundred_thousand_wrong_tokens_cost_little(site: FleetSite) -> None:
    """After the first twenty from an address nothing is looked up, logged or written for it."""
    async with site.fleet() as fleet:
        wish = request(Token("00" * 5, b"\0" * 24, site.token().ca_fingerprints))
        began = time.process_time()
        reasons = [(await refusal(fleet, wish, "198.51.100.7")).reason for _ in range(100_000)]
        assert time.process_time() - began < 10
        assert reasons[:20] == ["unknown_token"] * 20
        assert set(reasons[20:]) == {"too_many_attempts"}
        assert (await refusal(fleet, wish, "198.51.100.7")).retry_after_seconds == 60
        await enrol(site, fleet)  # from another address
        site.clock.pass_by(60)
        assert (await refusal(fleet, wish, "198.51.100.7")).reason == "unknown_token"
    assert len(site.trail.splitlines()) < 10


def test_the_table_of_addresses_is_bounded() -> None:
    """Many addresses take no more memory than the table has rows; an IPv6 host is one, whatever it calls itself."""
    now = [0.0]
    table = Attempts(3, clock=lambda: now[0])
    tracemalloc.start()
    for number in range(3 * attempts.MAX_ADDRESSES):
        table.wrong(f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}")
    assert tracemalloc.get_traced_memory()[0] < 2_000_000
    tracemalloc.stop()
    for host in ("2001:db8::1", "2001:db8::ffff:2", "2001:db8::3"):
        assert table.wait_seconds("2001:db8::9") == 0
        table.wrong(host)
    assert table.wait_seconds("2001:db8::9") == 60
    assert table.wait_seconds("2001:db8:0:1::9") == 0
    for host in ("192.0.2.1", "::ffff:192.0.2.1", "192.0.2.1"):
        table.wrong(host)
    assert table.wait_seconds("192.0.2.1") == 60
    now[0] = 60
    assert table.wait_seconds("192.0.2.1") == 0


def pem(der: bytes) -> bytes:
    lines = base64.encodebytes(der)
    return b"-----BEGIN CERTIFICATE REQUEST-----\n" + lines + b"-----END CERTIFICATE REQUEST-----\n"


@given(st.binary(max_size=300) | st.binary(max_size=200).map(pem))
def test_whatever_stands_in_a_request_it_is_a_key_or_our_error(data: bytes) -> None:
    """Nothing else gets out of the parser."""
    with pytest.raises(PkiError):
        public_key_of(data)


def test_one_wrong_byte_anywhere_in_a_request_is_our_error_at_most() -> None:
    """Every place, so that each field is met (a version that does not exist is an exception of its own)."""
    der = base64.b64decode("".join(csr().splitlines()[1:-1]))
    for at in range(len(der)):
        for value in {0, 1, 0x7F, 0xFF, der[at] ^ 1, der[at] ^ 0x80} - {der[at]}:
            with contextlib.suppress(PkiError):
                public_key_of(pem(der[:at] + bytes([value]) + der[at + 1 :]))


async def test_the_largest_request_is_looked_at_and_refused_in_no_time(site: FleetSite) -> None:
    """A PEM of 16 KiB that is no request."""
    async with site.fleet() as fleet:
        body = "A" * (MAX_CSR_CHARACTERS - 200)
        text = f"-----BEGIN CERTIFICATE REQUEST-----\n{body}\n-----END CERTIFICATE REQUEST-----\n"
        found = await refusal(fleet, EnrolRequest(site.token().text, text, HostFacts("h", "linux")))
        assert found.reason == "bad_csr"


async def test_only_so_many_wait_for_their_turn(site: FleetSite) -> None:
    """The rest is told to come again; those who wait get what they came for."""
    async with site.fleet() as fleet:
        token = site.token(uses=1000)
        wishes = [request(token) for _ in range(MAX_WAITING + 5)]
        results = await asyncio.gather(
            *(fleet.enrolment.enrol(one, "192.0.2.1") for one in wishes), return_exceptions=True
        )
        late = [one for one in results if isinstance(one, EnrolmentRefused)]
        assert len(late) == 5
        assert {(one.status, one.retry_after_seconds) for one in late} == {(503, 5.0)}
    assert uses_left(site) == [1000 - MAX_WAITING]


async def test_uses_are_counted_exactly_under_a_run(site: FleetSite) -> None:
    """Ten uses, thirty hosts at once: ten agents."""
    async with site.fleet() as fleet:
        token = site.token(uses=10)
        results = await asyncio.gather(
            *(fleet.enrolment.enrol(request(token), "192.0.2.1") for _ in range(30)), return_exceptions=True
        )
        assert sum(isinstance(one, EnrolmentRefused) and one.reason == "used_token" for one in results) == 20
    assert len(agents(site)) == 10


# -- renewal ---------------------------------------------------------------------------------------------------------


async def test_a_renewal_changes_nothing_of_the_identity(site: FleetSite) -> None:
    """And the certificate before it stays good; both keys speak for the agent."""
    async with site.fleet() as fleet:
        first = await enrol(site, fleet)
        second = await fleet.enrolment.renew(first.agent_id, renewal(), serial(first))
        assert second.agent_id == first.agent_id
        assert serial(second) != serial(first)
        assert len(fleet.public_keys(first.agent_id)) == 2
        third = await fleet.enrolment.renew(first.agent_id, renewal(), serial(second))
        assert certificate(third).subject == certificate(first).subject
    assert site.trail.count('"kind":"certificate_renewed"') == 2
    now = datetime.fromtimestamp(site.clock.unix, UTC)
    assert all(one.is_current(now) for one in pki.list_certificates(site.pki))


async def test_who_may_not_renew_is_told_why(site: FleetSite) -> None:
    """Unknown, revoked, with another agent's or an expired certificate."""
    async with site.fleet() as fleet:
        one, other = await enrol(site, fleet), await enrol(site, fleet)

        async def reason(agent_id: str, with_serial: str) -> str:
            with pytest.raises(EnrolmentRefused) as caught:
                await fleet.enrolment.renew(agent_id, renewal(), with_serial)
            assert caught.value.status == 403
            return caught.value.reason

        assert await reason("a" * 16, serial(one)) == "unknown_agent"
        assert await reason(one.agent_id, serial(other)) == "revoked_agent"
        pki.revoke(site.pki, one.agent_id, now=datetime.fromtimestamp(site.clock.unix, UTC))
        await fleet._look()
        assert await reason(one.agent_id, serial(one)) == "revoked_agent"
        site.clock.pass_by(91 * 86400)
        assert await reason(other.agent_id, serial(other)) == "revoked_agent"


async def test_renewals_that_a_full_disk_cut_short_do_not_keep_an_agent_from_renewing(
    site: FleetSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each try left a certificate that nobody got; a day later it may try again, and its own key speaks meanwhile."""
    key = new_key()
    async with site.fleet() as fleet:
        first = await enrol(site, fleet)
        (own,) = fleet.public_keys(first.agent_id)
        with monkeypatch.context() as patched:
            patched.setattr("ndcollector.audit._write", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left")))
            for _ in range(20):
                with pytest.raises(EnrolmentRefused):
                    await fleet.enrolment.renew(first.agent_id, renewal(key), serial(first))
                site.clock.pass_by(900)
        site.clock.pass_by(86400)
    async with site.fleet() as fleet:
        assert own in fleet.public_keys(first.agent_id)[:2]
        renewed = await fleet.enrolment.renew(first.agent_id, renewal(key), serial(first))
        assert renewed.agent_id == first.agent_id


async def test_an_agent_that_renews_without_end_is_stopped(site: FleetSite) -> None:
    """It would fill the index that every revocation reads."""
    async with site.fleet() as fleet:
        answer = await enrol(site, fleet)
        made = 1
        for _ in range(MAX_CURRENT_CERTIFICATES // MAX_CERTIFICATES_A_DAY + 1):
            with contextlib.suppress(EnrolmentRefused):
                for _ in range(MAX_CERTIFICATES_A_DAY):
                    answer = await fleet.enrolment.renew(answer.agent_id, renewal(), serial(answer))
                    made += 1
            with pytest.raises(EnrolmentRefused) as caught:
                await fleet.enrolment.renew(answer.agent_id, renewal(), serial(answer))
            assert (caught.value.status, caught.value.retry_after_seconds) == (429, 3600)
            site.clock.pass_by(86400)
        assert made == MAX_CURRENT_CERTIFICATES


async def test_a_clock_that_jumps_neither_revives_a_token_nor_kills_the_fleet(site: FleetSite) -> None:
    """A year ahead and back: what was expired is again as the clock says, uses stay counted, nothing raises."""
    async with site.fleet() as fleet:
        token = site.token(uses=2, expires_at=site.clock.unix + 3600)
        answer = await fleet.enrolment.enrol(request(token), "192.0.2.1")
        site.clock.unix += 365 * 86400
        assert (await refusal(fleet, request(token))).reason == "expired_token"
        site.clock.unix -= 366 * 86400
        fleet.seen(answer.agent_id, address="192.0.2.1", transport="https")
        await fleet.write()
        await fleet.enrolment.enrol(request(token), "192.0.2.1")
        assert (await refusal(fleet, request(token))).reason == "used_token"


# -- crashes ---------------------------------------------------------------------------------------------------------

DRIVER = """
import asyncio, os, signal, sys
from pathlib import Path
from fleet_site import FleetSite
from ndagent.wire.enrolment import EnrolRequest
from ndcollector.agents import database, enrolment

point = sys.argv[2]

def killing(owner, name, when):
    real = getattr(owner, name)
    def step(*arguments, **named):
        if when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        result = real(*arguments, **named)
        os.kill(os.getpid(), signal.SIGKILL)
        return result
    setattr(owner, name, step)

POINTS = {
    "claim_before": (enrolment.tokens, "claim", "before"),
    "claim_after": (enrolment.tokens, "claim", "after"),
    "sign_before": (enrolment, "sign", "before"),
    "sign_after": (enrolment, "sign", "after"),
    "inventory_before": (enrolment.Inventory, "add_certificate", "before"),
    "inventory_after": (enrolment.Inventory, "add_certificate", "after"),
    "audit_before": (enrolment.Audit, "record", "before"),
    "audit_after": (enrolment.Audit, "record", "after"),
}

async def main():
    async with FleetSite(Path(sys.argv[1])).fleet() as fleet:
        killing(*POINTS[point])
        await fleet.enrolment.enrol(EnrolRequest.from_json(sys.stdin.buffer.read()), "192.0.2.1")

asyncio.run(main())
"""
POINTS = (
    "claim_before", "claim_after", "sign_before", "sign_after", "inventory_before", "inventory_after", "audit_before",
    "audit_after",
)  # fmt: skip


@pytest.mark.parametrize("point", POINTS)
async def test_a_kill_between_any_two_steps_gives_no_use_away_and_loses_none(site: FleetSite, point: str) -> None:
    """The same request again is the same agent; another key finds the use counted, once the count was durable."""
    async with site.fleet():
        pass
    token, key = site.token(), new_key()
    wish = request(token, key=key)
    root = Path(__file__).parent
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, str(site.state.parent), point],
        input=wish.to_json(), capture_output=True, check=False,
        env={**os.environ, "PYTHONPATH": f"{root.parent}:{root}"},
    )  # fmt: skip
    assert done.returncode == -9, done.stderr.decode()
    was_counted = point != "claim_before"
    assert uses_left(site) == [0 if was_counted else 1]
    async with site.fleet() as fleet:
        if was_counted:
            assert (await refusal(fleet, request(token))).reason == "used_token"
        answer = await fleet.enrolment.enrol(wish, "192.0.2.1")
        assert agents(site) == [answer.agent_id]
        assert fleet.admit(answer.agent_id, spool_id="spool00000000000", run_id="0" * 16) is None
    assert uses_left(site) == [0]
    indexed = {one.serial for one in pki.list_certificates(site.pki) if one.kind == "agent"}
    assert serial(answer) in indexed
    pki.revoke(site.pki, answer.agent_id, now=datetime.now(UTC) + timedelta(seconds=1))


# -- a token against its model ---------------------------------------------------------------------------------------

steps = st.one_of(
    st.tuples(st.just("claim"), st.integers(0, 4)),
    st.tuples(st.just("pass"), st.sampled_from([1, 1800, 3600, 43_200, 86_400])),
    st.tuples(st.just("revoke token"), st.none()),
    st.tuples(st.just("revoke agent"), st.integers(0, 4)),
    st.tuples(st.just("remove agent"), st.integers(0, 4)),
)


class Model:
    """What a token of two uses and an hour means, in words of sets."""

    def __init__(self) -> None:
        self.now, self.uses_left, self.is_revoked = 0, 2, False
        self.agents: dict[int, tuple[str, int, bool]] = {}  # key → agent, used at, revoked

    def claim(self, key: int, fresh: str) -> str:
        if self.is_revoked:
            return "revoked_token"
        if key in self.agents:
            agent, used_at, is_revoked = self.agents[key]
            if is_revoked:
                return "revoked_agent"
            return "used_token" if self.now - used_at > tokens.REPEAT_SECONDS else agent
        if self.now >= 3600:
            return "expired_token"
        if not self.uses_left:
            return "used_token"
        self.uses_left -= 1
        self.agents[key] = fresh, self.now, False
        return fresh


@settings(max_examples=40)
@given(st.lists(steps, max_size=14))
def test_a_token_does_what_its_model_does(steps: list[tuple[str, int | None]]) -> None:
    """Whatever agents and operators do, in any order; a removed agent gives no use back."""
    model, facts = Model(), HostFacts("h", "linux")
    with tempfile.TemporaryDirectory() as directory:
        inventory = Inventory(Path(directory) / "inventory.sqlite")
        wish = tokens.Wish(uses=2, expires_at=3600)
        token = tokens.create(inventory, wish, ca_fingerprints=[bytes(32)], created_by="test", now=0)
        for number, (what, value) in enumerate(steps):
            if what == "pass":
                model.now += value or 0
            elif what == "revoke token":
                model.is_revoked = True
                tokens.revoke(inventory, token.id, now=model.now)
            elif what == "claim":
                fresh, spki = f"agent{number}", bytes([value or 0])
                try:
                    found = tokens.claim(
                        inventory, token, spki=spki, facts=facts, agent_id=fresh, address="", now=model.now
                    )
                except tokens.TokenRefused as refused:
                    found = refused.reason
                assert found == model.claim(value or 0, fresh)
            elif value in model.agents:
                agent, used_at, _ = model.agents.pop(value)
                if what == "remove agent":
                    inventory.remove(agent)
                else:
                    inventory.mark_revoked(agent, reason="x", now=model.now)
                    model.agents[value] = agent, used_at, True
        (row,) = tokens.list_tokens(inventory)
        assert row.uses_left == model.uses_left
        assert {one.id for one in inventory.agents()} == {agent for agent, _, _ in model.agents.values()}
        inventory.close()
