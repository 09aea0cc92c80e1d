"""Who may use a listener, given a good certificate."""

import pytest
from cryptography.hazmat.primitives.serialization import Encoding
from pydantic import ValidationError
from tls_peers import Authority, Pair

from ndagent.core.allow_list import AllowConfig, AllowList, fingerprint_text
from ndagent.core.tls_identity import CertificateCache, PeerCertificate
from ndagent.core.tls_refusal import Refused

CA = Authority()
FW = CA.issue("fw1", names=["DNS:fw1.dc.example", "IP:192.0.2.7", "URI:nd:device:fw1"])


def certificate(pair: Pair) -> PeerCertificate:
    """As the listener sees it."""
    return CertificateCache().get(pair.certificate.public_bytes(Encoding.DER))


def allow(**config: list[str]) -> AllowList:
    """A list from its configuration."""
    return AllowList(AllowConfig.model_validate(config))


def test_an_empty_list_restricts_nothing() -> None:
    """The certificate is the permission."""
    allow().check_address("198.51.100.1")
    allow().check_certificate(certificate(FW))


@pytest.mark.parametrize("address", ["10.2.3.4", "2001:db8::9", "fe80::1%eth0", "192.0.2.7"])
def test_an_address_in_a_listed_network(address: str) -> None:
    """IPv4, IPv6, link-local with its zone, and single addresses."""
    allow(networks=["10.2.0.0/16", "2001:db8::/32", "fe80::/10", "192.0.2.7"]).check_address(address)


@pytest.mark.parametrize("address", ["10.3.0.1", "2001:db9::1", "192.0.2.8"])
def test_an_address_outside(address: str) -> None:
    """One beyond is refused."""
    with pytest.raises(Refused, match="network_not_allowed"):
        allow(networks=["10.2.0.0/16", "2001:db8::/32", "192.0.2.7"]).check_address(address)


@pytest.mark.parametrize("pattern", ["fw1", "FW?", "*.dc.example", "192.0.2.*", "nd:device:fw*", "fw[12]"])
def test_a_pattern_matches_any_name_of_the_certificate(pattern: str) -> None:
    """CN, DNS, IP and URI names; case does not matter."""
    allow(names=["other", pattern]).check_certificate(certificate(FW))


@pytest.mark.parametrize("pattern", ["fw", "w1", "dc.example", "CN=fw1", "DNS:fw1.dc.example"])
def test_a_pattern_matches_whole_names_only(pattern: str) -> None:
    """Part of a name, or a name with its kind, is another name."""
    with pytest.raises(Refused, match=r"not_allowed.*sha-256:.*fw1\.dc\.example"):
        allow(names=[pattern]).check_certificate(certificate(FW))


def test_a_fingerprint_is_enough_whatever_the_names() -> None:
    """RFC 5425 §4.2: either way of knowing a peer is enough."""
    allow(names=["nobody"], fingerprints=[FW.fingerprint]).check_certificate(certificate(FW))


def test_fingerprints_without_names_let_nobody_else_in() -> None:
    """A list of one is a list."""
    with pytest.raises(Refused, match="not_allowed"):
        allow(fingerprints=[CA.issue("fw2").fingerprint]).check_certificate(certificate(FW))


def test_the_text_form_of_a_fingerprint_reads_back() -> None:
    """What the log prints can be pasted into the configuration, with or without colons."""
    text = fingerprint_text(certificate(FW).fingerprint)
    assert text == FW.fingerprint
    plain = "SHA-256:" + text.removeprefix("sha-256:").replace(":", "").lower()
    assert allow(fingerprints=[text]).pins == allow(fingerprints=[plain]).pins


@pytest.mark.parametrize(
    ("field", "value", "text"),
    [
        ("networks", "10.2.0.1/16", "not a network such as"),
        ("networks", "office", "not a network such as"),
        ("fingerprints", "sha-1:" + "AB:" * 19 + "AB", "openssl x509"),
        ("fingerprints", "AB" * 32, "openssl x509"),
        ("fingerprints", "sha-256:ABCD", "32 bytes"),
    ],
)
def test_what_cannot_match_is_refused_with_an_example(field: str, value: str, text: str) -> None:
    """A typo in an allow-list must not become a silent refusal of everyone."""
    with pytest.raises(ValidationError, match=text):
        allow(**{field: [value]})
