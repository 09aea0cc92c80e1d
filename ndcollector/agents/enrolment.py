"""Enrolment and renewal: from a token and a request for a certificate to an agent with an identity.

Promises: the order is token, key, count, certificate, so that a crash never gives a use away and a lost answer may be
asked for again; the certificate is in the PKI's index before it exists and in the inventory before it is answered; of
the request only the key is used; the blocking work runs in threads, one request at a time, and no more than
`MAX_WAITING` wait; every decision is audited. Refuses: HTTP. `EnrolmentRefused` says which status fits.

A renewal changes nothing of the identity, and the certificate before it stays good until its own end.
"""

import asyncio
import base64
import logging
import secrets
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol, TypeVar

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from ndagent.core import messages
from ndagent.core.log import Throttle
from ndagent.core.metrics import Metrics
from ndagent.wire.enrolment import Answer, BadToken, Endpoints, EnrolRequest, Reason, Refusal, RenewRequest, Token
from ndcollector.agents import tokens
from ndcollector.agents.attempts import Attempts
from ndcollector.agents.config import AgentsConfig
from ndcollector.agents.database import Database
from ndcollector.agents.inventory import Inventory
from ndcollector.agents.recovery import public_key_bytes
from ndcollector.agents.rows import Agent, Held
from ndcollector.agents.schema import InventoryError
from ndcollector.agents.tokens import TokenRefused
from ndcollector.agents.trust import TrustError, TrustFile
from ndcollector.audit import Audit
from ndcollector.pki.authority import sign
from ndcollector.pki.keys import load_authority, public_key_of
from ndcollector.pki.names import Subject
from ndcollector.pki.store import Certificate, PkiError

log = logging.getLogger("agents")

MAX_WAITING = 64
MAX_CERTIFICATES_A_DAY = 8
MAX_CURRENT_CERTIFICATES = 64
"""Of one agent: one that renews without end would fill the PKI's index. Few a day, but not few in all: those whose
answer was lost, or that a full disk cut short, count too, and must not keep an agent from renewing for months."""
RENEW_AT = 2 / 3
AGENT_ID_BYTES = 10  # 80 bits: 16 characters of base32
_DAY_SECONDS = 86400.0
_RETRY_SECONDS = 5.0
_SAY_SECONDS = 60.0

_STATUS: dict[Reason, int] = {
    "bad_request": 400,
    "bad_csr": 400,
    "unknown_token": 403,
    "used_token": 403,
    "expired_token": 403,
    "revoked_token": 403,
    "unknown_agent": 403,
    "revoked_agent": 403,
    "too_many_attempts": 429,
    "no_ca_key": 503,
    "unavailable": 503,
}
_WRONG: frozenset[Reason] = frozenset({"bad_request", "bad_csr", "unknown_token"})
"""What counts against the address it comes from; a token that was once good may be in a script that runs everywhere."""

T = TypeVar("T")
Signed = tuple[x509.Certificate, Certificate]


class EnrolmentRefused(Exception):
    """No certificate. `status` is the HTTP status that fits; `retry_after_seconds` says when to come again, if ever."""

    def __init__(self, reason: Reason, message: str, *, retry_after_seconds: float | None = None) -> None:
        super().__init__(message)
        self.reason: Reason = reason
        self.status = _STATUS[reason]
        self.retry_after_seconds = retry_after_seconds

    @property
    def refusal(self) -> Refusal:
        """The answer's document."""
        return Refusal(self.reason, str(self))


