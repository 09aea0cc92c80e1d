"""The customer's own MQTT broker between agent and collector: its settings, and TLS to it.

Promises: the broker's certificate is always verified, its name too; without settings of its own it is met with the
agent's certificate and checked with the collectors' CAs. A secret is a SecretStr: no log line shows it.
Refuses: plain TCP. The envelopes are signed (signing.py), so a broker cannot change them, but it can read them.
"""

import ssl
from typing import Self

from pydantic import Field, SecretStr, model_validator

from ndagent.core.client_certificate import ClientCertificateConfig
from ndagent.core.interfaces import Unavailable
from ndagent.core.settings import ByteSize, ConfigPath, SettingError, Settings
from ndagent.identity import CA_FILE
from ndagent.outputs import TransportContext


class BrokerTlsConfig(ClientCertificateConfig):
    """TLS to the broker."""

    ca_file: ConfigPath | None = Field(
        default=None, description="CA certificates (PEM) that the broker's comes from; null: the collectors' CAs."
    )
    cert_file: ConfigPath | None = Field(
        default=None, description="Certificate (PEM) to show to the broker; null: the agent's own."
    )


class BrokerConfig(Settings):
    """What a broker that is not the collector wants of us."""

    tls: BrokerTlsConfig = Field(default=BrokerTlsConfig(), description="TLS to the broker.")
    username: str | None = Field(default=None, min_length=1, description="Where the broker asks for a name.")
    password: SecretStr | None = Field(
        default=None, description="Its password; keep it in a file: ${file:/etc/ndagent/broker.password}."
    )
    max_packet_bytes: ByteSize = Field(
        default=2**20,
        ge=16 * 1024,
        description="A larger envelope is split. At most what the broker and the collector's mqtt_broker input take: "
        "a broker keeps what is larger from the collector without a word.",
    )

    @model_validator(mode="after")
    def _has_a_name(self) -> Self:
        if self.password is not None and self.username is None:
            raise SettingError(("username",), "is missing: a password belongs to a name")
        return self


def broker_context(config: BrokerTlsConfig, context: TransportContext) -> ssl.SSLContext:
    """TLS 1.2 or newer for one connection, its files read anew; raises Unavailable that names the one that is bad."""
    pair = context.pair()
    ca_file = config.ca_file or pair.with_name(CA_FILE)
    certificate = config.cert_file or pair
    file = ca_file
    try:
        made = ssl.create_default_context(cafile=ca_file)
        file = certificate
        made.load_cert_chain(certificate, config.key_file)
    except (ssl.SSLError, OSError) as error:
        raise Unavailable(f"TLS to the broker: {file}: {error}") from error
    return made
