"""What an agent keeps of who it is: whole or not there, whenever it is killed; and how it gets it."""

import asyncio
import datetime as dt
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import pytest
from collector_process import ROOT
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key
from tls_peers import Authority

from ndagent import enrolment
from ndagent.enrolment import EnrolmentFailed
from ndagent.identity import IdentityStore, NoIdentity, sweep, write_private
from ndagent.wire import routes
from ndagent.wire.enrolment import Answer, Endpoints, Refusal, Token, fingerprint
from tests.agent.tls_server import Open, Site, serving

_SPKI = PublicFormat.SubjectPublicKeyInfo
AGENT, OTHER = "abcdefghijklmnop", "ponmlkjihgfedcba"


class Collector:
    """A collector that a test can make lie: enrols every token, renews everybody."""

    def __init__(self, directory: Path) -> None:
        self.site = Site(directory)
        self.agent_id = AGENT
        self.seen = Open()
        self.keys: list[bytes] = []
        self.ca = self.pem(self.site.files.authority)
        self.forged: Callable[[Answer], bytes] | None = None
        self.refusal: tuple[int, Refusal] | None = None
        self.taken: set[bytes] = set()  # keys that are another agent's
        self.handed_out = self.ca

    @staticmethod
    def pem(authority: Authority) -> str:
        return authority.certificate.public_bytes(Encoding.PEM).decode()

    @property
    def token(self) -> str:
        der = self.site.files.authority.certificate.public_bytes(Encoding.DER)
        return Token("00" * 5, b"s" * 24, (fingerprint(der),)).text

    @property
    def url(self) -> str:
        return f"https://localhost:{self.seen.port}"

    @property
    def endpoints(self) -> Endpoints:
        return Endpoints((), (f"localhost:{self.seen.port}",))

    def answer(self, csr: str) -> Answer:
        request = x509.load_pem_x509_csr(csr.encode())
        self.keys.append(request.public_key().public_bytes(Encoding.DER, _SPKI))
        return self.certify(request.public_key())

    def certify(self, key: Any) -> Answer:
        authority = self.site.files.authority
        now = dt.datetime.now(dt.UTC)
        names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(f"nd:agent:{self.agent_id}")])
        builder = x509.CertificateBuilder(
            authority.certificate.subject, x509.Name([]), key, x509.random_serial_number()
        )
        builder = builder.not_valid_before(now - dt.timedelta(1)).not_valid_after(now + dt.timedelta(30))
        certificate = builder.add_extension(names, critical=True).sign(authority.key, SHA256())
        return Answer(
            agent_id=self.agent_id,
            certificate=certificate.public_bytes(Encoding.PEM).decode(),
            ca=self.ca,
            endpoints=self.endpoints,
            renew_after=int(now.timestamp()) + 20 * 86400,
            now=int(now.timestamp()),
            policy_key=b"k" * 32,
            group="web",
        )

    async def talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        length = next((int(one.split(":")[1]) for one in head.split("\r\n") if one.lower().startswith("content-l")), 0)
        body = await reader.readexactly(length)
        status, answer = 200, self.handed_out.encode()
        if f" {routes.CA} " not in head:
            made = self.answer(orjson.loads(body)["csr"])
            answer = self.forged(made) if self.forged else made.to_json()
            if self.refusal is not None:
                status, answer = self.refusal[0], self.refusal[1].to_json()
            elif self.keys[-1] in self.taken:
                status, answer = 400, Refusal("bad_csr", "the key belongs to another agent").to_json()
        writer.write(b"HTTP/1.1 %d X\r\nContent-Length: %d\r\n\r\n" % (status, len(answer)) + answer)


@asynccontextmanager
async def collecting(directory: Path) -> AsyncIterator[Collector]:
    collector = Collector(directory)
    async with serving(collector.talk, collector.site.server) as seen:
        collector.seen = seen
        yield collector


@pytest.fixture
def store(tmp_path: Path) -> IdentityStore:
    (tmp_path / "state").mkdir()
    return IdentityStore(tmp_path / "state" / "identity")


def key_of(store: IdentityStore) -> bytes:
    """The public key of what is stored, as its certificate and its private key agree on."""
    pem = (store.directory / store.load().pair).read_bytes()
    certificate = x509.load_pem_x509_certificate(pem).public_key()
    private = load_pem_private_key(pem, None)
    assert isinstance(private, ec.EllipticCurvePrivateKey)
    assert private.public_key() == certificate
    found: bytes = private.public_key().public_bytes(Encoding.DER, _SPKI)
    return found


