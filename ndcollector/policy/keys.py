"""The key that policies are signed with, and the one that will follow it.

Promises: `policy.key` (Ed25519, 0600) is made on first use in the PKI directory and never overwritten; while a rotation
is under way `policy.next.key` stands beside it, every bundle names its public half, and the old key still signs; both
steps survive a crash. Raises PkiError where a key cannot be used.
Refuses: deciding when the old key may go (command.py asks who has not heard of the new one).
"""

from contextlib import suppress
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from ndcollector.pki import store
from ndcollector.pki.store import PkiError

KEY, NEXT_KEY = "policy.key", "policy.next.key"


class PolicyKeys:
    """The keys of one PKI directory, read from it each time: a rotation by the command is seen by the daemon."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def public_key(self) -> bytes:
        """The 32 bytes that agents are given when they enrol; makes the key if there is none."""
        return _public(self.signing_key())

    def signing_key(self) -> Ed25519PrivateKey:
        """The key that signs now; makes it if there is none."""
        path = self._directory / KEY
        if path.exists():
            return _load(path)
        if not self._directory.is_dir():
            raise PkiError(f"{self._directory} does not exist; `ndcollector pki init` makes it")
        with suppress(FileExistsError):  # another process was faster; its key counts
            store.create(path, _pem(Ed25519PrivateKey.generate()), store.PRIVATE)
        return _load(path)

    def next_public_key(self) -> bytes | None:
        """The key that bundles announce; None where no rotation is under way."""
        try:
            key = _public(_load(self._directory / NEXT_KEY))
        except FileNotFoundError:
            return None
        return None if key == self.public_key() else key  # equal: a crash cut `finish_rotation` short

    def begin_rotation(self) -> bytes:
        """Make the next key; returns its public half. Raises PkiError if a rotation is under way."""
        self.signing_key()
        new = Ed25519PrivateKey.generate()
        try:
            store.create(self._directory / NEXT_KEY, _pem(new), store.PRIVATE)
        except FileExistsError:
            raise PkiError(f"{self._directory / NEXT_KEY} exists: a rotation is under way; finish it first") from None
        return _public(new)

    def finish_rotation(self) -> None:
        """From now on the next key signs, and the old one is gone. Raises PkiError if none is under way."""
        try:
            pem = _pem(_load(self._directory / NEXT_KEY))
        except FileNotFoundError:
            raise PkiError("no rotation is under way; `ndcollector policy rotate-key` begins one") from None
        store.overwrite(self._directory / KEY, pem, store.PRIVATE)
        (self._directory / NEXT_KEY).unlink()


def _load(path: Path) -> Ed25519PrivateKey:
    try:
        key = serialization.load_pem_private_key(path.read_bytes(), None)
    except FileNotFoundError:
        raise
    except (OSError, ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise PkiError(f"{path} cannot be used: {error}") from None
    if not isinstance(key, Ed25519PrivateKey):
        raise PkiError(f"{path} is not an Ed25519 key")
    return key


def _public(key: Ed25519PrivateKey) -> bytes:
    return key.public_key().public_bytes_raw()


def _pem(key: Ed25519PrivateKey) -> bytes:
    """PKCS #8, unencrypted: the file's mode guards it, as a daemon cannot type a password."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
