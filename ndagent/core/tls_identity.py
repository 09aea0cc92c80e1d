"""Who a peer is, from its certificate.

Promises: one parse per certificate however often its owner reconnects; a certificate whose names hold control
characters is refused (a NUL in a name has fooled name checks before), and so is one that is larger than any sender's
needs to be: its subject stands in each event, its names in each record, its chain in memory while it is connected.
Refuses: trust; OpenSSL decided that already.
"""

import hashlib
import unicodedata
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

from cryptography import x509
from cryptography.x509.oid import NameOID

from ndagent.core.tls_refusal import Refused

CACHED_CERTIFICATES = 4096
MAX_CHAIN_BYTES = 16 * 1024  # DER, of all that a peer sends; four certificates with RSA keys of 4096 bits are 7 KB
MAX_SUBJECT_BYTES = 1024


@dataclass(frozen=True, slots=True)
class PeerCertificate:
    """What of a certificate is used: `fingerprint` is the SHA-256 of its DER, `names` are "DNS:…", "IP:…", "URI:…"."""

    fingerprint: bytes
    subject: str
    serial: str
    common_names: tuple[str, ...]
    names: tuple[str, ...]

    def require_kind(self, kind: str, *, typed_only: bool = False) -> None:
        """Raise Refused if the certificate carries an `nd:` URI of another kind than "device", "agent" … .

        With `typed_only` one that carries none is refused, too: the customer's own PKI knows no agents.
        """
        typed = [name for name in self.names if name.lower().startswith("uri:nd:")]
        if any(not name.lower().startswith(f"uri:nd:{kind}:") for name in typed) or (typed_only and not typed):
            raise Refused("wrong_kind", f"{', '.join(typed) or 'no nd: URI'} where nd:{kind}: is needed")


class CertificateCache:
    """Parsed certificates by fingerprint, the least recently used forgotten first."""

    def __init__(self, max_certificates: int = CACHED_CERTIFICATES) -> None:
        self._max = max_certificates
        self._known: OrderedDict[bytes, PeerCertificate] = OrderedDict()

    def get(self, der: bytes) -> PeerCertificate:
        """The certificate behind these bytes; raises Refused when they cannot be understood."""
        fingerprint = hashlib.sha256(der).digest()
        known = self._known.get(fingerprint)
        if known is None:
            known = self._known[fingerprint] = parse_certificate(der, fingerprint)
            if len(self._known) > self._max:
                self._known.popitem(last=False)
        else:
            self._known.move_to_end(fingerprint)
        return known


def check_size(certificate: bytes, chain: Sequence[bytes]) -> None:
    """Raise Refused for a certificate that comes with more than MAX_CHAIN_BYTES; OpenSSL itself takes 100 KB."""
    size = len(certificate) + sum(len(one) for one in chain if one != certificate)
    if size > MAX_CHAIN_BYTES:
        raise Refused("certificate_too_large", f"{size} bytes with its chain, {MAX_CHAIN_BYTES} are allowed")


def parse_certificate(der: bytes, fingerprint: bytes) -> PeerCertificate:
    """The fields of interest; raises Refused when the certificate cannot be understood."""
    try:
        certificate = x509.load_der_x509_certificate(der)
        common_names = tuple(str(one.value) for one in certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME))
        result = PeerCertificate(
            fingerprint=fingerprint,
            subject=certificate.subject.rfc4514_string(),
            serial=f"{certificate.serial_number:X}",
            common_names=common_names,
            names=_subject_alternative_names(certificate),
        )
    except (ValueError, x509.DuplicateExtension, x509.UnsupportedGeneralNameType) as error:
        raise Refused("certificate_unreadable", str(error)) from error
    if not all(map(_is_readable, (result.subject, *result.common_names, *result.names))):
        raise Refused("certificate_unreadable", "a name in it has control characters")
    if len(result.subject.encode()) > MAX_SUBJECT_BYTES:
        raise Refused("certificate_too_large", f"its subject is longer than {MAX_SUBJECT_BYTES} bytes")
    return result


def _is_readable(text: str) -> bool:
    """No control, format or private character; spaces of any width are text."""
    return text.isprintable() or all(one.isprintable() or unicodedata.category(one) == "Zs" for one in text)


def _subject_alternative_names(certificate: x509.Certificate) -> tuple[str, ...]:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return ()
    return (
        *(f"DNS:{name}" for name in names.get_values_for_type(x509.DNSName)),
        *(f"IP:{address}" for address in names.get_values_for_type(x509.IPAddress)),
        *(f"URI:{uri}" for uri in names.get_values_for_type(x509.UniformResourceIdentifier)),
    )
