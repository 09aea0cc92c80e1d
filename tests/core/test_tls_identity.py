"""Names come from the certificate as it is, and never with anything hidden in them."""

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from tls_peers import Authority

from ndagent.core import tls_identity
from ndagent.core.tls_identity import CertificateCache
from ndagent.core.tls_refusal import Refused

CA = Authority()


def parsed(*names: str) -> tls_identity.PeerCertificate:
    """A certificate with these names, taken apart."""
    return CertificateCache().get(CA.issue("fw1", names=names).certificate.public_bytes(Encoding.DER))


def test_the_fields_of_a_certificate() -> None:
    """In the text forms that Origin promises."""
    pair = CA.issue("fw1", names=["DNS:fw1.example", "IP:2001:db8::1", "URI:nd:device:fw1"])
    result = CertificateCache().get(pair.certificate.public_bytes(Encoding.DER))
    assert result.subject == "CN=fw1"
    assert result.common_names == ("fw1",)
    assert result.names == ("DNS:fw1.example", "IP:2001:db8::1", "URI:nd:device:fw1")
    assert result.serial == f"{pair.certificate.serial_number:X}"
    assert result.fingerprint == pair.certificate.fingerprint(hashes.SHA256())


def test_bytes_that_are_no_certificate_are_refused() -> None:
    """OpenSSL and this parser may disagree; then nobody comes in."""
    with pytest.raises(Refused, match="certificate_unreadable"):
        CertificateCache().get(b"\x30\x03\x02\x01\x01")


@pytest.mark.parametrize("hidden", ["good.example\0.evil.example", "good.example\n", "nd:device:\x1b[2Jfw"])
def test_a_name_with_control_characters_is_refused(hidden: str) -> None:
    """NUL has fooled name checks, escape sequences fool terminals."""
    with pytest.raises(Refused, match="control characters"):
        parsed(f"URI:{hidden}")


def test_a_certificate_is_parsed_once_and_the_cache_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Limit: CACHED_CERTIFICATES; a reconnect storm of known peers parses nothing."""
    parses: list[bytes] = []
    original = tls_identity.parse_certificate

    def counting(der: bytes, fingerprint: bytes) -> tls_identity.PeerCertificate:
        parses.append(fingerprint)
        return original(der, fingerprint)

    monkeypatch.setattr(tls_identity, "parse_certificate", counting)
    cache = CertificateCache(max_certificates=2)
    a, b, c = (CA.issue(name).certificate.public_bytes(Encoding.DER) for name in "abc")
    for der in (a, b, a, c, a, b):  # c pushes b out, which was used longest ago
        cache.get(der)
    assert len(parses) == 4
    assert len(cache._known) == 2


@pytest.mark.parametrize("names", [(), ("DNS:fw1",), ("URI:nd:device:fw1",), ("URI:https://x", "URI:nd:device:fw1")])
def test_a_device_or_a_stranger_to_our_scheme_is_the_right_kind(names: tuple[str, ...]) -> None:
    """A certificate of the customer's own PKI says nothing about kinds."""
    parsed(*names).require_kind("device")


@pytest.mark.parametrize(
    "names",
    [
        ("URI:nd:agent:a",),
        ("URI:nd:device:fw1", "URI:nd:agent:a"),
        ("URI:ND:Agent:a",),
        ("URI:nd:devices:a",),
        ("URI:nd:",),
    ],
)
def test_another_kind_is_refused(names: tuple[str, ...]) -> None:
    """An agent's certificate must not open the syslog listener, however it is written."""
    with pytest.raises(Refused, match="wrong_kind"):
        parsed(*names).require_kind("device")
