"""The User-based Security Model's cryptography: keys from passwords, digests, and privacy (RFC 3414, 3826, 7860).

Promises: HMAC with SHA-1 or SHA-2 and AES in CFB mode as the RFCs say; a password costs its megabyte of hashing once,
and a user's key for another engine one hash; keys for at most `ENGINES_REMEMBERED` engines are kept.
Refuses: MD5 and DES, which protect nobody any more; AES-192 and AES-256 with a digest shorter than their key, for which
vendors have two ways to make one longer and no standard has any.
"""

import hashlib
import hmac
from functools import lru_cache
from typing import Literal, NamedTuple

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from ndagent.wire.snmp.messages import Flag

AuthName = Literal["SHA", "SHA-224", "SHA-256", "SHA-384", "SHA-512", "none"]
PrivacyName = Literal["AES", "AES-192", "AES-256", "none"]
ENGINES_REMEMBERED = 4096
SALT_BYTES = 8
_BLOCK_BYTES = 16
_PASSWORD_BYTES = 2**20  # RFC 3414 §A.2.2: the password, again and again
_DIGESTS = {
    "SHA": ("sha1", 12), "SHA-224": ("sha224", 16), "SHA-256": ("sha256", 24), "SHA-384": ("sha384", 32),
    "SHA-512": ("sha512", 48),
}  # fmt: skip
_KEY_BYTES = {"AES": 16, "AES-192": 24, "AES-256": 32}


class Keys(NamedTuple):
    """One user's keys at one engine; empty where the user has none."""

    hash: str
    digest_bytes: int
    auth: bytes
    privacy: bytes

    def digest(self, whole: bytes, at: int) -> bytes:
        """Of a message, as if there were zeros where the digest stands (RFC 3414 §6.3, 7860 §4.2)."""
        blank = whole[:at] + bytes(self.digest_bytes) + whole[at + self.digest_bytes :]
        return hmac.digest(self.auth, blank, self.hash)[: self.digest_bytes]

    def signed(self, whole: bytes, at: int) -> bytes:
        """The message with its digest in its place."""
        return whole[:at] + self.digest(whole, at) + whole[at + self.digest_bytes :]

    def encrypt(self, data: bytes, *, boots: int, time: int, salt: bytes) -> bytes:
        """AES in CFB mode with a feedback of 128 bits (RFC 3826 §3.1.4): each block waits for the one before."""
        update = Cipher(algorithms.AES(self.privacy), modes.ECB()).encryptor().update  # noqa: S305 - of one block
        before = _vector(boots, time, salt)
        found = []
        for at in range(0, len(data), _BLOCK_BYTES):
            before = _xor(update(before), data[at : at + _BLOCK_BYTES])
            found.append(before)
        return b"".join(found)

    def decrypt(self, data: bytes, *, boots: int, time: int, salt: bytes) -> bytes:
        """The inverse: all blocks of the key stream follow from what is there, in one call."""
        whole = _vector(boots, time, salt) + data
        blocks = whole[: -(-len(data) // _BLOCK_BYTES) * _BLOCK_BYTES]
        stream = Cipher(algorithms.AES(self.privacy), modes.ECB()).encryptor().update(blocks)  # noqa: S305 - as above
        return _xor(stream, data)


class User:
    """Who may send, and how it must be protected: no message of a lower level passes, and none of a higher one."""

    def __init__(
        self, name: str, *, auth: AuthName, auth_password: str, privacy: PrivacyName, privacy_password: str,
        engine_ids: frozenset[bytes] = frozenset(),
    ) -> None:  # fmt: skip
        self.name = name.encode()
        self.engine_ids = engine_ids
        self.level = Flag(0)
        self._hash, self._digest_bytes = _DIGESTS.get(auth, ("", 0))
        self._privacy_bytes = _KEY_BYTES.get(privacy, 0)
        self._auth = self._privacy = b""
        if self._hash:
            self.level |= Flag.AUTH
            self._auth = _master(auth_password, self._hash)
        if self._privacy_bytes:
            self.level |= Flag.PRIV
            self._privacy = _master(privacy_password, self._hash)
        self.keys = lru_cache(ENGINES_REMEMBERED)(self._keys)

    def _keys(self, engine_id: bytes) -> Keys:
        """RFC 3414 §2.6: another key at every engine, so that one engine's secrets are of no use at the next."""
        if not self._hash:
            return Keys("", 0, b"", b"")
        privacy = _localised(self._privacy, engine_id, self._hash)[: self._privacy_bytes] if self._privacy else b""
        return Keys(self._hash, self._digest_bytes, _localised(self._auth, engine_id, self._hash), privacy)


def why_not(auth: AuthName, privacy: PrivacyName) -> str | None:
    """Why these two do not go together; None if they do."""
    if privacy == "none":
        return None
    if auth == "none":
        return "privacy without authentication is no level of SNMPv3; set auth"
    hash_bytes = hashlib.new(_DIGESTS[auth][0]).digest_size
    if hash_bytes < _KEY_BYTES[privacy]:
        return f"{privacy} needs a longer digest than {auth} has; set auth: SHA-256 or longer, or privacy: AES"
    return None


def _master(password: str, name: str) -> bytes:
    text = password.encode()
    repeated = text * (_PASSWORD_BYTES // len(text) + 1)
    return hashlib.new(name, repeated[:_PASSWORD_BYTES]).digest()


def _localised(master: bytes, engine_id: bytes, name: str) -> bytes:
    return hashlib.new(name, master + engine_id + master).digest()


def _vector(boots: int, time: int, salt: bytes) -> bytes:
    return boots.to_bytes(4) + time.to_bytes(4) + salt


def _xor(stream: bytes, data: bytes) -> bytes:
    size = len(data)
    return (int.from_bytes(stream[:size]) ^ int.from_bytes(data)).to_bytes(size)
