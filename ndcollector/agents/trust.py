"""Which CAs agents are to check their collectors with, and where they are to find them.

Promises: the bundle follows its file, and one that cannot be read is TrustError, with the remedy. Refuses: whom the
collector trusts (core/tls.py).
"""

import base64
import os
import textwrap
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509

from ndagent.core.settings import Settings, listen_addresses
from ndagent.wire.enrolment import Endpoints, bundle_fingerprint, certificates_of, fingerprint
from ndcollector.agents.config import AgentsConfig


class TrustError(Exception):
    """The CA bundle cannot be given out."""


@dataclass(frozen=True, slots=True)
class Bundle:
    """CA certificates: as PEM, one by one in DER, and the one name of them all."""

    pem: str
    certificates: tuple[bytes, ...]
    fingerprint: str

    @classmethod
    def of(cls, text: str) -> "Bundle":
        """Of a PEM file's text; what stands between the certificates is left out."""
        found = certificates_of(text)
        return cls("".join(map(_pem, found)), found, bundle_fingerprint(found))

    @property
    def fingerprints(self) -> tuple[bytes, ...]:
        """Of each certificate, as tokens carry them."""
        return tuple(map(fingerprint, self.certificates))


class TrustFile:
    """The bundle of a file, read again when it changed. `path` is asked each time: a reload may name another."""

    def __init__(self, path: Callable[[], Path]) -> None:
        self._path = path
        self._seen: tuple[object, ...] = ()
        self._bundle: Bundle | None = None

    def bundle(self) -> Bundle:
        """As the file is now; raises TrustError."""
        path = self._path()
        try:
            status = os.stat(path)  # noqa: PTH116 - on the path of every status report
            seen = (path, status.st_mtime_ns, status.st_ino, status.st_size)
            if self._bundle is None or seen != self._seen:
                self._bundle, self._seen = _read(path), seen
        except OSError as error:
            raise TrustError(f"{path}: {error.strerror}; set agents.ca_file, or put the CA there") from error
        return self._bundle


def endpoints(config: AgentsConfig, inputs: Mapping[str, Settings], cert_file: Path) -> Endpoints:
    """As configured; else this collector's own listeners, by the first name in its certificate that is not loopback."""
    names = list(_names(cert_file))
    host = next((name for name in names if name not in ("localhost", "127.0.0.1", "::1")), (names or [""])[0])

    def of(kind: str, configured: tuple[str, ...]) -> tuple[str, ...]:
        if configured or not host:
            return configured
        found = [one for name, one in inputs.items() if getattr(one, "type", name) == kind]
        ports = [listen.port for one in found for _, listen in listen_addresses(one)]
        return tuple(dict.fromkeys(f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for port in ports))

    return Endpoints(of("mqtt", config.endpoints.mqtt), of("https", config.endpoints.https))


def _names(cert_file: Path) -> Iterator[str]:
    try:
        certificate = x509.load_pem_x509_certificate(cert_file.read_bytes())
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (OSError, ValueError, x509.ExtensionNotFound):
        return
    yield from (name for name in names.get_values_for_type(x509.DNSName) if not name.startswith("*"))
    yield from map(str, names.get_values_for_type(x509.IPAddress))


def _read(path: Path) -> Bundle:
    bundle = Bundle.of(path.read_text(encoding="utf-8", errors="replace"))
    if not bundle.certificates:
        raise TrustError(f"{path}: holds no certificate (PEM)")
    return bundle


def _pem(der: bytes) -> str:
    lines = "\n".join(textwrap.wrap(base64.b64encode(der).decode(), 64))
    return f"-----BEGIN CERTIFICATE-----\n{lines}\n-----END CERTIFICATE-----\n"
