"""How a request to a device is protected and its answer recognised: by community (v2c) or by user (v3, RFC 3414 §4).

Promises: an answer counts only if it is to the request that is out, and, with a user, if its digest is right, it is of
the user's own level and not from the engine's past; everything else is ignored, as if it had not come. What a device
says of its engine before it can be checked is used to ask, never believed.
Refuses: sockets and waiting (snmp_client.py).
"""

import hmac
from collections.abc import Callable
from enum import Enum
from typing import Protocol

from ndagent.core.snmp_engine import WINDOW_SECONDS
from ndagent.core.snmp_users import MAX_ENGINE_ID_BYTES, MIN_ENGINE_ID_BYTES
from ndagent.core.snmp_usm import SALT_BYTES, User
from ndagent.wire.snmp.ber import Malformed
from ndagent.wire.snmp.messages import (
    V2C,
    CommunityMessage,
    Flag,
    Kind,
    Pdu,
    SecuredMessage,
    Security,
    make_community_message,
    make_pdu,
    make_scoped,
    make_secured,
    open_message,
    open_pdu,
    open_scoped,
)

MOST_VARBINDS = 1024
"""Of one answer; we ask for a few hundred."""
_STATS = "1.3.6.1.6.3.15.1.1."  # usmStats
_NOT_IN_TIME, _UNKNOWN_ENGINE = "2", "4"
_WORDS = {
    "1": "it does not offer this user's level of security", "3": "it does not know this user",
    "5": "the user's authentication password is wrong", "6": "the user's privacy password is wrong",
}  # fmt: skip


class Denied(Exception):
    """The device answers and does not tell; says why."""


class Verdict(Enum):
    """Of a datagram that is no answer."""

    NOTHING = "ignore it"
    AGAIN = "the device told us what we need to ask rightly: ask again now"


class Talk(Protocol):
    """One conversation with one device, over all its rounds."""

    def ask(self, request_id: int, pdu: bytes) -> bytes:
        """The datagram to send."""

    def hear(self, request_id: int, data: bytes) -> Pdu | Verdict:
        """What a datagram is; raises Denied."""


class CommunityTalk:
    """v2c."""

    def __init__(self, community: bytes) -> None:
        self._community = community

    def ask(self, request_id: int, pdu: bytes) -> bytes:  # noqa: ARG002 - it stands in the PDU already
        """See Talk."""
        return make_community_message(V2C, self._community, pdu)

    def hear(self, request_id: int, data: bytes) -> Pdu | Verdict:
        """See Talk."""
        try:
            message = open_message(data)
            if not isinstance(message, CommunityMessage) or message[:2] != (V2C, self._community):
                return Verdict.NOTHING
            return _response(message.pdu, request_id)
        except Malformed:
            return Verdict.NOTHING