async def test_enrolled_and_renewed(tmp_path: Path, store: IdentityStore) -> None:
    """A key of its own each time; nobody else may read it; what is needed no more is gone."""
    async with collecting(tmp_path) as collector:
        first = await enrolment.enrol(collector.url, collector.token, store)
        assert (first.agent_id, first.group, first.policy_key) == (AGENT, "web", b"k" * 32)
        assert store.load() == first
        assert key_of(store) == collector.keys[-1]
        for _ in range(3):
            await enrolment.renew(store)
            assert key_of(store) == collector.keys[-1]
        assert len(set(collector.keys)) == 4
        files = {one.name: one.stat().st_mode & 0o777 for one in store.directory.iterdir()}
        assert set(files.values()) == {0o600}, files
        assert store.directory.stat().st_mode & 0o777 == 0o700
        assert len(list(store.directory.glob("*.pem"))) == 3  # this one, the one before, ca.pem
        assert not store.pending_key.exists()
        store.context(store.load())


async def test_a_lost_answer_is_asked_for_again_with_the_same_key(tmp_path: Path, store: IdentityStore) -> None:
    """So that the collector knows the request again and counts no second use of the token."""
    async with collecting(tmp_path) as collector:
        for forged in (lambda _: b"", lambda _: b"<html>", lambda answer: answer.to_json()[:-5]):
            collector.forged = forged
            with pytest.raises(EnrolmentFailed) as told:
                await enrolment.enrol(collector.url, collector.token, store)
            assert not told.value.final
        collector.forged = None
        await enrolment.enrol(collector.url, collector.token, store)
        assert len(set(collector.keys)) == 1


async def test_a_key_left_by_a_kill_behind_the_answer_is_not_used_for_the_next_certificate(
    tmp_path: Path, store: IdentityStore
) -> None:
    """A kill between storing and forgetting must not keep one key for ever."""
    async with collecting(tmp_path) as collector:
        await enrolment.enrol(collector.url, collector.token, store)
        pem = (store.directory / store.load().pair).read_bytes()
        store.pending_key.write_bytes(pem[: pem.index(b"-----BEGIN CERT")])
        await enrolment.renew(store)
        assert len(set(collector.keys)) == 2
        assert key_of(store) == collector.keys[-1]


@pytest.mark.parametrize("way", ["enrol", "renew"])
async def test_a_waiting_key_that_became_another_agents_gives_way_to_a_new_one(
    tmp_path: Path, store: IdentityStore, way: str
) -> None:
    """An enrolment whose answer was lost has made an agent of it: no later token may have it, nor this agent."""
    async with collecting(tmp_path) as collector:
        if way == "renew":
            await enrolment.enrol(collector.url, collector.token, store)
        collector.forged = lambda _: b""
        with pytest.raises(EnrolmentFailed):
            await enrolment.enrol(collector.url, collector.token, store)
        collector.forged = None
        collector.taken = {collector.keys[-1]}
        if way == "renew":
            await enrolment.renew(store)
        else:
            await enrolment.enrol(collector.url, collector.token, store)
        assert key_of(store) == collector.keys[-1] not in collector.taken
        assert not store.pending_key.exists()


async def test_a_collector_that_takes_no_key_is_asked_twice_and_not_for_ever(
    tmp_path: Path, store: IdentityStore
) -> None:
    """Its words are told; the next try begins with a key that it has not refused."""
    async with collecting(tmp_path) as collector:
        collector.refusal = (400, Refusal("bad_csr", "no key is good enough"))
        for tries in (2, 4):
            with pytest.raises(EnrolmentFailed, match="no key is good enough"):
                await enrolment.enrol(collector.url, collector.token, store)
            assert len(collector.keys) == len(set(collector.keys)) == tries


KILL = """
import os, sys
sys.path.insert(0, {root!r}); sys.path.insert(0, {root!r} + "/tests")
from ndagent.identity import IdentityStore
from ndagent.wire.enrolment import Answer
from pathlib import Path
left = int(sys.argv[1])
def counting(real):
    def call(*a, **k):
        global left
        left -= 1
        if left < 0: os._exit(9)
        return real(*a, **k)
    return call
for name in ("replace", "unlink"):
    setattr(Path, name, counting(getattr(Path, name)))
os.fsync = counting(os.fsync)
os.open = counting(os.open)
answer, key = Answer.from_json(open({answer!r}, "rb").read()), open({key!r}, "rb").read()
IdentityStore(Path({store!r})).store(answer, key=key, not_after=2**31)
"""


async def test_killed_anywhere_while_storing_there_is_the_old_identity_or_the_new_one(
    tmp_path: Path, store: IdentityStore
) -> None:
    """Each with the key that belongs to it; and storing again works."""
    async with collecting(tmp_path) as collector:
        await enrolment.enrol(collector.url, collector.token, store)
        old = key_of(store)
        key = ec.generate_private_key(ec.SECP256R1())
        answer, pem = tmp_path / "answer", tmp_path / "key"
        answer.write_bytes(collector.certify(key.public_key()).to_json())
        pem.write_bytes(enrolment._pem(key))
        new = key.public_key().public_bytes(Encoding.DER, _SPKI)
        code = KILL.format(root=str(ROOT), store=str(store.directory), answer=str(answer), key=str(pem))
        found = []
        for step in range(40):
            store.pending_key.write_bytes(b"pending")
            done = await asyncio.to_thread(subprocess.run, [sys.executable, "-c", code, str(step)], check=False)
            found.append(key_of(store))
            store.context(store.load())
            if done.returncode == 0:
                break
            assert done.returncode == 9
        assert done.returncode == 0
        assert found[0] == old
        assert found[-1] == new
        assert sorted(found, key=lambda one: one == new) == found  # once new, never old again
        assert {old, new} == set(found)