class Members(Protocol):
    """What enrolment needs of the fleet's memory."""

    def why_not_renew(self, agent_id: str, serial: str, now: float) -> tuple[Reason, str] | None:
        """Why this certificate may not be followed by another."""

    def learn(self, agent: Agent, held: Held) -> None:
        """An agent, perhaps a new one, has a new certificate."""


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What of the collector goes into an answer; asked each time, since a reload may change it."""

    pki: Path
    trust: TrustFile
    config: Callable[[], AgentsConfig]
    endpoints: Callable[[], Endpoints]
    policy_key: Callable[[], bytes]


class Enrolment:
    """One per collector."""

    def __init__(
        self,
        database: Database,
        members: Members,
        surroundings: Surroundings,
        *,
        audit: Audit,
        metrics: Metrics,
        clock: Callable[[], float],
        monotonic: Callable[[], float],
    ) -> None:
        self._database = database
        self._members = members
        self._around = surroundings
        self._audit = audit
        self._metrics = metrics
        self._clock = clock
        self._attempts = Attempts(surroundings.config().wrong_tokens_per_minute, clock=monotonic)
        self._say = Throttle(_SAY_SECONDS, clock=monotonic)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="enrolment")
        self._turn = asyncio.Lock()
        self._waiting = 0

    async def enrol(self, request: EnrolRequest, address: str) -> Answer:
        """A new agent, or the same again where the answer was lost; raises EnrolmentRefused."""
        self._attempts.per_minute = self._around.config().wrong_tokens_per_minute
        wait = self._attempts.wait_seconds(address)
        if wait > 0:
            self._metrics.enrolments.labels("too_many_attempts").inc()
            text = "too many wrong tokens from this address; wait, and check the token"
            raise EnrolmentRefused("too_many_attempts", text, retry_after_seconds=wait)
        token_id = ""
        try:
            token = _parse(request.token)
            token_id = token.id
            async with self._place():
                return await self._enrol(token, request, address)
        except EnrolmentRefused as refused:
            if refused.reason in _WRONG:
                self._attempts.wrong(address)
            await self._tell(refused, "enrolment_refused", address=address, token_id=token_id)
            raise

    async def renew(self, agent_id: str, request: RenewRequest, serial: str, address: str = "") -> Answer:
        """A new certificate for the agent that shows one with this serial (upper-case hex); raises EnrolmentRefused."""
        try:
            async with self._place():
                return await self._renew(agent_id, request, serial, address)
        except EnrolmentRefused as refused:
            await self._tell(refused, "renewal_refused", address=address, agent_id=agent_id)
            raise

    def authorities(self) -> str:
        """The CA certificates (PEM) that agents are to check collectors with; raises EnrolmentRefused."""
        return self._bundle()

    async def aclose(self) -> None:
        """Wait for what is under way."""
        await asyncio.to_thread(self._thread.shutdown)

    # ---- steps

    async def _enrol(self, token: Token, request: EnrolRequest, address: str) -> Answer:
        await self._ask(lambda inventory: tokens.check(inventory, token))
        csr, spki = await self._key_of(request.csr)
        await self._check_can_sign()
        fresh, now = new_agent_id(), self._clock()

        def claim(inventory: Inventory) -> str:
            if inventory.count() >= self._around.config().max_agents:
                raise TokenRefused("unavailable", "the inventory is full; remove agents, or raise agents.max_agents")
            facts = request.host
            return tokens.claim(inventory, token, spki=spki, facts=facts, agent_id=fresh, address=address, now=now)

        agent_id = await self._ask(claim)
        kind = "agent_enrolled" if agent_id == fresh else "agent_answered_again"
        return await self._certify(
            agent_id, csr, kind, address=address, token_id=token.id, hostname=request.host.hostname
        )

    async def _renew(self, agent_id: str, request: RenewRequest, serial: str, address: str) -> Answer:
        why_not = self._members.why_not_renew(agent_id, serial, self._clock())
        if why_not is not None:
            raise EnrolmentRefused(*why_not)
        await self._check_can_sign()
        csr, spki = await self._key_of(request.csr)
        owner = await self._ask(lambda inventory: inventory.owner_of_key(spki))
        if owner not in (None, agent_id):
            raise EnrolmentRefused("bad_csr", f"the key belongs to agent {owner}; make one of your own")
        return await self._certify(agent_id, csr, "certificate_renewed", address=address, old_serial=serial)

    async def _certify(self, agent_id: str, csr: bytes, kind: str, **said: object) -> Answer:
        """Certificate, inventory, audit, answer: in this order."""
        trust, config = self._bundle(), self._around.config()
        policy_key = await self._policy_key()
        now = datetime.fromtimestamp(self._clock(), UTC)
        subject = Subject("agent", agent_id)
        await self._check_not_too_many(agent_id, now.timestamp())
        certificate, entry = await self._sign(
            lambda: sign(self._around.pki, subject, now=now, csr=csr, days=config.certificate_days)
        )
        held = Held.of(entry, public_key_bytes(certificate))
        await self._ask(lambda inventory: inventory.add_certificate(agent_id, held, now=now.timestamp()))
        agent = await self._ask(lambda inventory: inventory.find(agent_id))
        await self._record(kind, agent_id=agent_id, serial=entry.serial, not_after=entry.not_after, **said)
        self._members.learn(agent, held)
        self._metrics.enrolments.labels("renewed" if kind == "certificate_renewed" else "enrolled").inc()
        extra = {**messages.AGENT_ENROLLED, "agent_id": agent_id, "serial": entry.serial, **said}
        log.info(kind.replace("_", " "), extra=extra)
        return Answer(
            agent_id=agent_id,
            certificate=certificate.public_bytes(Encoding.PEM).decode(),
            ca=trust,
            endpoints=self._around.endpoints(),
            renew_after=_renew_after(entry, now),
            now=int(now.timestamp()),
            policy_key=policy_key,
            group=agent.group,
        )

    async def _check_not_too_many(self, agent_id: str, now: float) -> None:
        held = await self._ask(lambda inventory: inventory.certificates_of(agent_id))
        current = [one for one in held if one.is_current(now)]
        of_today = sum(one.not_before > now - _DAY_SECONDS for one in current)
        if of_today >= MAX_CERTIFICATES_A_DAY or len(current) >= MAX_CURRENT_CERTIFICATES:
            text = f"agent {agent_id} got {of_today} certificates within a day and holds {len(current)}: why so many?"
            raise EnrolmentRefused("too_many_attempts", text, retry_after_seconds=3600.0)

    async def _check_can_sign(self) -> None:
        """Before a use is counted: without the CA's key there is nothing to give."""
        self._bundle()
        try:
            await self._run(lambda: load_authority(self._around.pki))
        except PkiError as error:
            text = (
                f"this collector cannot issue certificates: {error}. With a PKI of your own, issue one with the SAN "
                "URI:nd:agent:<id> there and add it on the collector: ndcollector agents add FILE"
            )
            raise EnrolmentRefused("no_ca_key", text, retry_after_seconds=3600.0) from error

    async def _key_of(self, text: str) -> tuple[bytes, bytes]:
        csr = text.encode("ascii")
        try:
            public = await self._run(lambda: public_key_of(csr))
        except PkiError as error:
            raise EnrolmentRefused("bad_csr", str(error)) from error
        return csr, public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)

    async def _sign(
        self, function: Callable[[], tuple[x509.Certificate, Certificate]]
    ) -> tuple[x509.Certificate, Certificate]:
        try:
            return await self._run(function)
        except (PkiError, OSError) as error:
            log.error("a certificate could not be issued: %s", error)
            raise _later(error) from error

    async def _policy_key(self) -> bytes:
        try:
            return await self._run(self._around.policy_key)
        except (PkiError, OSError) as error:
            raise _later(error) from error

    def _bundle(self) -> str:
        try:
            return self._around.trust.bundle().pem
        except TrustError as error:
            raise _later(error) from error

    async def _ask(self, function: Callable[[Inventory], T]) -> T:
        try:
            return await self._database.call(function)
        except TokenRefused as error:
            raise EnrolmentRefused(error.reason, str(error)) from error
        except (InventoryError, OSError) as error:
            raise _later(error) from error

    async def _record(self, kind: str, **said: object) -> None:
        try:
            await self._run(lambda: self._audit.record(kind, **said))
        except OSError as error:
            log.error(
                "the audit trail cannot be written, so nobody can enrol: %s", error,
                extra=messages.AUDIT_UNWRITTEN,
            )
            raise _later(error) from error

    async def _tell(self, refused: EnrolmentRefused, kind: str, **said: object) -> None:
        """Log and audit a refusal: the first of each reason and address within a minute."""
        self._metrics.enrolments.labels(refused.reason).inc()
        silenced = self._say.allow((refused.reason, said.get("address")))
        if silenced is None:
            return
        extra = {**messages.ENROLMENT_REFUSED, **said, "silenced": silenced}
        log.warning("%s: %s", kind.replace("_", " "), refused, extra=extra)
        try:
            await self._run(lambda: self._audit.record(kind, reason=refused.reason, silenced=silenced, **said))
        except OSError as error:
            log.error("the audit trail cannot be written: %s", error, extra=messages.AUDIT_UNWRITTEN)

    async def _run(self, function: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, function)

    @asynccontextmanager
    async def _place(self) -> AsyncIterator[None]:
        """One request at a time; raises EnrolmentRefused where too many wait already."""
        if self._waiting >= MAX_WAITING:
            raise EnrolmentRefused("unavailable", "many are enrolling now", retry_after_seconds=_RETRY_SECONDS)
        self._waiting += 1
        try:
            async with self._turn:
                yield
        finally:
            self._waiting -= 1


def new_agent_id() -> str:
    """80 random bits in lower-case base32."""
    return base64.b32encode(secrets.token_bytes(AGENT_ID_BYTES)).decode().lower()


def _parse(text: str) -> Token:
    try:
        return Token.parse(text)
    except BadToken as error:
        raise EnrolmentRefused("bad_request", str(error)) from error


def _renew_after(entry: Certificate, now: datetime) -> int:
    """At two thirds of what is left of its life now: it is dated back a little."""
    return int(now.timestamp() + (entry.not_after - now).total_seconds() * RENEW_AT)


def _later(error: Exception) -> EnrolmentRefused:
    return EnrolmentRefused("unavailable", f"try again later: {error}", retry_after_seconds=_RETRY_SECONDS)
