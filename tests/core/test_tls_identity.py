"""Names come from the certificate as it is, and never with anything hidden in them."""

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID
from tls_peers import Authority

from ndagent.core import tls_identity
from ndagent.core.tls_identity import MAX_CHAIN_BYTES, MAX_SUBJECT_BYTES, CertificateCache, check_size
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


@pytest.mark.parametrize(
    "extension",
    ["3004a3020500", "3004a5023000", "3006820161820162ff"],
    ids=["an x400Address", "an ediPartyName", "bytes that are no name"],
)
def test_names_that_nobody_uses_are_refused_and_not_an_error(extension: str) -> None:
    """An exception here would end in a traceback for each try of that peer."""
    key = ec.generate_private_key(ec.SECP256R1())
    names = x509.UnrecognizedExtension(x509.ObjectIdentifier("2.5.29.17"), bytes.fromhex(extension))
    certificate = CA.issue("fw1").certificate
    builder = x509.CertificateBuilder(CA.certificate.subject, certificate.subject, key.public_key(), 1)
    builder = builder.not_valid_before(certificate.not_valid_before_utc)
    builder = builder.not_valid_after(certificate.not_valid_after_utc).add_extension(names, critical=False)
    with pytest.raises(Refused, match="certificate_unreadable"):
        CertificateCache().get(builder.sign(CA.key, hashes.SHA256()).public_bytes(Encoding.DER))


def test_a_subject_may_hold_spaces_of_any_kind_and_no_controls() -> None:
    """It stands in every event and in log lines; "Société\u00a0X" is a name, an escape sequence is not."""
    assert CertificateCache().get(CA.issue("a\u00a0b").certificate.public_bytes(Encoding.DER)).subject == "CN=a\u00a0b"
    with pytest.raises(Refused, match="control characters"):
        CertificateCache().get(CA.issue("a\u202eb").certificate.public_bytes(Encoding.DER))


def test_a_subject_is_short() -> None:
    """Limit: MAX_SUBJECT_BYTES; it stands in each event, so one of 70 KB made 2 GB of a megabyte of messages."""
    organization = x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, "u" * 64)

    def subject(units: int) -> bytes:
        builder = x509.CertificateBuilder(
            CA.certificate.subject, x509.Name([organization] * units), CA.key.public_key(), 1
        )
        builder = builder.not_valid_before(CA.certificate.not_valid_before_utc)
        builder = builder.not_valid_after(CA.certificate.not_valid_after_utc)
        return builder.sign(CA.key, hashes.SHA256()).public_bytes(Encoding.DER)

    per_unit = len("OU=,") + 64
    assert len(CertificateCache().get(subject(MAX_SUBJECT_BYTES // per_unit)).subject) <= MAX_SUBJECT_BYTES
    with pytest.raises(Refused, match="certificate_too_large"):
        CertificateCache().get(subject(MAX_SUBJECT_BYTES // per_unit + 1))


def test_what_comes_along_with_a_certificate_is_bounded() -> None:
    """Limit: MAX_CHAIN_BYTES; the leaf counts once, whether the chain repeats it or not."""
    leaf, rest = b"l" * 1000, b"r" * (MAX_CHAIN_BYTES - 1000)
    check_size(leaf, [leaf, rest])
    check_size(leaf, [rest])
    with pytest.raises(Refused, match="certificate_too_large"):
        check_size(leaf, [leaf, rest, b"r"])


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
