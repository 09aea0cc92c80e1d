"""What may stand under an mqtt_broker input: where the broker is, who we are there, and what we take from it.

Promises: the broker's certificate is always verified, its name too; a secret is a SecretStr: no log line and no
reference file shows it. Refuses: connecting (mqtt_broker_link.py).
"""

import re
import ssl
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, SecretStr, model_validator

from ndagent.core.client_certificate import ClientCertificateConfig
from ndagent.core.settings import ByteSize, Duration, Kind, SettingError, Settings
from ndagent.wire.mqtt_fields import MAX_VARIABLE
from ndagent.wire.routes import STREAMS

_ADDRESS = re.compile(r"(\[[0-9a-fA-F:.]+\]|[^\s:/,\[\]]+):(\d{1,5})")


def check_endpoint(text: str) -> str:
    """A broker's address; raises ValueError that shows a good one."""
    match = _ADDRESS.fullmatch(text)
    if match is None or not 0 < int(match[2]) < 65536:
        raise ValueError(f"{text!r} is not a broker's address; write host:port such as broker.example.net:8883")
    return text


class BrokerTlsConfig(ClientCertificateConfig):
    """TLS to the broker; `tls: {}` trusts the system's CAs and shows no certificate."""

    def context(self) -> ssl.SSLContext:
        """For one connection, so that renewed files are read anew; raises OSError that names the bad one."""
        file: Path | None = self.ca_file
        try:
            made = ssl.create_default_context(cafile=self.ca_file)
            if self.cert_file is not None:
                file = self.cert_file
                made.load_cert_chain(self.cert_file, self.key_file)
        except (ssl.SSLError, OSError) as error:
            raise OSError(f"tls: {file}: {error}") from error
        return made


class Config(Settings):
    """Settings of an mqtt_broker input."""

    type: Literal["mqtt_broker"] = Field(
        default="mqtt_broker", description="Agents' signed events from the customer's own MQTT 5 broker."
    )
    endpoint: Annotated[str, AfterValidator(check_endpoint), Kind("a broker's address (host:port)")] = Field(
        description="The broker.", examples=["broker.example.net:8883"]
    )
    tls: BrokerTlsConfig | None = Field(
        default=BrokerTlsConfig(), description="TLS to the broker; null is plain TCP, for a broker on this machine."
    )
    username: str | None = Field(default=None, min_length=1, description="Where the broker asks for a name.")
    password: SecretStr | None = Field(
        default=None, description="Its password; keep it in a file: ${file:/etc/ndcollector/broker.password}."
    )
    client_id: str | None = Field(
        default=None,
        min_length=1,
        max_length=128,
        description="The session's name at the broker: never two collectors with one, never another after a restart. "
        "null: nd-NODE_NAME, with the input's name behind it where that is not mqtt_broker.",
    )
    group: str = Field(
        default="ndcollector",
        pattern=r"^[^/+#\x00]{1,128}$",
        description="Shared subscription: collectors that name the same one share the agents' messages.",
    )
    session_expiry: Duration = Field(
        default=86400.0,
        ge=60,
        le=2**32 - 2,
        description="How long the broker is to keep our session, and what waits in it, while we are away.",
    )
    receive_maximum: int = Field(
        default=64, ge=1, le=65535, description="Messages that wait for our acknowledgement at a time."
    )
    max_packet_bytes: ByteSize = Field(
        default=2**20,
        ge=16 * 1024,
        le=MAX_VARIABLE,
        description="The broker keeps larger ones from us without a word (MQTT 5 §3.1.2.11.4): not below the agents'.",
    )
    max_batch_bytes: ByteSize = Field(
        default=8 * 2**20, ge=1024, description="Uncompressed events in one message; more of them are refused."
    )
    max_batch_events: int = Field(
        default=10_000, ge=1, le=100_000, description="Events in one message; more of them are refused."
    )
    keep_alive: Duration = Field(
        default=30.0, ge=1, le=65535, description="A broker that is silent for twice as long is taken to be gone."
    )
    connect_timeout: Duration = Field(
        default=10.0, gt=0, description="A broker that has not greeted us within this time is taken to be away."
    )

    @model_validator(mode="after")
    def _has_a_name(self) -> Self:
        if self.password is not None and self.username is None:
            raise SettingError(("username",), "is missing: a password belongs to a name")
        return self

    @property
    def streams(self) -> tuple[str, ...]:
        """What this input feeds."""
        return tuple(sorted(frozenset().union(*STREAMS.values())))
