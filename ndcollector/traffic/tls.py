"""The client's side of TLS for outputs: whom we believe, who we are, and both read anew when the files change.

Promises: without a word in the configuration a far side is believed only with a certificate of a CA that the system
trusts and its own name in it; changed files take effect at the next connection, whole or not at all: files that do not
fit (a key that is not the certificate's, half a PEM block) leave the last good ones in use, said once, with the file's
name. Refuses: deciding when to look (pool.py does), older versions than TLS 1.2.
"""

import logging
import ssl
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path

from cryptography import x509
from pydantic import Field

from ndagent.core.client_certificate import ClientCertificateConfig
from ndagent.core.interfaces import Unavailable
from ndagent.core.metrics import Metrics


class ClientTlsConfig(ClientCertificateConfig):
    """TLS to an output's far side."""

    server_name: str | None = Field(
        default=None,
        min_length=1,
        description="The name that must stand in the far side's certificate, where it is not the URL's host.",
    )
    accept_any_certificate_insecurely: bool = Field(
        default=False,
        description="Believe whoever answers: no protection against somebody in between, who reads events and "
        "credentials. For a laboratory; a warning stands in the log at each start.",
    )


class ClientTls:
    """The current context. Reads the files when it is first asked; `look` reads them anew."""

    def __init__(self, config: ClientTlsConfig, *, name: str, metrics: Metrics) -> None:
        self._config = config
        self._expiry = metrics.certificate_expiry
        self._expires_at: datetime | None = None
        self._log = logging.getLogger(name)
        self._contents: Mapping[Path, bytes] = {}
        self._refused: str = ""
        self._context: ssl.SSLContext | None = None
        if config.accept_any_certificate_insecurely:
            self._log.warning(
                "tls.accept_any_certificate_insecurely is on: anybody between here and the destination can read and "
                "change what is sent, the credentials too; put the destination's CA into tls.ca_file instead"
            )

    @property
    def context(self) -> ssl.SSLContext:
        """For the next connection. Raises Unavailable while the files have never been good."""
        if self._context is None:
            self.look()
        if self._context is None:
            raise Unavailable(self._refused)
        return self._context

    @property
    def is_used(self) -> bool:
        """Whether anybody has asked for a context."""
        return self._context is not None or bool(self._refused)

    def look(self) -> None:
        """Read the files again, and use them from now on if they changed and are good. Blocks; never raises."""
        try:
            contents = {path: path.read_bytes() for path in self._paths()}
            if self._context is not None and contents == self._contents:
                return
            context = _build(self._config)
            self._note_expiry(contents)
        except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
            self._refuse(error)
            return
        if self._context is not None:
            self._log.info("TLS files were read anew; new connections use them")
        self._context, self._contents, self._refused = context, contents, ""

    def about_us(self, now: float) -> str:
        """What our own certificate may have to do with a connection that was broken off; `now` is Unix time."""
        if self._expires_at is not None and self._expires_at.timestamp() <= now:
            when = self._expires_at.isoformat(sep=" ", timespec="minutes")
            return f"; our certificate has expired ({when}): renew tls.cert_file (no restart is needed)"
        if self._config.cert_file is None:
            return "; over TLS that may mean that it wants a certificate of ours: tls.cert_file"
        return "; over TLS that may mean that it does not accept our certificate: look at tls.cert_file"

    def _note_expiry(self, contents: Mapping[Path, bytes]) -> None:
        path = self._config.cert_file
        if path is not None:
            self._expires_at = x509.load_pem_x509_certificates(contents[path])[0].not_valid_after_utc
            self._expiry.labels(str(path)).set(self._expires_at.timestamp())

    def _paths(self) -> list[Path]:
        config = self._config
        return [path for path in (config.ca_file, config.cert_file, config.key_file) if path is not None]

    def _refuse(self, error: OSError | ValueError) -> None:
        files = ", ".join(map(str, self._paths())) or "the system's CA certificates"
        reason = f"TLS files cannot be used ({files}): {getattr(error, 'strerror', None) or error}; correct them"
        if reason != self._refused and self._context is not None:
            self._log.warning("%s; the last good ones stay in use", reason)
        self._refused = reason


def _build(config: ClientTlsConfig) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=config.ca_file)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if config.accept_any_certificate_insecurely:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    if config.cert_file is not None:
        context.load_cert_chain(config.cert_file, config.key_file, password=_no_password)
    return context


def _no_password() -> str:
    raise ValueError("the key is encrypted; store it without a password, readable by this service's user only")
