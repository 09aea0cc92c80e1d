"""Who of those with a good certificate may use a listener: networks, names, fingerprints.

Promises: an empty list restricts nothing; what is not allowed is refused with a reason. Networks hold for everyone.
Names and fingerprints are the two ways of RFC 5425 §4.2 to know a peer: a listed fingerprint is enough by itself, even
for a self-signed certificate; everyone else needs a certificate from our CA and, if names are listed, a name that
matches. With fingerprints but no names only the listed certificates come in.
"""

import re
from fnmatch import fnmatchcase
from typing import Annotated

from pydantic import AfterValidator, Field

from ndagent.core.networks import AllowedNetworks, Networks
from ndagent.core.settings import Settings
from ndagent.core.tls_identity import PeerCertificate
from ndagent.core.tls_refusal import Refused

_FINGERPRINT = re.compile(r"sha-256:[0-9a-f]{2}(?::?[0-9a-f]{2}){31}")


def check_pattern(value: str) -> str:
    """A pattern over names; raises ValueError for one that nobody can match."""
    if not value.strip():
        raise ValueError("is empty; write a name or a pattern such as *.fw.example.net")
    return value


def check_fingerprint(value: str) -> str:
    """RFC 5425 §4.2.2's text form, SHA-256 only; raises ValueError that shows how to get one."""
    if not _FINGERPRINT.fullmatch(value.lower()):
        raise ValueError(
            f"{value!r} is not a fingerprint such as sha-256:E1:2D:… (32 bytes in hex); "
            "print one with: openssl x509 -in client.crt -noout -fingerprint -sha256"
        )
    return value


def fingerprint_bytes(text: str) -> bytes:
    """The digest in "sha-256:E1:2D:…"."""
    return bytes.fromhex(text.partition(":")[2].replace(":", ""))


def fingerprint_text(digest: bytes) -> str:
    """RFC 5425 §4.2.2: the hash's name, a colon, bytes in hex with colons between."""
    return f"sha-256:{digest.hex(':').upper()}"


class AllowConfig(Settings):
    """Restrictions beyond a good certificate; an empty list restricts nothing."""

    networks: Networks = Field(default=(), description="Addresses that may connect, as networks or single addresses.")
    names: tuple[Annotated[str, AfterValidator(check_pattern)], ...] = Field(
        default=(),
        description="Patterns (* ? []) of which one must match a DNS, IP or URI name or the CN of the certificate.",
    )
    fingerprints: tuple[Annotated[str, AfterValidator(check_fingerprint)], ...] = Field(
        default=(),
        description="Certificates (sha-256:AB:CD:…) that may connect whatever their names, self-signed ones too; "
        "without `names` nobody else may.",
    )


class AllowList(AllowedNetworks):
    """AllowConfig, ready to be asked."""

    def __init__(self, config: AllowConfig) -> None:
        super().__init__(config.networks)
        self.pins = frozenset(fingerprint_bytes(text) for text in config.fingerprints)
        self._patterns = tuple(pattern.lower() for pattern in config.names)

    def check_certificate(self, certificate: PeerCertificate) -> None:
        """Raise Refused unless the certificate is listed by fingerprint or by name."""
        if certificate.fingerprint in self.pins or not (self.pins or self._patterns):
            return
        plain = [name.partition(":")[2].lower() for name in certificate.names]
        plain += [name.lower() for name in certificate.common_names]
        if not any(fnmatchcase(name, pattern) for pattern in self._patterns for name in plain):
            shown = ", ".join((certificate.subject, *certificate.names))
            raise Refused("not_allowed", f"{fingerprint_text(certificate.fingerprint)} {shown}")
