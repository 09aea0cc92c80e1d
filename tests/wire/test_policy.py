"""The policy bundle: golden vectors judged by openssl too, tampering, canonical form, and the rules of adoption."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from ndagent.wire.policy import (
    CLOCK_SKEW_SECONDS,
    DOMAIN,
    MAGIC,
    MAX_BUNDLE_BYTES,
    MAX_VERSION,
    BadBundle,
    Bundle,
    Floor,
    NotTrusted,
    canonical,
    open_bundle,
    pack,
    why_not_adopted,
)

_FILE = Path(__file__).parent / "vectors" / "policy_bundles.jsonl"
VECTORS = [json.loads(line) for line in _FILE.read_text(encoding="utf-8").splitlines()]
KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
ROOM = MAX_BUNDLE_BYTES - len(MAGIC) - 64

plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abc.\u00e9", max_size=4), inner, max_size=3),
    max_leaves=12,
)  # fmt: skip
bundles = st.builds(
    Bundle,
    audience=st.text("abc234", min_size=1, max_size=26),
    version=st.integers(1, MAX_VERSION),
    issued_at=st.integers(0, 2**40 // 8),
    expires_at=st.integers(0, 2**40 // 8),
    settings=st.dictionaries(st.text("abc", max_size=4), plain, max_size=3),
    layers=st.dictionaries(st.sampled_from(["global/base", "local/emergency"]), st.text("0f", max_size=64)),
    next_key=st.none() | st.binary(min_size=32, max_size=32),
)


def verify(signature: bytes, message: bytes) -> bool:
    try:
        KEY.public_key().verify(signature, message)
    except InvalidSignature:
        return False
    return True


def signed(payload: bytes) -> bytes:
    """Bytes with a right signature over whatever the payload is."""
    return MAGIC + KEY.sign(DOMAIN + payload) + payload


def bundle_of(vector: dict[str, Any]) -> Bundle:
    return Bundle(
        vector["audience"], vector["version"], vector["issued_at"], vector["expires_at"], vector["settings"],
        vector["layers"], bytes.fromhex(vector["next_key"]) if vector["next_key"] else None,
    )  # fmt: skip


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector["name"])
def test_bundles_are_the_golden_ones(vector: dict[str, Any]) -> None:
    """Agents of any version must read what collectors of any version sign."""
    bundle = bundle_of(vector)
    assert (
        pack(bundle, sign=Ed25519PrivateKey.from_private_bytes(bytes.fromhex(vector["key"])).sign).hex()
        == (vector["bundle"])
    )
    assert open_bundle(bytes.fromhex(vector["bundle"]), verify=verify) == bundle
    assert (bundle.etag, bundle.digest) == (vector["etag"], vector["digest"])


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector["name"])
def test_openssl_finds_the_signature_right(vector: dict[str, Any], tmp_path: Path) -> None:
    """RFC 8032, by somebody else's code."""
    data = bytes.fromhex(vector["bundle"])
    (tmp_path / "signature").write_bytes(data[4:68])
    (tmp_path / "message").write_bytes(b"neurodefender policy bundle v1\0" + data[68:])
    pem = KEY.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    (tmp_path / "key").write_bytes(pem)
    command = ["openssl", "pkeyutl", "-verify", "-pubin", "-inkey", "key", "-rawin", "-in", "message"]
    result = subprocess.run([*command, "-sigfile", "signature"], cwd=tmp_path, capture_output=True, check=False)
    assert result.returncode == 0, result.stderr


@given(bundles)
def test_what_is_packed_is_opened(bundle: Bundle) -> None:
    """Whatever the settings are."""
    opened = open_bundle(pack(bundle, sign=KEY.sign), verify=verify)
    assert opened.payload == bundle.payload
    assert (opened.version, opened.digest, opened.next_key) == (bundle.version, bundle.digest, bundle.next_key)


