"""Policies' signatures by the OpenSSL of Python: RFC 8032's vectors, and the `cryptography` package as the judge."""

from collections.abc import Callable

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st

from ndagent import ed25519

# RFC 8032 §7.1, tests 1 to 3: key, message behind a dash, signature.
VECTORS = [
    """d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a
    -
    e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24
    655141438e7a100b""",
    """3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c
    -72
    92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aee
    b00d291612bb0c00""",
    """fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025
    -af82
    6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac18ff9b538d16f290ae67f760984dc6594a7c15e9716ed28d
    c027beceea1ec40a""",
]
Check = Callable[[bytes, bytes, bytes], bool]


@pytest.fixture(params=["openssl", "package"])
def is_signed(request: pytest.FixtureRequest) -> Check:
    """Both ways there are."""
    if request.param == "package":
        return ed25519._by_package
    assert ed25519._openssl() is not None, "this Python hides its OpenSSL: agents on it need 7.5 MB more"
    return ed25519.is_signed


@pytest.mark.parametrize("vector", VECTORS, ids=["1", "2", "3"])
def test_the_rfcs_signatures_are_right_and_every_changed_bit_is_wrong(is_signed: Check, vector: str) -> None:
    """Of the signature, of the message, of the key."""
    key, message, *signed = vector.split()
    signature = bytes.fromhex("".join(signed))
    check(bytes.fromhex(key), signature, bytes.fromhex(message[1:]), is_signed)


def check(key: bytes, signature: bytes, message: bytes, is_signed: Check) -> None:
    """One vector."""
    assert is_signed(key, signature, message)
    assert not is_signed(key, signature, message + b"\0")
    for bit in range(0, 512, 7):
        changed = bytearray(signature)
        changed[bit // 8] ^= 1 << bit % 8
        assert not is_signed(key, bytes(changed), message)
    for byte in range(32):
        assert not is_signed(key[:byte] + bytes([key[byte] ^ 1]) + key[byte + 1 :], signature, message)


@given(st.binary(max_size=40), st.binary(max_size=70), st.binary(max_size=100))
def test_what_is_no_key_or_no_signature_is_wrong_and_no_error(key: bytes, signature: bytes, message: bytes) -> None:
    """Bytes of a stranger's bundle."""
    assert not ed25519.is_signed(key, signature, message)


@given(st.binary(max_size=3000), st.integers(0, 2**64))
def test_what_cryptography_signs_is_right(message: bytes, place: int) -> None:
    """Messages of any length, with any bytes in them; a changed byte is found."""
    key = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
    public = key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
    signature = key.sign(message)
    assert ed25519.is_signed(public, signature, message)
    if message:
        at = place % len(message)
        assert not ed25519.is_signed(public, signature, message[:at] + bytes([message[at] ^ 1]) + message[at + 1 :])
