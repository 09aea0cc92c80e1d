"""Whose messages are taken: communities for v1 and v2c, users and engines for v3, and what a refused sender is told.

Promises:
  * a message passes only with a listed community, or from a listed user at exactly the user's level with a right digest
    and inside its time window (RFC 3414 §3.2, in its order);
  * whoever may be told (v3, reportable flag) is told in a Report, by which an engine finds ours and its time: that
    exchange is no loss and not counted as one; every other refusal has a reason;
  * an answer to whoever asks is hardly more than twice as long as the question: a forged address gains nothing by it;
  * informs are for our engine, traps from theirs: an inform that another engine answers for is not ours to acknowledge.
Refuses: sockets, and meaning what the PDU says.
"""

import hmac
from collections.abc import Callable, Collection, Mapping
from typing import NamedTuple

from ndagent.core.snmp_engine import Engine
from ndagent.core.snmp_users import MAX_ENGINE_ID_BYTES, MIN_ENGINE_ID_BYTES
from ndagent.core.snmp_usm import SALT_BYTES, Keys, User
from ndagent.wire.snmp import ber
from ndagent.wire.snmp.ber import Malformed
from ndagent.wire.snmp.messages import (
    V1,
    V2C,
    CommunityMessage,
    Flag,
    Kind,
    Scoped,
    SecuredMessage,
    Security,
    make_community_message,
    make_pdu,
    make_response,
    make_scoped,
    make_secured,
    open_message,
    open_scoped,
)

_VERSIONS = {V1: "1", V2C: "2c"}
_LEVELS = {Flag(0): "noAuthNoPriv", Flag.AUTH: "authNoPriv", Flag.AUTH | Flag.PRIV: "authPriv"}
_STATS = "1.3.6.1.6.3.15.1.1"  # usmStats (RFC 3414 §5)
_COUNTER32 = 0x41
_REASONS = {
    "security_level": 1, "not_in_time_window": 2, "unknown_user": 3, "unknown_engine": 4, "wrong_digest": 5,
    "decryption": 6,
}  # fmt: skip
_UNCONFIRMED = frozenset({Kind.RESPONSE, Kind.TRAP, Kind.REPORT})  # RFC 3411 §2.8: nobody waits for an answer
_MOST_MORE_BYTES = 16
"""Of a Report, beyond twice its question: the shortest that is right has 57 bytes, a Report to it up to 119."""
REPORTS = tuple(_REASONS)
REASONS = ("wrong_community", *_REASONS)
"""Why a well-formed message is refused; all are counted from the start."""


class Refusal(Exception):
    """A message that is not taken. `report` is the answer its sender is owed, if any; `is_handshake`: only that."""

    def __init__(self, reason: str, what: str, *, report: bytes | None = None, is_handshake: bool = False) -> None:
        super().__init__(what)
        self.reason = reason
        self.report = report
        self.is_handshake = is_handshake


class Opened(NamedTuple):
    """A message that passed: its PDU, what of it belongs into the event, and how to make the Response to it."""

    version: int
    pdu: bytes
    facts: dict[str, object]
    respond: Callable[[], bytes]