class UserTalk:
    """v3; `monotonic` in seconds, `random_bytes` as os.urandom."""

    def __init__(
        self, user: User, *, monotonic: Callable[[], float], random_bytes: Callable[[int], bytes]
    ) -> None:
        self._user = user
        self._monotonic = monotonic
        self._random_bytes = random_bytes
        self._engine_id = b""
        self._boots = self._latest = 0
        self._heard_at = 0.0
        self._is_authentic = False  # whether boots and time came with a right digest

    def ask(self, request_id: int, pdu: bytes) -> bytes:
        """See Talk; before its engine is known, the question for it."""
        if not self._engine_id:
            scoped = make_scoped(b"", b"", make_pdu(Kind.GET, request_id, ()))
            whole, _ = make_secured(request_id, Flag.REPORTABLE, Security(b"", 0, 0, b"", 0, b""), scoped)
            return whole
        user, keys = self._user, self._user.keys(self._engine_id)
        boots, time, salt = self._boots, self._time, b""
        scoped = make_scoped(self._engine_id, b"", pdu)
        if user.level & Flag.PRIV:
            salt = self._random_bytes(SALT_BYTES)
            scoped = keys.encrypt(scoped, boots=boots, time=time, salt=salt)
        security = Security(self._engine_id, boots, time, user.name, keys.digest_bytes, salt)
        whole, at = make_secured(request_id, user.level | Flag.REPORTABLE, security, scoped)
        return keys.signed(whole, at) if user.level & Flag.AUTH else whole

    def hear(self, request_id: int, data: bytes) -> Pdu | Verdict:
        """See Talk."""
        try:
            message = open_message(data)
            if not isinstance(message, SecuredMessage) or message.message_id != request_id:
                return Verdict.NOTHING
            return self._heard(message, request_id)
        except Malformed:
            return Verdict.NOTHING

    @property
    def _time(self) -> int:
        return self._latest + int(self._monotonic() - self._heard_at)

    def _heard(self, message: SecuredMessage, request_id: int) -> Pdu | Verdict:
        if not message.flags & Flag.AUTH and self._user.level & Flag.AUTH:
            return self._unauthenticated(message)
        if message.engine_id != self._engine_id:
            return self._unauthenticated(message)
        if not self._is_right(message):
            return Verdict.NOTHING
        scoped = message.scoped
        if message.flags & Flag.PRIV:
            keys = self._user.keys(self._engine_id)
            scoped = keys.decrypt(scoped, boots=message.boots, time=message.time, salt=message.salt)
        pdu = open_scoped(scoped).pdu
        if pdu[0] == Kind.REPORT:
            return self._reported(open_pdu(pdu, most=1))
        if message.flags & (Flag.AUTH | Flag.PRIV) != self._user.level:
            return Verdict.NOTHING
        return _response(pdu, request_id)

    def _is_right(self, message: SecuredMessage) -> bool:
        """Digest, level and time; sets the engine's clock (RFC 3414 §3.2 7 b)."""
        user, keys = self._user, self._user.keys(self._engine_id)
        if message.flags & Flag.PRIV and (not user.level & Flag.PRIV or len(message.salt) != SALT_BYTES):
            return False
        if not user.level & Flag.AUTH:
            return True
        wanted = keys.digest(message.whole, message.digest_at)
        if not hmac.compare_digest(wanted, message.digest):
            return False
        if self._is_authentic and (message.boots, message.time) < (self._boots, self._time - WINDOW_SECONDS):
            return False
        self._learn(message)
        self._is_authentic = True
        return True

    def _learn(self, message: SecuredMessage) -> None:
        self._boots, self._latest, self._heard_at = message.boots, message.time, self._monotonic()

    def _unauthenticated(self, message: SecuredMessage) -> Pdu | Verdict:
        """A Report that anybody could have written: it may say which engine to ask, or why we are denied."""
        if message.flags & Flag.PRIV:
            return Verdict.NOTHING
        pdu = open_pdu(open_scoped(message.scoped).pdu, most=1)
        if pdu.kind is not Kind.REPORT:
            return Verdict.NOTHING
        engine_id = message.engine_id
        is_another = engine_id != self._engine_id and MIN_ENGINE_ID_BYTES <= len(engine_id) <= MAX_ENGINE_ID_BYTES
        if is_another and _statistic(pdu) == _UNKNOWN_ENGINE:
            self._engine_id = engine_id
            self._is_authentic = False
            self._learn(message)
            return Verdict.AGAIN
        return self._reported(pdu) if self._engine_id else Verdict.NOTHING

    def _reported(self, pdu: Pdu) -> Verdict:
        number = _statistic(pdu)
        if number in _WORDS:
            raise Denied(_WORDS[number])
        return Verdict.AGAIN if number == _NOT_IN_TIME else Verdict.NOTHING


def _response(data: bytes, request_id: int) -> Pdu | Verdict:
    pdu = open_pdu(data, most=MOST_VARBINDS)
    if pdu.kind is not Kind.RESPONSE or pdu.request_id != request_id:
        return Verdict.NOTHING
    return pdu


def _statistic(pdu: Pdu) -> str:
    """Which of usmStats a Report names."""
    name = pdu.varbinds[0].oid if pdu.varbinds else ""
    return name[len(_STATS) :].partition(".")[0] if name.startswith(_STATS) else ""
