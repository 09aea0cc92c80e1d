"""Syslog over TLS with client certificates (RFC 5425), octet-counted or LF-framed (RFC 6587), told apart by itself.

Promises: those of ndagent/core/syslog_stream.py, by connection, and of tls_listener.py: who may come in. Several
inputs of this type, by name, may have different addresses and allow-lists.
Refuses: parsing (raw first; the decoder's job), peers without a good client certificate.

Syslog has no acknowledgement: what a sender's kernel has sent and we have not read when this machine dies is lost with
it, unless the sender repeats it (rsyslog: queues and rebind; better: an agent).
"""

from typing import Literal

from pydantic import Field

from ndagent.core.allow_list import AllowConfig, AllowList
from ndagent.core.settings import ByteSize, Listen, ListenAddress, Settings
from ndagent.core.syslog_stream import StreamLimits, SyslogStream
from ndagent.core.tcp_connection import Handler
from ndagent.core.tls_identity import PeerCertificate
from ndagent.core.tls_listener import LimitsConfig, TlsListener
from ndagent.core.tls_protocol import TlsConnection
from ndagent.wire.framing import MAX_FRAME_BYTES
from ndagent.wire.record import Origin
from ndcollector.inputs import InputContext

CERTIFICATE_KIND = "device"


class SyslogLimits(LimitsConfig, StreamLimits):
    """The listener's limits, and how much may wait for the spool."""


class Config(Settings):
    """Settings of a syslog_tls input."""

    type: Literal["syslog_tls"] = Field(default="syslog_tls", description="Syslog over TLS with client certificates.")
    listen: tuple[ListenAddress, ...] = Field(
        default=(Listen("0.0.0.0", 6514), Listen("0.0.0.0", 6515)),
        min_length=1,
        description="Addresses to listen on.",
    )
    max_message_bytes: ByteSize = Field(
        default=65536, ge=480, le=MAX_FRAME_BYTES, description="A longer message is cut and tagged _truncated."
    )  # RFC 5424 §6.1: at least 480
    allow: AllowConfig = Field(default=AllowConfig(), description="Who may send, beyond having a good certificate.")
    limits: SyslogLimits = Field(default=SyslogLimits(), description="What peers may take of this machine.")


def build(name: str, config: Config, context: InputContext) -> "SyslogTls":
    """The input, not listening yet."""
    return SyslogTls(name, config, context)


class SyslogTls(SyslogStream):
    """See the module."""

    def __init__(self, name: str, config: Config, context: InputContext) -> None:
        super().__init__(
            name,
            max_message_bytes=config.max_message_bytes,
            limits=config.limits,
            metrics=context.metrics,
            clock=context.clock,
        )
        self._listener = TlsListener(
            config.listen,
            name=name,
            kind=CERTIFICATE_KIND,
            contexts=context.tls,
            allow=AllowList(config.allow),
            limits=config.limits,
            handler=self._new_peer,
            metrics=context.metrics,
            let_in_at_stop=True,
        )

    def _new_peer(self, certificate: PeerCertificate | None, connection: TlsConnection) -> Handler:
        assert certificate is not None  # noqa: S101 - Peers.DEVICES all have one
        origin = Origin(
            self._name,
            connection.address,
            connection.port,
            certificate.subject,
            certificate.serial,
            certificate.names,
        )
        return self._peer(origin, connection)