@given(bundles, st.data())
def test_no_bit_can_be_changed(bundle: Bundle, data: st.DataObject) -> None:
    """Audience, version, expiry and settings are all under the signature, and so is the signature's own place."""
    whole = bytearray(pack(bundle, sign=KEY.sign))
    bit = data.draw(st.integers(0, 8 * len(whole) - 1))
    whole[bit // 8] ^= 1 << bit % 8
    with pytest.raises(BadBundle):
        open_bundle(bytes(whole), verify=verify)


def test_no_prefix_and_no_longer_one_is_a_bundle() -> None:
    """A torn transfer is told from a whole one."""
    whole = pack(bundle_of(VECTORS[1]), sign=KEY.sign)
    for end in range(len(whole)):
        with pytest.raises(BadBundle):
            open_bundle(whole[:end], verify=verify)
    with pytest.raises(NotTrusted):
        open_bundle(whole + b" ", verify=verify)


@given(st.binary(max_size=200))
def test_garbage_is_refused_before_it_is_parsed(garbage: bytes) -> None:
    """A parser must not be there for everybody on the network."""
    with pytest.raises(BadBundle):
        open_bundle(MAGIC + garbage, verify=lambda _signature, _message: False)


@given(st.binary(max_size=100) | plain.map(canonical))
def test_a_signed_payload_that_is_none_is_told(payload: bytes) -> None:
    """Our own error, nothing else, whatever a faulty signer signs."""
    with pytest.raises(BadBundle):
        open_bundle(signed(payload), verify=verify)


GOOD = json.loads(bundle_of(VECTORS[2]).payload)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"version": 0}, "version must be"),
        ({"version": True}, "version must be"),
        ({"version": MAX_VERSION + 1}, "version must be"),
        ({"expires_at": -1}, "expires_at must be"),
        ({"issued_at": 1.5}, "issued_at must be"),
        ({"audience": ""}, "the audience must be"),
        ({"audience": 7}, "the audience must be"),
        ({"settings": []}, "must be objects"),
        ({"layers": {"global/base": 1}}, "layers must hold digests"),
        ({"next_key": "AAAA"}, "next_key must be"),
        ({"next_key": None}, "next_key must be"),
        ({"more": 1}, "fields are not those of this version"),
    ],
)
def test_fields_are_checked(change: dict[str, Any], what: str) -> None:
    """One fault at a time in an otherwise good payload."""
    with pytest.raises(BadBundle, match=what):
        open_bundle(signed(canonical(GOOD | change)), verify=verify)


@pytest.mark.parametrize(
    "payload",
    [
        canonical(GOOD).replace(b'"version":2', b'"version":2,"version":3'),
        canonical(GOOD).replace(b'"version":2', b'"version": 2'),
        canonical(GOOD).replace(b'"version":2', b'"version":2e0'),
        json.dumps(dict(reversed(GOOD.items())), separators=(",", ":")).encode(),
        canonical(GOOD).replace(b"debug", b"d\\u0065bug"),
    ],
    ids=["a key twice", "white space", "another number", "another order", "an escape"],
)
def test_only_the_canonical_form_is_read(payload: bytes) -> None:
    """Even a rightly signed one: two parsers could read it differently."""
    with pytest.raises(BadBundle, match="canonical"):
        open_bundle(signed(payload), verify=verify)


def test_the_largest_bundle_is_taken_and_no_larger() -> None:
    """Both ends agree on the limit."""
    empty = len(Bundle("a", 1, 0, 1, {"x": ""}).payload)
    largest = pack(Bundle("a", 1, 0, 1, {"x": "y" * (ROOM - empty)}), sign=KEY.sign)
    assert len(largest) == MAX_BUNDLE_BYTES
    assert open_bundle(largest, verify=verify).audience == "a"
    with pytest.raises(BadBundle, match="are allowed"):
        pack(Bundle("a", 1, 0, 1, {"x": "y" * (ROOM - empty + 1)}), sign=KEY.sign)
    with pytest.raises(BadBundle, match="are allowed"):
        open_bundle(largest + b"}", verify=verify)


def test_the_tag_stays_when_the_policy_is_signed_anew() -> None:
    """An agent that has it need not fetch it again because a date changed."""
    old = Bundle("a", 7, 100, 200, {"log": {"level": "info"}}, {"global/base": "aa"})
    new = Bundle("a", 7, 150, 250, {"log": {"level": "info"}}, {"global/base": "bb"})
    assert new.etag == old.etag
    assert Bundle("a", 7, 100, 200, {"log": {"level": "debug"}}).etag != old.etag
    assert Bundle("a", 8, 100, 200, {"log": {"level": "info"}}).etag != old.etag


THIS = Bundle("me", 7, 1000, 2000, {})


@pytest.mark.parametrize(
    ("agent_id", "floor", "now", "reason"),
    [
        ("me", None, 1500, None),
        ("me", Floor(6, "x"), 1500, None),
        ("me", Floor(7, THIS.digest), 1500, None),
        ("me", None, 0, None),
        ("me", None, 2000 + CLOCK_SKEW_SECONDS, None),
        ("you", None, 1500, "another agent"),
        ("me", Floor(8, "x"), 1500, "older than version 8"),
        ("me", Floor(7, "x"), 1500, "under the same version"),
        ("me", None, 2001 + CLOCK_SKEW_SECONDS, "it expired"),
    ],
)
def test_an_agent_takes_what_is_for_it_and_new_and_in_time(
    agent_id: str, floor: Floor | None, now: float, reason: str | None
) -> None:
    """Each rule at its edge; a slow clock (1970 at boot) does not keep an agent from policies."""
    found = why_not_adopted(THIS, agent_id=agent_id, floor=floor, now=now)
    assert (found is None) if reason is None else (found is not None and reason in found)
