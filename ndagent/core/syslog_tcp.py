"""Syslog over plain TCP (RFC 6587), RFC 5424 or 3164: for devices that know no TLS. The plugs are made of this.

Promises: those of syslog_stream.py, by connection, and of tcp_listener.py: who may connect, and how many.
Refuses: encryption, and knowing a sender by anything but its address: anybody in `allow.networks` may send under any
host name, and anybody on the way may read and change what is sent. Use syslog_tls wherever a device can.

Nothing is acknowledged: what a sender's kernel has taken and we have not read when a connection breaks is lost, and the
sender does not know.
"""

from collections.abc import Callable

from pydantic import Field

from ndagent.core.metrics import Metrics
from ndagent.core.networks import AllowedNetworks, AllowNetworks
from ndagent.core.settings import ByteSize, Listen, ListenAddress, Settings
from ndagent.core.syslog_stream import StreamLimits, SyslogStream
from ndagent.core.tcp_connection import Handler, TcpConnection
from ndagent.core.tcp_listener import ConnectionLimits, TcpListener
from ndagent.wire.framing import MAX_FRAME_BYTES
from ndagent.wire.record import Origin


class SyslogTcpLimits(ConnectionLimits, StreamLimits):
    """What senders may take of this machine."""

    connections: int = Field(default=4_000, ge=1, description="Open connections in total.")
    connections_per_address: int = Field(default=100, ge=1, description="Open connections from one address.")
    # Lower than over TLS: here it takes no certificate to open one.


class SyslogTcpConfig(Settings):
    """Settings of a syslog_tcp input."""

    listen: tuple[ListenAddress, ...] = Field(
        default=(Listen("0.0.0.0", 601),),
        min_length=1,
        description="Addresses to listen on. 601 is IANA's port (RFC 3195); many devices are set to 514.",
    )
    max_message_bytes: ByteSize = Field(
        default=65536, ge=480, le=MAX_FRAME_BYTES, description="A longer message is cut and tagged _truncated."
    )  # RFC 5424 §6.1: at least 480
    allow: AllowNetworks = Field(default=AllowNetworks(), description="Who may send.")
    limits: SyslogTcpLimits = Field(default=SyslogTcpLimits(), description="What senders may take of this machine.")


class SyslogTcp(SyslogStream):
    """An Input; see the module."""

    def __init__(self, name: str, config: SyslogTcpConfig, *, metrics: Metrics, clock: Callable[[], float]) -> None:
        super().__init__(
            name,
            max_message_bytes=config.max_message_bytes,
            limits=config.limits,
            metrics=metrics,
            clock=clock,
        )
        self._listener = TcpListener(
            config.listen,
            name=name,
            allow=AllowedNetworks(config.allow.networks),
            limits=config.limits,
            handler=self._new_peer,
            metrics=metrics,
        )

    def _new_peer(self, connection: TcpConnection) -> Handler:
        return self._peer(Origin(self._name, connection.address, connection.port), connection)
