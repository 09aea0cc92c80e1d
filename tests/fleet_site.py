"""A fleet over a real PKI directory and a real inventory file, and hosts that enrol with it."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import NameOID

from ndagent.core.metrics import Metrics
from ndagent.wire.enrolment import Answer, Endpoints, EnrolRequest, HostFacts, RenewRequest, Token
from ndcollector import pki
from ndcollector.agents import tokens
from ndcollector.agents.config import AgentsConfig
from ndcollector.agents.fleet import Fleet
from ndcollector.agents.inventory import Inventory
from ndcollector.agents.schema import FILE
from ndcollector.agents.tokens import Wish
from ndcollector.agents.trust import TrustFile

SERVER = pki.Subject("server", "collector-1", ("localhost",), ("127.0.0.1",))
RUNS = [f"{number:016x}" for number in range(1, 9)]
SPOOLS = [f"spool{number:011}" for number in range(200)]
Key = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey


def new_key() -> ec.EllipticCurvePrivateKey:
    """As an agent makes one."""
    return ec.generate_private_key(ec.SECP256R1())


def csr(key: Key | None = None) -> str:
    """A request that wishes to be the collector itself."""
    key = key or new_key()
    algorithm = None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    builder = x509.CertificateSigningRequestBuilder().subject_name(
        x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "collector-1")])
    )
    wish = x509.SubjectAlternativeName([x509.UniformResourceIdentifier("nd:server:collector-1")])
    builder = builder.add_extension(wish, critical=False)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    return builder.sign(key, algorithm).public_bytes(serialization.Encoding.PEM).decode()


@dataclass
class Clock:
    """Time that stands still until it is moved: Unix seconds, and monotonic ones that never jump back."""

    unix: float = field(default_factory=lambda: datetime.now(UTC).timestamp())
    steady: float = 1000.0

    def now(self) -> float:
        return self.unix

    def monotonic(self) -> float:
        return self.steady

    def pass_by(self, seconds: float) -> None:
        self.unix += seconds
        self.steady += seconds


class FleetSite:
    """State directory, PKI and clock; `fleet()` opens a fleet on them, again and again."""

    def __init__(self, directory: Path, **config: object) -> None:
        self.state = directory / "state"
        self.pki = directory / "pki"
        self.state.mkdir(exist_ok=True)
        self.clock = Clock()
        self.config = AgentsConfig.model_validate(config)
        self.metrics = Metrics()
        if not (self.pki / "ca.crt").exists():
            pki.init(self.pki, SERVER, now=datetime.fromtimestamp(self.clock.unix, UTC).replace(microsecond=0))

    @property
    def file(self) -> Path:
        return self.state / FILE

    @property
    def trail(self) -> str:
        """The audit trail."""
        path = self.state / "audit.ndjson"
        return path.read_text() if path.exists() else ""

    @asynccontextmanager
    async def fleet(self) -> AsyncIterator[Fleet]:
        """Open until the end of the block; not running by itself."""
        fleet = Fleet(
            state_dir=self.state,
            pki=self.pki,
            ca_file=lambda: self.pki / "ca.crt",
            config=lambda: self.config,
            endpoints=lambda: Endpoints(("collector.example:8883",), ("collector.example:8443",)),
            metrics=self.metrics,
            clock=self.clock.now,
            monotonic=self.clock.monotonic,
        )
        await fleet.open()
        try:
            yield fleet
        finally:
            await fleet.aclose()

    def token(self, **wish: object) -> Token:
        """A new token, made as the command makes it: on a connection of its own."""
        inventory = Inventory(self.file)
        try:
            prints = TrustFile(lambda: self.pki / "ca.crt").bundle().fingerprints
            return tokens.create(
                inventory,
                Wish(**wish),
                ca_fingerprints=prints,
                created_by="test",
                now=self.clock.unix,  # type: ignore[arg-type]  # as given
            )
        finally:
            inventory.close()

    def inventory(self) -> Inventory:
        """A connection of its own, as a command has."""
        return Inventory(self.file)

    def metric(self, name: str, **labels: str) -> float | None:
        return self.metrics.registry.get_sample_value(name, labels)


def request(token: Token, *, key: Key | None = None, hostname: str = "web-1") -> EnrolRequest:
    """An agent's request."""
    return EnrolRequest(token.text, csr(key), HostFacts(hostname, "linux", "Debian GNU/Linux 12", "x86_64", "0.1.0"))


async def enrol(site: FleetSite, fleet: Fleet, *, hostname: str = "web-1", key: Key | None = None) -> Answer:
    """One more agent."""
    return await fleet.enrolment.enrol(request(site.token(), hostname=hostname, key=key), "192.0.2.1")


def renewal(key: Key | None = None) -> RenewRequest:
    """An agent's request for the next certificate."""
    return RenewRequest(csr(key))


def certificate(answer: Answer) -> x509.Certificate:
    """The one in the answer."""
    return x509.load_pem_x509_certificate(answer.certificate.encode())


def serial(answer: Answer) -> str:
    """Its serial, as listeners give it."""
    return f"{certificate(answer).serial_number:X}"


def group_of(fleet: Fleet, agent_id: str) -> tuple[str, tuple[str, ...]]:
    """Group and roles, as policies go by."""
    facts = fleet.facts(agent_id)
    assert facts is not None
    return facts.group, facts.roles