class Gate:
    """Opens datagrams. `random_bytes` as os.urandom, for salts."""

    def __init__(
        self, *, communities: Collection[bytes], users: Mapping[bytes, User], engine: Engine,
        random_bytes: Callable[[int], bytes],
    ) -> None:  # fmt: skip
        self._communities = tuple(communities)
        self._users = users
        self._engine = engine
        self._random_bytes = random_bytes
        self._told = dict.fromkeys(_REASONS, 0)

    def open(self, data: bytes) -> Opened:
        """A datagram's message; raises Malformed or Refusal."""
        message = open_message(data)
        if isinstance(message, CommunityMessage):
            return self._by_community(message)
        return self._by_user(message)

    def _by_community(self, message: CommunityMessage) -> Opened:
        version, community, pdu = message
        # Each is compared, whole: the time says nothing of which one was nearly right.
        if not any([hmac.compare_digest(community, known) for known in self._communities]):  # noqa: C419 - all of them
            raise Refusal("wrong_community", f"v{_VERSIONS[version]} with a community that is not listed")

        def respond() -> bytes:
            return make_community_message(version, community, make_response(pdu))

        return Opened(version, pdu, {"version": _VERSIONS[version]}, respond)

    # ---- v3

    def _by_user(self, message: SecuredMessage) -> Opened:
        is_ours = message.engine_id == self._engine.engine_id
        if not is_ours and not MIN_ENGINE_ID_BYTES <= len(message.engine_id) <= MAX_ENGINE_ID_BYTES:
            # An empty id is the question for ours (RFC 3414 §4).
            raise self._refusal(message, "unknown_engine", is_handshake=not message.engine_id)
        try:
            return self._opened(message, is_ours=is_ours)
        except Refusal as refusal:
            if is_ours or not message.flags & Flag.REPORTABLE:
                raise
            # Only a trap has another engine. It should have no such flag; some senders set it (RFC 3412 §6.4).
            raise self._refusal(message, "unknown_engine") from refusal

    def _opened(self, message: SecuredMessage, *, is_ours: bool) -> Opened:
        engine_id = message.engine_id
        user = self._users.get(message.user)
        if user is None:
            raise self._refusal(message, "unknown_user")
        if user.engine_ids and not is_ours and engine_id not in user.engine_ids:
            raise self._refusal(message, "unknown_engine")
        if message.flags & (Flag.AUTH | Flag.PRIV) != user.level:
            raise self._refusal(message, "security_level")
        keys = user.keys(engine_id)
        self._check(message, user, keys)
        scoped = self._scoped(message, user, keys)
        is_inform = scoped.pdu[0] == Kind.INFORM
        if is_inform and not is_ours:
            raise self._refusal(message, "unknown_engine")
        facts: dict[str, object] = {
            "version": "3",
            "user": message.user.decode(errors="backslashreplace"),
            "security_level": _LEVELS[user.level],
            "engine_id": engine_id.hex(),
        }
        if scoped.context:
            facts["context"] = scoped.context.decode(errors="backslashreplace")
        if scoped.engine_id != engine_id:
            facts["context_engine_id"] = scoped.engine_id.hex()

        message_id = message.message_id  # of the message itself nothing is kept until the answer

        def respond() -> bytes:
            answer = make_scoped(scoped.engine_id, scoped.context, make_response(scoped.pdu))
            return self._secured(message_id, user, answer)

        return Opened(3, scoped.pdu, facts, respond)

    def _check(self, message: SecuredMessage, user: User, keys: Keys) -> None:
        if not user.level & Flag.AUTH:
            return
        wanted = keys.digest(message.whole, message.digest_at)
        if not hmac.compare_digest(wanted, message.digest):
            raise self._refusal(message, "wrong_digest")
        if message.engine_id == self._engine.engine_id:
            if not self._engine.is_ours_now(message.boots, message.time):
                # Nobody knows our time before we told it: then boots and time are 0 (RFC 3414 §4).
                raise self._refusal(
                    message, "not_in_time_window", user=user, is_handshake=message.boots == message.time == 0
                )
        elif not self._engine.is_theirs_now(message.engine_id, message.boots, message.time):
            raise self._refusal(message, "not_in_time_window")

    def _scoped(self, message: SecuredMessage, user: User, keys: Keys) -> Scoped:
        try:
            return open_scoped(self._decrypted(message, user, keys))
        except Malformed as error:
            if user.level & Flag.PRIV:  # authentic, and gibberish: the privacy password is not ours
                raise self._refusal(message, "decryption") from error
            raise

    def _decrypted(self, message: SecuredMessage, user: User, keys: Keys) -> bytes:
        if not user.level & Flag.PRIV:
            return message.scoped
        if len(message.salt) != SALT_BYTES:
            raise self._refusal(message, "decryption")
        return keys.decrypt(message.scoped, boots=message.boots, time=message.time, salt=message.salt)

    # ---- answers

    def _refusal(
        self, message: SecuredMessage, reason: str, *, user: User | None = None, is_handshake: bool = False
    ) -> Refusal:
        """`user`: the answer is authenticated, as the one about our time must be (RFC 3414 §3.2 7 a).

        `is_handshake`: if there is an answer.
        """
        name = message.user.decode(errors="backslashreplace")
        what = f"v3, user {name!r}, engine {message.engine_id.hex() or '(none)'}"
        if not _may_be_told(message):
            return Refusal(reason, what)
        self._told[reason] = (self._told[reason] + 1) % 2**32
        value = ber.from_integer(self._told[reason], _COUNTER32)
        pdu = make_pdu(Kind.REPORT, 0, [(f"{_STATS}.{_REASONS[reason]}.0", value)])
        scoped = make_scoped(self._engine.engine_id, b"", pdu)
        if user is not None:
            report = self._secured(message.message_id, user, scoped, privacy=False)
        else:
            security = Security(self._engine.engine_id, self._engine.boots, self._engine.time, message.user, 0, b"")
            report, _ = make_secured(message.message_id, Flag(0), security, scoped)
            if len(report) > 2 * len(message.whole) + _MOST_MORE_BYTES:
                return Refusal(reason, what)
        return Refusal(reason, what, report=report, is_handshake=is_handshake)

    def _secured(self, message_id: int, user: User, scoped: bytes, *, privacy: bool = True) -> bytes:
        """A message of our engine to this user."""
        engine = self._engine
        keys = user.keys(engine.engine_id)
        boots, time, level, salt = engine.boots, engine.time, user.level, b""
        if not privacy:
            level &= ~Flag.PRIV
        if level & Flag.PRIV:
            salt = self._random_bytes(SALT_BYTES)
            scoped = keys.encrypt(scoped, boots=boots, time=time, salt=salt)
        security = Security(engine.engine_id, boots, time, user.name, keys.digest_bytes, salt)
        whole, at = make_secured(message_id, level, security, scoped)
        return keys.signed(whole, at) if level & Flag.AUTH else whole


def _may_be_told(message: SecuredMessage) -> bool:
    """Whether its sender waits for an answer: the flag says so where the PDU cannot be seen, else its class does."""
    if not message.flags & Flag.REPORTABLE:
        return False
    if message.flags & Flag.PRIV:
        return True
    try:
        return open_scoped(message.scoped).pdu[0] not in _UNCONFIRMED
    except Malformed:
        return False
