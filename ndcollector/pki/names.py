"""Who a certificate is for: checked names, and what they become inside the certificate."""

import ipaddress
import re
from dataclasses import dataclass
from typing import Literal

from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from ndcollector.pki.store import PkiError

Kind = Literal["server", "device", "agent"]

_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,62}[A-Za-z0-9])?")  # 64: the limit of a common name (RFC 5280 A.1)
_LABEL = re.compile(r"(?!-)[A-Za-z0-9_-]{1,63}(?<!-)")


@dataclass(frozen=True, slots=True)
class Subject:
    """Kind and name, and the DNS names and addresses the peer is reached by; raises PkiError for what cannot be one."""

    kind: Kind
    name: str
    dns: tuple[str, ...] = ()
    ips: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """The name becomes a file's name, so nothing that leads elsewhere passes."""
        if not _NAME.fullmatch(self.name) or ".." in self.name:
            raise PkiError(
                f"{self.name!r} cannot be a name; use up to 64 of A-Z a-z 0-9 . _ -, a letter or digit at both ends"
            )
        for host in self.dns:
            if len(host) > 253 or not all(map(_LABEL.fullmatch, host.removeprefix("*.").split("."))):
                raise PkiError(f"{host!r} is not a DNS name (write an international one as xn--…)")
        for address in self.ips:
            try:
                ipaddress.ip_address(address)
            except ValueError:
                raise PkiError(f"{address!r} is not an IP address") from None

    @property
    def uri(self) -> str:
        """The typed identity: the SAN by which the collector knows the peer."""
        return f"nd:{self.kind}:{self.name}"

    @property
    def distinguished_name(self) -> x509.Name:
        """The subject field; nothing is decided by it."""
        return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, self.name)])

    @property
    def alternative_name(self) -> x509.SubjectAlternativeName:
        """URI first: it is the identity (Origin.identity)."""
        return x509.SubjectAlternativeName(
            [
                x509.UniformResourceIdentifier(self.uri),
                *(x509.DNSName(host) for host in self.dns),
                *(x509.IPAddress(ipaddress.ip_address(address)) for address in self.ips),
            ]
        )

    @property
    def usage(self) -> x509.ExtendedKeyUsage:
        """A server is never a client and the other way round: a stolen device key cannot pose as the collector."""
        server = self.kind == "server"
        return x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH if server else ExtendedKeyUsageOID.CLIENT_AUTH])