def test_what_a_kill_left_behind_is_swept_an_hour_later(tmp_path: Path) -> None:
    """It may hold a key; one that is being written stays."""
    old, young = tmp_path / ".new-old", tmp_path / ".new-young"
    for one in (old, young):
        one.write_bytes(b"key")
    os.utime(old, (1, 1))
    sweep(tmp_path)
    assert [one.name for one in tmp_path.iterdir()] == [".new-young"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can write for another user")
def test_what_root_writes_belongs_to_the_agents_user_and_links_lead_nowhere(tmp_path: Path) -> None:
    """`ndagent enroll` by root in a directory that another user owns, who may put links there."""
    home, secret = tmp_path / "home", tmp_path / "secret"
    home.mkdir()
    secret.write_bytes(b"root's")
    os.chown(home, 1234, 1234)
    (home / "key").symlink_to(secret)
    write_private(home / "key", b"agent's")
    status = (home / "key").lstat()
    assert (status.st_uid, status.st_mode & 0o777) == (1234, 0o600)
    assert (home / "key").read_bytes() == b"agent's"
    assert (secret.read_bytes(), secret.stat().st_uid) == (b"root's", 0)
    (home / "lock").symlink_to(secret)
    with pytest.raises(OSError, match="symbolic links"), IdentityStore(home)._locked():
        pass
    assert secret.stat().st_uid == 0


# ---- collectors that lie


async def test_a_renewal_for_another_agent_is_not_taken_up(tmp_path: Path, store: IdentityStore) -> None:
    """Nor is one for another key, one with CAs that are none, or no certificate; the identity stays as it is."""
    async with collecting(tmp_path) as collector:
        before = await enrolment.enrol(collector.url, collector.token, store)
        collector.agent_id = OTHER
        with pytest.raises(EnrolmentFailed, match=f"renewed for agent {OTHER}, this is {AGENT}"):
            await enrolment.renew(store)
        collector.agent_id = AGENT
        stranger = ec.generate_private_key(ec.SECP256R1()).public_key()
        lies: list[tuple[Callable[[Answer], bytes], str]] = [
            (lambda _: collector.certify(stranger).to_json(), "for another key"),
            (lambda one: _with(one, ca="no PEM"), "cannot be used"),
            (lambda one: _with(one, ca=one.certificate), "no CA's certificate"),
            (
                lambda one: _with(one, certificate="-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"),
                "holds no",
            ),
        ]
        for lie, words in lies:
            collector.forged = lie
            with pytest.raises(EnrolmentFailed, match=words):
                await enrolment.renew(store)
        assert store.load() == before
        store.context(store.load())


async def test_what_a_collector_refuses_is_told_in_its_words(tmp_path: Path, store: IdentityStore) -> None:
    """Final where trying again cannot help."""
    async with collecting(tmp_path) as collector:
        for status, final in ((403, True), (429, False), (503, False)):
            collector.refusal = (status, Refusal("used_token", "it was used"))
            with pytest.raises(EnrolmentFailed, match=r"refused: it was used \(used_token\)") as told:
                await enrolment.enrol(collector.url, collector.token, store)
            assert told.value.final is final
        assert not (store.directory / "identity.json").exists()


async def test_a_token_goes_to_no_collector_that_it_does_not_name(tmp_path: Path, store: IdentityStore) -> None:
    """Whoever hands out other CAs, or the right one without having its certificate from it, gets no second request."""
    (tmp_path / "other").mkdir()
    other = Collector(tmp_path / "other")
    async with collecting(tmp_path) as collector:
        with pytest.raises(EnrolmentFailed, match="not the collector that made this token"):
            await enrolment.enrol(collector.url, other.token, store)
        collector.handed_out = other.ca
        with pytest.raises(EnrolmentFailed, match="not trusted"):
            await enrolment.enrol(collector.url, other.token, store)
        assert collector.keys == []


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b'{"agent_id": 1}', b"\xff" * 300_000])
async def test_a_damaged_file_is_named_with_what_to_do(tmp_path: Path, store: IdentityStore, damage: bytes) -> None:
    """NoIdentity, whatever stands in it."""
    async with collecting(tmp_path) as collector:
        await enrolment.enrol(collector.url, collector.token, store)
    (store.directory / "identity.json").write_bytes(damage)
    with pytest.raises(NoIdentity, match=r"identity\.json: .*enroll again"):
        store.load()


def test_no_identity_says_how_to_get_one(store: IdentityStore) -> None:
    """The very first start."""
    with pytest.raises(NoIdentity, match="not enrolled: ndagent enroll --url"):
        store.load()


def _with(answer: Answer, **fields: str) -> bytes:
    return replace(answer, **fields).to_json()
