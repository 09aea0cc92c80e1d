"""The syslog_tls input with real sockets and real certificates: what arrives, who is refused, which limits hold."""

import asyncio
import contextlib
import socket
import ssl
import struct
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from collected import WAIT_SECONDS, Collected
from tls_peers import DAY, SERVER, Authority, Files, Pair, connect, self_signed, send_and_close, wait_refused

from ndagent.core.metrics import Metrics
from ndagent.core.tls import TlsConfig, TlsContexts
from ndagent.wire.record import Flags, Framing
from ndcollector.inputs import InputContext
from ndcollector.inputs.syslog_tls import Config, SyslogTls, build


class Stage:
    """An input that runs, with its PKI and its metrics."""

    def __init__(self, files: Files, contexts: TlsContexts, metrics: Metrics, syslog: SyslogTls) -> None:
        self.files = files
        self.contexts = contexts
        self.metrics = metrics
        self.syslog = syslog
        self.accept = Collected()
        self.task = asyncio.create_task(syslog.run(self.accept))

    @property
    def port(self) -> int:
        return self.syslog.addresses[0].port

    def device(self, name: str = "fw1", **kwargs: Any) -> ssl.SSLContext:
        """The context of a client with a good certificate."""
        version = kwargs.pop("version", None)
        pair = self.files.authority.issue(name, names=kwargs.pop("names", [f"URI:nd:device:{name}"]), **kwargs)
        return self.files.client(pair, version=version)

    async def send(self, context: ssl.SSLContext, data: bytes) -> None:
        await asyncio.to_thread(send_and_close, context, self.port, data)

    async def connect(self, context: ssl.SSLContext) -> ssl.SSLSocket:
        return await asyncio.to_thread(connect, context, self.port)

    async def is_refused(self, context: ssl.SSLContext) -> bool:
        return await asyncio.to_thread(wait_refused, context, self.port)

    def value(self, name: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(name, {"input": "syslog_tls", **labels}) or 0

    def refused(self, reason: str) -> float:
        return self.value("nd_input_refused_connections_total", reason=reason)

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait for something that no event tells of."""
        async with asyncio.timeout(WAIT_SECONDS):
            while not condition():
                await asyncio.sleep(0.005)

    async def stop(self) -> None:
        self.task.cancel()
        await asyncio.wait({self.task}, timeout=WAIT_SECONDS)
        assert self.task.cancelled(), self.task


class SlowClient:
    """A client that has all it needs of a handshake and holds its last flight back until `finish`."""

    def __init__(self, context: ssl.SSLContext, port: int) -> None:
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname="localhost")
        self._raw = socket.create_connection(("127.0.0.1", port), timeout=WAIT_SECONDS)
        self._shake_hands()
        self._raw.sendall(self._outgoing.read())  # ClientHello; the next flight is the last
        while not self._outgoing.pending:
            self._incoming.write(self._raw.recv(65536))
            self._shake_hands()

    def _shake_hands(self) -> None:
        with contextlib.suppress(ssl.SSLWantReadError):
            self._tls.do_handshake()

    def finish(self, data: bytes) -> None:
        """Send the last flight and then data, as far as the server lets it."""
        with self._raw, contextlib.suppress(OSError):
            self._raw.sendall(self._outgoing.read())
            while not self._is_done():
                received = self._raw.recv(65536)
                if not received:
                    return
                self._incoming.write(received)
            self._tls.write(data)
            self._raw.sendall(self._outgoing.read())
            self._raw.shutdown(socket.SHUT_WR)
            self._raw.recv(1)

    def _is_done(self) -> bool:
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            return False
        return True


Start = Callable[..., Any]


@pytest.fixture
def start(tmp_path: Path) -> Start:
    """`async with start(**config) as stage`: an input on a port that the kernel chose."""

    @asynccontextmanager
    async def started(*, crl: bool = False, minimum_version: str = "1.2", **config: Any) -> AsyncIterator[Stage]:
        files = Files(tmp_path)
        if crl:
            files.write_crl()
        metrics = Metrics()
        names = {"ca_file": "ca.crt", "cert_file": "server.crt", "key_file": "server.key"}
        tls = TlsConfig(**{key: tmp_path / name for key, name in names.items()}, minimum_version=minimum_version)
        contexts = TlsContexts(tls, metrics=metrics, clock=time.time)
        settings = Config.model_validate({"listen": ["127.0.0.1:0"], **config})
        syslog = build("syslog_tls", settings, InputContext(tmp_path, metrics, contexts, time.time))
        stage = Stage(files, contexts, metrics, syslog)
        try:
            async with asyncio.timeout(WAIT_SECONDS):
                await syslog.started.wait()
            yield stage
        finally:
            if not stage.task.done():
                await stage.stop()

    return started


def octets(*messages: bytes) -> bytes:
    """Messages with their counts."""
    return b"".join(b"%d %s" % (len(message), message) for message in messages)


GOOD = octets(b"<13>1 - good - - - -")


class TestArrival:
    """Everything that a good peer sent before it closed, in order, with who sent it."""

    @pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
    @pytest.mark.parametrize("framing", [Framing.OCTET_COUNTED, Framing.LF])
    async def test_all_in_order_to_the_last_byte(self, start: Start, version: ssl.TLSVersion, framing: Framing) -> None:
        """Two megabytes and an immediate close by a sender that never reads: nothing may be cut off at the end."""
        messages = [b"<13>1 - host app - - - message %d" % number for number in range(50_000)]
        data = octets(*messages) if framing is Framing.OCTET_COUNTED else b"\n".join(messages) + b"\n"
        async with start() as stage:
            await stage.send(stage.device(version=version), data)
            await stage.accept.until(len(messages))
            await stage.stop()
            assert stage.accept.payload() == data
            assert {section.framing for section, _ in stage.accept.sections()} == {framing}
            assert stage.value("nd_input_received_events_total") == len(messages)
            assert stage.value("nd_input_received_bytes_total") == len(data)

    async def test_who_sent_it_stands_in_the_origin(self, start: Start) -> None:
        """Subject, serial and names come from the certificate, address and port from the socket."""
        async with start() as stage:
            pair = stage.files.authority.issue("fw1", names=["DNS:fw1.example", "IP:192.0.2.7", "URI:nd:device:fw1"])
            client = await stage.connect(stage.files.client(pair))
            with client:
                port = client.getsockname()[1]
                await asyncio.to_thread(client.sendall, GOOD)
                await stage.accept.until(1)
            origin = stage.accept.batches[0].sections[0].origin
            assert (origin.input, origin.address, origin.port) == ("syslog_tls", "127.0.0.1", port)
            assert origin.subject == "CN=fw1"
            assert origin.serial == f"{pair.certificate.serial_number:X}"
            assert origin.names == ("DNS:fw1.example", "IP:192.0.2.7", "URI:nd:device:fw1")

    async def test_a_certificate_of_the_customers_own_pki_needs_no_nd_name(self, start: Start) -> None:
        """Its CA is trusted and it says nothing that contradicts."""
        async with start() as stage:
            await stage.send(stage.device(names=["DNS:fw1.example"]), GOOD)
            await stage.accept.until(1)

    async def test_many_peers_at_once_each_in_order(self, start: Start) -> None:
        """Chunks of all share batches and never mix."""
        async with start() as stage:
            contexts = [stage.device(f"fw{number}") for number in range(12)]
            streams = [octets(*(b"<13>1 - %d - - - - %d" % (peer, n) for n in range(500))) for peer in range(12)]
            await asyncio.gather(*(stage.send(context, data) for context, data in zip(contexts, streams, strict=True)))
            await stage.accept.until(12 * 500)
            for peer, data in enumerate(streams):
                assert stage.accept.payload(f"CN=fw{peer}") == data

    async def test_a_reset_keeps_what_came_before_it(self, start: Start) -> None:
        """A crashed sender: its half frame is an event, marked; the next connection is unaffected."""
        async with start() as stage:
            client = await stage.connect(stage.device())
            await asyncio.to_thread(client.sendall, GOOD + b"100 <13>half")
            await stage.accept.until(1)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            client.close()
            await stage.accept.until(2)
            assert stage.accept.sections()[-1][0].flags == Flags.TRUNCATED
            assert stage.accept.payload() == GOOD + b"<13>half"
            await stage.send(stage.device(), GOOD)
            await stage.accept.until(3)

    async def test_close_is_answered_with_close_notify(self, start: Start) -> None:
        """RFC 5425 §4.4: a polite peer that waits for our answer gets one."""
        async with start() as stage:
            client = await stage.connect(stage.device())
            await asyncio.to_thread(client.sendall, GOOD)
            raw = await asyncio.to_thread(client.unwrap)  # raises if the connection just ends
            raw.close()
            await stage.accept.until(1)


REFUSALS: dict[str, tuple[str, Callable[[Files], Pair | None], dict[str, Any]]] = {
    "without a certificate": ("no_certificate", lambda files: None, {}),
    "of an unknown CA": ("unknown_ca", lambda files: Authority("other").issue("fw1"), {}),
    "of a CA that only has our CA's name": ("unknown_ca", lambda files: Authority().issue("fw1"), {}),
    "self-signed": ("unknown_ca", lambda files: self_signed("fw1"), {}),
    "expired": ("certificate_expired", lambda files: files.authority.issue("fw1", since=-9 * DAY, until=-DAY), {}),
    "not yet valid": ("certificate_not_yet_valid", lambda files: files.authority.issue("fw1", since=DAY), {}),
    "for servers": ("wrong_usage", lambda files: files.authority.issue("fw1", usage=[SERVER]), {}),
    "of an agent": ("wrong_kind", lambda files: files.authority.issue("a", names=["URI:nd:agent:a"]), {}),
    "of another name": ("not_allowed", lambda files: files.authority.issue("fw1"), {"allow": {"names": ["fw2*"]}}),
    "of an unlisted fingerprint": (
        "not_allowed",
        lambda files: files.authority.issue("fw1"),
        {"allow": {"fingerprints": ["sha-256:" + ":".join(["AB"] * 32)]}},
    ),
    "from another network": (
        "network_not_allowed",
        lambda files: files.authority.issue("fw1"),
        {"allow": {"networks": ["192.0.2.0/24"]}},
    ),
}


class TestRefusal:
    """No good certificate, no data: counted by reason, logged with the remedy, and nobody else notices."""

    @pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
    @pytest.mark.parametrize("case", REFUSALS)
    async def test_refused(
        self, start: Start, case: str, version: ssl.TLSVersion, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Under TLS 1.3 the client thinks that it is connected; what it sends then must not count either."""
        reason, make, config = REFUSALS[case]
        async with start(**config) as stage:
            context = stage.files.client(make(stage.files), version=version)
            assert await stage.is_refused(context)
            await stage.until(lambda: stage.refused(reason) == 1)
            assert f"refused 127.0.0.1: {reason}" in caplog.text
            await stage.until(lambda: stage.value("nd_input_connections") == 0)
            assert stage.accept.batches == []

    @pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
    async def test_revoked(self, start: Start, version: ssl.TLSVersion) -> None:
        """A certificate in the CRL is refused, others of the same CA are not."""
        async with start(crl=True) as stage:
            revoked = stage.files.authority.issue("fw1")
            stage.files.authority.revoke(revoked)
            stage.files.write_crl()
            assert stage.contexts.reload()
            assert await stage.is_refused(stage.files.client(revoked, version=version))
            await stage.until(lambda: stage.refused("certificate_revoked") == 1)
            await stage.send(stage.device(version=version), GOOD)
            await stage.accept.until(1)

    async def test_an_expired_crl_refuses_everyone_and_says_so(
        self, start: Start, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Fail closed, and recover alone as soon as a fresh CRL is there."""
        async with start(crl=True) as stage:
            stage.files.write_crl(until=-DAY)
            assert stage.contexts.reload()
            assert await stage.is_refused(stage.device())
            await stage.until(lambda: stage.refused("crl_expired") == 1)
            assert "put a fresh" in caplog.text
            stage.files.write_crl()
            assert stage.contexts.reload()
            await stage.send(stage.device(), GOOD)
            await stage.accept.until(1)

    async def test_too_old_a_tls(self, start: Start) -> None:
        """minimum_version is a floor."""
        async with start(minimum_version="1.3") as stage:
            assert await stage.is_refused(stage.device(version=ssl.TLSVersion.TLSv1_2))
            await stage.until(lambda: stage.refused("tls_version") == 1)

    @pytest.mark.parametrize(
        ("hello", "reason"),
        [
            (b"<13>1 - plain - - - - syslog\n", "not_tls"),
            (b"GET / HTTP/1.1\r\n\r\n", "not_tls"),
            (b"", "closed_in_handshake"),
            (b"\x16\x03\x01\x02\x00\x01", "closed_in_handshake"),
        ],
    )
    async def test_not_tls_at_all(self, start: Start, hello: bytes, reason: str) -> None:
        """The commonest mistake in the field: the sender's transport is plain TCP."""
        async with start() as stage:
            with await asyncio.to_thread(socket.create_connection, ("127.0.0.1", stage.port)) as client:
                client.sendall(hello)
                if reason == "closed_in_handshake":
                    client.close()
                await stage.until(lambda: stage.refused(reason) == 1)
            await stage.until(lambda: stage.value("nd_input_connections") == 0)

    async def test_a_client_that_does_not_trust_us(self, start: Start) -> None:
        """Its alert says so; the remedy is on its side."""
        async with start() as stage:
            context = stage.device()
            stranger = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            assert context.get_ca_certs()
            assert await stage.is_refused(stranger)
            await stage.until(lambda: stage.refused("refused_by_peer") == 1)

    async def test_a_peer_is_logged_once_a_minute(self, start: Start, caplog: pytest.LogCaptureFixture) -> None:
        """A device that retries each second must not fill the journal; the counter still counts."""
        async with start() as stage:
            context = stage.files.client(None)
            for _ in range(5):
                assert await stage.is_refused(context)
            await stage.until(lambda: stage.refused("no_certificate") == 5)
            assert caplog.text.count("refused 127.0.0.1") == 1


class TestMemory:
    """What a peer may make us keep that is not its messages."""

    async def test_a_session_of_tls_1_2_cannot_be_resumed(self, start: Start) -> None:
        """OpenSSL would keep 20 480 sessions of 12 KB, and let their owners in past an expired certificate or CRL."""
        async with start() as stage:
            context = stage.device(version=ssl.TLSVersion.TLSv1_2)
            first = await stage.connect(context)
            with first:
                session = first.session
                assert session is not None
                assert session.id == b""
            raw = await asyncio.to_thread(socket.create_connection, ("127.0.0.1", stage.port))
            again = await asyncio.to_thread(context.wrap_socket, raw, server_hostname="localhost", session=session)
            with again:
                assert not again.session_reused
            assert stage.contexts.context.session_stats()["number"] == 0

    @pytest.mark.parametrize("pinned", [False, True])
    async def test_a_peer_that_sends_a_huge_chain_is_refused(self, start: Start, pinned: bool) -> None:
        """OpenSSL takes 100 KB of certificates and keeps them, 230 KB then, for as long as the connection lives."""
        allow = {"fingerprints": [self_signed("x").fingerprint], "names": ["*"]} if pinned else {}
        async with start(allow=allow) as stage:
            pair = stage.files.authority.issue("fw1")
            names = [f"DNS:host-{number}.example.net" for number in range(500)]
            pair.chain = [stage.files.authority.issue("filler", names=names).certificate] * 2
            assert await stage.is_refused(stage.files.client(pair))
            await stage.until(lambda: stage.refused("certificate_too_large") == 1)
            await stage.send(stage.device(), GOOD)
            await stage.accept.until(1)


class TestFingerprints:
    """RFC 5425 §4.2.2: a self-signed peer is known by its fingerprint."""

    @pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
    @pytest.mark.parametrize("crl", [False, True])
    async def test_a_listed_self_signed_peer_sends(self, start: Start, version: ssl.TLSVersion, crl: bool) -> None:
        """Everything it sent before it closed arrives here too (no session tickets that it would leave unread)."""
        pair = self_signed("fw1")
        data = octets(*(b"<13>1 - fw1 - - - - %d" % number for number in range(50_000)))
        async with start(crl=crl, allow={"fingerprints": [pair.fingerprint]}) as stage:
            await stage.send(stage.files.client(pair, version=version), data)
            await stage.accept.until(50_000)
            assert stage.accept.payload() == data
            assert stage.accept.batches[0].sections[0].origin.subject == "CN=fw1"

    @pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
    async def test_everyone_else_is_still_verified(self, start: Start, version: ssl.TLSVersion) -> None:
        """A listed fingerprint opens the door for one certificate only, and `names` for the rest of the CA's."""
        pair = self_signed("fw1")
        async with start(crl=True, allow={"fingerprints": [pair.fingerprint], "names": ["fw*"]}) as stage:
            assert await stage.is_refused(stage.files.client(self_signed("fw1"), version=version))
            assert await stage.is_refused(stage.files.client(Authority().issue("fw1"), version=version))
            assert stage.refused("unknown_ca") == 2
            assert await stage.is_refused(stage.files.client(None, version=version))
            assert stage.refused("no_certificate") == 1
            wrong = stage.files.authority.issue("fw3", usage=[SERVER])
            assert await stage.is_refused(stage.files.client(wrong, version=version))
            assert stage.refused("wrong_usage") == 1
            revoked = stage.files.authority.issue("fw4")
            stage.files.authority.revoke(revoked)
            stage.files.write_crl()
            assert stage.contexts.reload()
            assert await stage.is_refused(stage.files.client(revoked, version=version))
            assert stage.refused("certificate_revoked") == 1
            assert stage.accept.batches == []
            await stage.send(stage.device("fw2", version=version), GOOD)
            await stage.accept.until(1)

    async def test_a_listed_one_that_expired_is_refused(self, start: Start) -> None:
        """Fail closed; the log says why."""
        pair = self_signed("fw1", until=-DAY)
        async with start(allow={"fingerprints": [pair.fingerprint]}) as stage:
            assert await stage.is_refused(stage.files.client(pair))
            assert stage.refused("certificate_expired") == 1


BAD_INPUTS: dict[str, tuple[bytes, int]] = {
    "gibberish": (bytes(range(256)) * 40, 41),  # the last one without an end
    "a half frame": (b"500 <13>1 - - ", 1),
    "an endless frame": (b"16000000 <13>1 " + b"x" * 300_000, 1),
    "an endless line": (b"x" * 300_000, 1),
    "a count of 99999999999": (b"99999999999 <13>1 - - - - - -\n" + GOOD, 2),
    "NULs": (b"\0" * 1000 + b"\n\0\0\n" + b"a\0b\n", 1),
    "invalid UTF-8": (b"<13>\xff\xfe\x80\xc3\x28\n", 1),
    "empty lines": (b"\n\r\n\n\0\n", 0),
}


class TestBadInput:
    """A peer with a good certificate and bad manners: bounded, marked, and nobody else notices."""

    @pytest.mark.parametrize("case", BAD_INPUTS)
    async def test_every_completed_message_is_kept_and_the_next_peer_is_fine(self, start: Start, case: str) -> None:
        """What came is events, and a good connection that was open all the time still works."""
        data, events = BAD_INPUTS[case]
        async with start() as stage:
            bystander = await stage.connect(stage.device("fw2"))
            with bystander:
                await stage.send(stage.device(), data)
                await stage.until(lambda: stage.value("nd_input_connections") == 1)
                await asyncio.to_thread(bystander.sendall, GOOD)
                await stage.accept.until(events + 1)
            assert stage.accept.count == events + 1
            assert max(section.length // section.count for section, _ in stage.accept.sections()) <= 65536 + 6

    async def test_a_damaged_tls_stream_keeps_what_came_before(self, start: Start) -> None:
        """Bytes changed on the way: the connection ends, counted; whole messages stay."""
        async with start() as stage:
            client = await stage.connect(stage.device())
            await asyncio.to_thread(client.sendall, GOOD)
            raw = socket.socket(fileno=client.detach())
            with raw:
                raw.sendall(b"\x17\x03\x03\x00\x20" + b"not encrypted, not authenticated!"[:32])
                await stage.until(lambda: stage.refused("tls_error") == 1)
            await stage.accept.until(1)
            assert stage.accept.payload() == GOOD

    async def test_byte_by_byte(self, start: Start) -> None:
        """One TLS record per byte: a message all the same."""
        async with start() as stage:
            client = await stage.connect(stage.device())
            with client:

                def drip() -> None:
                    for byte in GOOD:
                        client.send(bytes([byte]))

                await asyncio.to_thread(drip)
                await stage.accept.until(1)
            assert stage.accept.payload() == GOOD


class TestLimits:
    """Each limit of the configuration, at it and one beyond."""

    async def test_connections(self, start: Start) -> None:
        """limits.connections: the third of two is refused; when one leaves there is room again."""
        async with start(limits={"connections": 2}) as stage:
            context = stage.device()
            first, second = await stage.connect(context), await stage.connect(context)
            assert await stage.is_refused(context)
            assert stage.refused("too_many_connections") == 1
            first.close()
            await stage.until(lambda: stage.value("nd_input_connections") == 1)
            await stage.send(context, GOOD)
            await stage.accept.until(1)
            second.close()

    async def test_connections_per_address(self, start: Start) -> None:
        """limits.connections_per_address: one busy host cannot take every connection."""
        async with start(limits={"connections_per_address": 1}) as stage:
            context = stage.device()
            first = await stage.connect(context)
            assert await stage.is_refused(context)
            assert stage.refused("too_many_from_address") == 1
            first.close()
            await stage.until(lambda: stage.value("nd_input_connections") == 0)
            await stage.send(context, GOOD)
            await stage.accept.until(1)

    async def test_handshake_timeout(self, start: Start) -> None:
        """limits.handshake_timeout: a peer that connects and says nothing, or half, goes."""
        async with start(limits={"handshake_timeout": "200ms"}) as stage:
            with (
                await asyncio.to_thread(socket.create_connection, ("127.0.0.1", stage.port)) as silent,
                await asyncio.to_thread(socket.create_connection, ("127.0.0.1", stage.port)) as slow,
            ):
                slow.sendall(b"\x16\x03\x01\x02\x00\x01")
                await stage.until(lambda: stage.refused("handshake_timeout") == 2)
                assert await asyncio.to_thread(silent.recv, 1) == b""

    async def test_idle_timeout(self, start: Start) -> None:
        """limits.idle_timeout: off by default; on, the silent go and the busy stay."""
        async with start(limits={"idle_timeout": "1s"}) as stage:
            silent, busy = await stage.connect(stage.device("fw1")), await stage.connect(stage.device("fw2"))
            with silent, busy:

                async def chatter() -> None:
                    while True:
                        await asyncio.to_thread(busy.sendall, GOOD)
                        await asyncio.sleep(0.1)

                talking = asyncio.create_task(chatter())
                await stage.until(lambda: stage.refused("idle") == 1)
                assert await asyncio.to_thread(silent.recv, 1) == b""
                assert stage.value("nd_input_connections") == 1
                talking.cancel()
                await asyncio.wait({talking})

    async def test_handshakes_per_second(self, start: Start) -> None:
        """limits.handshakes_per_second: a burst waits its turn, nobody is refused."""
        async with start(limits={"handshakes_per_second": 20}) as stage:
            context = stage.device()
            began = time.monotonic()
            await asyncio.gather(*(stage.send(context, GOOD) for _ in range(12)))
            await stage.accept.until(12)
            assert time.monotonic() - began >= (12 - 2 - 1) / 20
            assert stage.value("nd_input_accepted_connections_total") == 12

    async def test_handshakes(self, start: Start) -> None:
        """limits.handshakes: silent connections take all places, and a good peer still gets in before they time out."""
        async with start(limits={"handshakes": 3, "handshake_timeout": "1h"}) as stage:
            silent = [await asyncio.to_thread(socket.create_connection, ("127.0.0.1", stage.port)) for _ in range(3)]
            await stage.until(lambda: stage.value("nd_input_connections") == 3)
            await stage.send(stage.device(), GOOD)
            await stage.accept.until(1)
            assert stage.refused("handshake_timeout") == 1
            for one in silent:
                one.close()

    async def test_a_flood_from_one_address_does_not_delay_another(self, start: Start) -> None:
        """Addresses take turns: the good peer does not stand behind a hundred that let their handshakes time out."""
        async with start(limits={"handshakes": 2, "handshake_timeout": "60s"}) as stage:
            with contextlib.ExitStack() as stack:
                for _ in range(100):
                    silent = socket.create_connection(("127.0.0.1", stage.port), source_address=("127.0.0.2", 0))
                    stack.enter_context(silent)
                await stage.until(lambda: stage.value("nd_input_connections") == 2)
                began = time.monotonic()
                await stage.send(stage.device(), GOOD)
                await stage.accept.until(1)
                assert time.monotonic() - began < 5  # behind the others it would take 25 s

    async def test_connections_that_wait_for_their_handshake_count_as_connections(self, start: Start) -> None:
        """What waits is bounded too, and all of it is served in the end."""
        limits = {"handshakes": 1, "handshake_timeout": "60s", "connections": 4, "connections_per_address": 3}
        async with start(limits=limits) as stage:
            with contextlib.ExitStack() as stack:

                def visit(address: str) -> socket.socket:
                    there, here = ("127.0.0.1", stage.port), (address, 0)
                    return stack.enter_context(socket.create_connection(there, source_address=here))

                for _ in range(3):
                    visit("127.0.0.1")
                assert await asyncio.to_thread(visit("127.0.0.1").recv, 1) == b""
                assert stage.refused("too_many_from_address") == 1
                visit("127.0.0.2")
                assert await asyncio.to_thread(visit("127.0.0.3").recv, 1) == b""
                assert stage.refused("too_many_connections") == 1
                await stage.until(lambda: stage.refused("handshake_timeout") == 3)
            await stage.until(lambda: stage.value("nd_input_connections") == 0)
            await stage.send(stage.device(), GOOD)
            await stage.accept.until(1)

    async def test_partial_bytes(self, start: Start) -> None:
        """limits.partial_bytes: who has held back the end of a long message for longest is dropped, and what came is
        kept, marked; the other goes on.
        """
        async with start(limits={"partial_bytes": "64KiB"}) as stage:
            first, second = await stage.connect(stage.device("fw1")), await stage.connect(stage.device("fw2"))
            with first, second:
                await asyncio.to_thread(first.sendall, b"60000 <13>" + b"x" * 40_000)
                await stage.until(lambda: stage.syslog.partial_bytes > 40_000)
                await asyncio.to_thread(second.sendall, b"60000 <13>" + b"y" * 40_000)
                await stage.accept.until(1)
                assert stage.refused("too_many_part_messages") == 1
                assert [section.flags for section, _ in stage.accept.sections()] == [Flags.TRUNCATED]
                await asyncio.to_thread(second.sendall, b"y" * 19_996)
                await stage.accept.until(2)
                assert stage.accept.sections()[1][0].flags == Flags.NONE
                assert stage.syslog.partial_bytes == 0

    async def test_buffer_bytes(self, start: Start) -> None:
        """limits.buffer_bytes: a full spool stops reading, memory stays bounded, all arrives once there is room."""
        message = b"<13>1 - host app - - - " + b"x" * 1000
        async with start(limits={"buffer_bytes": "1MiB"}) as stage:
            stage.accept.free.clear()
            data = octets(*[message] * 20_000)
            sending = asyncio.create_task(stage.send(stage.device(), data))
            await stage.until(lambda: stage.value("nd_input_paused") == 1)
            batcher = stage.syslog._batcher
            assert batcher is not None
            for _ in range(20):
                await asyncio.sleep(0.01)
                assert batcher.buffered_bytes < 2**20 + 2**19
            assert not sending.done()
            assert stage.accept.count == 0
            stage.accept.free.set()
            await sending
            await stage.accept.until(20_000)
            assert stage.accept.payload() == data
            assert stage.value("nd_input_paused") == 0

    async def test_a_peer_that_closes_while_reading_is_paused_loses_nothing(self, start: Start) -> None:
        """The kernel holds its last bytes and its FIN until reading goes on."""
        async with start(limits={"buffer_bytes": "64KiB"}) as stage:
            stage.accept.free.clear()
            filler, closer = await stage.connect(stage.device("fw1")), await stage.connect(stage.device("fw2"))
            await asyncio.to_thread(filler.sendall, octets(*[b"<13>" + b"x" * 1000] * 100))
            await stage.until(lambda: stage.value("nd_input_paused") == 1)
            data = octets(*(b"<13>1 - fw2 - - - - %d" % number for number in range(1000)))
            await asyncio.to_thread(closer.sendall, data)
            closer.close()
            filler.close()
            stage.accept.free.set()
            await stage.accept.until(1100)
            assert stage.accept.payload("CN=fw2") == data

    async def test_nobody_new_is_taken_while_reading_is_paused(self, start: Start) -> None:
        """Memory stays bounded however many connect while the spool is full; they wait and are then served."""
        async with start(limits={"buffer_bytes": "64KiB"}) as stage:
            stage.accept.free.clear()
            filler = await stage.connect(stage.device("fw1"))
            with filler:
                await asyncio.to_thread(filler.sendall, octets(*[b"<13>" + b"x" * 1000] * 100))
                await stage.until(lambda: stage.value("nd_input_paused") == 1)
                late = [asyncio.create_task(stage.send(stage.device("fw2"), GOOD)) for _ in range(5)]
                await asyncio.sleep(0.1)
                assert stage.value("nd_input_accepted_connections_total") <= 2  # one may have been under way
                stage.accept.free.set()
                await asyncio.gather(*late)
                await stage.accept.until(105)


RESET = struct.pack("ii", 1, 0)  # SO_LINGER of no time: close() sends a reset


class TestStop:
    """Cancelling `run` is a graceful stop: what peers had sent is durable when it returns."""

    @pytest.mark.parametrize("resets", [False, True])
    async def test_last_words_that_a_pause_left_unread_are_taken(self, start: Start, resets: bool) -> None:
        """Their sender has closed, so our close_notify is answered with a reset, or was gone before."""
        async with start(limits={"buffer_bytes": "64KiB"}) as stage:
            stage.accept.free.clear()
            filler, closer = await stage.connect(stage.device("fw1")), await stage.connect(stage.device("fw2"))
            with filler:
                await asyncio.to_thread(filler.sendall, octets(*[b"<13>" + b"x" * 1000] * 100))
                await stage.until(lambda: stage.value("nd_input_paused") == 1)
                data = octets(*(b"<13>1 - fw2 - - - - %d" % number for number in range(1000)))
                closer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # a reset drops what its kernel holds
                await asyncio.to_thread(closer.sendall, data)
                if resets:
                    closer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
                closer.close()
                stopping = asyncio.create_task(stage.stop())
                await asyncio.sleep(0.05)  # it says that we stop, and nobody is read yet
                stage.accept.free.set()
                await stopping
            assert stage.accept.payload("CN=fw2") == data

    async def test_what_was_sent_before_the_stop_is_durable_after_it(self, start: Start) -> None:
        """Also a message that has no end yet: it is what there was."""
        async with start() as stage:
            client = await stage.connect(stage.device())
            with client:
                await asyncio.to_thread(client.sendall, GOOD * 1000 + b"50 <13>half")
                await stage.stop()
                assert stage.accept.count == 1001
                assert stage.accept.payload() == GOOD * 1000 + b"<13>half"
                assert await asyncio.to_thread(client.recv, 1) == b""  # close_notify, not a reset
            assert stage.value("nd_input_received_events_total") == 1001
            assert stage.value("nd_input_connections") == 0

    async def test_a_spool_slower_than_the_senders_cuts_nobody_short(self, start: Start) -> None:
        """Reading pauses again and again while the stop takes what was sent; a paused peer is no silent one."""
        async with start(limits={"buffer_bytes": "64KiB", "drain_timeout": "20s"}) as stage:
            stage.accept.delay_seconds = 0.25  # longer than a peer may be silent during a stop
            client = await stage.connect(stage.device())
            data = octets(*[b"<13>" + b"x" * 1000] * 1500)
            sending = asyncio.create_task(asyncio.to_thread(client.sendall, data))
            await stage.until(lambda: stage.value("nd_input_paused") == 1)
            await stage.stop()
            await sending
            client.close()
            assert stage.accept.payload() == data

    async def test_a_sender_that_never_stops_is_cut_at_drain_timeout(self, start: Start) -> None:
        """A stop must end; what is cut off was never read, so nothing that was read is missing."""
        async with start(limits={"drain_timeout": "300ms"}) as stage:
            client = await stage.connect(stage.device())

            def flood() -> None:
                with client:
                    try:
                        while True:
                            client.sendall(GOOD * 100)
                    except OSError:
                        return

            flooding = asyncio.create_task(asyncio.to_thread(flood))
            await stage.accept.until(1000)
            began = time.monotonic()
            await stage.stop()
            assert time.monotonic() - began < 5
            await flooding
            assert stage.value("nd_input_received_events_total") == stage.accept.count

    async def test_a_stop_before_a_blocked_spool_has_room_counts_what_it_drops(self, start: Start) -> None:
        """The second cancel is the end of patience: what was read and not durable is counted."""
        async with start() as stage:
            stage.accept.free.clear()
            client = await stage.connect(stage.device())
            with client:
                await asyncio.to_thread(client.sendall, GOOD * 10)
                await stage.until(lambda: bool(stage.syslog._batcher and stage.syslog._batcher.buffered_bytes))
                stage.task.cancel()
                await stage.until(lambda: stage.value("nd_input_connections") == 0)
                stage.task.cancel()
                await asyncio.wait({stage.task})
            assert stage.accept.count == 0
            assert stage.value("nd_input_dropped_events_total", reason="stopped") == 10
            assert stage.value("nd_input_received_events_total") == 10

    async def test_an_address_that_is_taken_is_named(self, tmp_path: Path, start: Start) -> None:
        """The error says which address and what to look at."""
        async with start() as stage:
            settings = Config.model_validate({"listen": [f"127.0.0.1:{stage.port}"]})
            context = InputContext(tmp_path, Metrics(), stage.contexts, time.time)
            second = build("syslog_tls", settings, context)
            with pytest.raises(OSError, match=rf"cannot listen on 127\.0\.0\.1:{stage.port}.*ss -ltnp"):
                await second.run(stage.accept)


class TestReload:
    """New certificate files while peers are connected: nobody is dropped but those that are no longer trusted."""

    async def test_new_connections_see_the_new_certificate_and_old_ones_live_on(self, start: Start) -> None:
        """No message is lost and none comes twice."""
        async with start() as stage:
            old = await stage.connect(stage.device("fw1"))
            with old:
                await asyncio.to_thread(old.sendall, GOOD)
                before = old.getpeercert(binary_form=True)
                stage.files.server = stage.files.authority.issue("collector", names=["DNS:localhost"], usage=[SERVER])
                stage.files.write()
                assert stage.contexts.reload()
                new = await stage.connect(stage.device("fw2"))
                with new:
                    assert new.getpeercert(binary_form=True) != before
                    await asyncio.to_thread(old.sendall, GOOD)
                    await asyncio.to_thread(new.sendall, GOOD)
                    await stage.accept.until(3)
            assert stage.value("nd_input_accepted_connections_total") == 2

    async def test_a_peer_that_is_now_revoked_is_dropped_and_no_other(self, start: Start) -> None:
        """What it had sent before stays."""
        async with start(crl=True) as stage:
            bad_pair = stage.files.authority.issue("bad")
            bad = await stage.connect(stage.files.client(bad_pair))
            good = await stage.connect(stage.device("good"))
            with bad, good:
                await asyncio.to_thread(bad.sendall, GOOD)
                await stage.accept.until(1)
                stage.files.authority.revoke(bad_pair)
                stage.files.write_crl()
                assert stage.contexts.reload()
                assert await asyncio.to_thread(bad.recv, 1) == b""
                assert stage.refused("certificate_revoked") == 1
                await asyncio.to_thread(good.sendall, GOOD)
                await stage.accept.until(2)
                assert stage.value("nd_input_connections") == 1

    @pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
    @pytest.mark.parametrize("pinned", [False, True])
    async def test_a_handshake_that_outlives_a_revocation_does_not_get_in(
        self, start: Start, version: ssl.TLSVersion, pinned: bool
    ) -> None:
        """OpenSSL verifies by the files of when it began: whoever holds its last flight back must not win by that."""
        allow = {"fingerprints": [self_signed("x").fingerprint], "names": ["*"]} if pinned else {}
        async with start(crl=True, allow=allow) as stage:
            bad_pair, good_pair = stage.files.authority.issue("bad"), stage.files.authority.issue("good")
            bad, good = [
                await asyncio.to_thread(SlowClient, stage.files.client(pair, version=version), stage.port)
                for pair in (bad_pair, good_pair)
            ]
            stage.files.authority.revoke(bad_pair)
            stage.files.write_crl()
            assert stage.contexts.reload()
            await asyncio.to_thread(bad.finish, GOOD)
            await stage.until(lambda: stage.refused("certificate_revoked") == 1)
            await asyncio.to_thread(good.finish, GOOD)
            await stage.accept.until(1)
            assert {section.origin.subject for section, _ in stage.accept.sections()} == {"CN=good"}
            assert stage.value("nd_input_accepted_connections_total") == 1

    async def test_a_peer_whose_ca_is_gone_is_dropped_and_a_pinned_one_stays(self, start: Start) -> None:
        """Trust by fingerprint does not hang on a CA."""
        pinned_pair = self_signed("fw1")
        async with start(allow={"fingerprints": [pinned_pair.fingerprint], "names": ["*"]}) as stage:
            pinned = await stage.connect(stage.files.client(pinned_pair))
            orphan = await stage.connect(stage.device("fw2"))
            with pinned, orphan:
                await stage.until(lambda: stage.value("nd_input_accepted_connections_total") == 2)
                stage.files.authority = Authority("new CA")
                stage.files.write()
                assert stage.contexts.reload()
                assert await asyncio.to_thread(orphan.recv, 1) == b""
                assert stage.refused("unknown_ca") == 1
                await asyncio.to_thread(pinned.sendall, GOOD)
                await stage.accept.until(1)

    async def test_a_peer_behind_an_intermediate_ca_is_kept(self, start: Start) -> None:
        """The chain that it sent is taken into account, as it was in its handshake."""
        async with start() as stage:
            intermediate = Authority("issuing CA", parent=stage.files.authority)
            client = await stage.connect(stage.files.client(intermediate.issue("fw1")))
            with client:
                await asyncio.to_thread(client.sendall, GOOD)
                await stage.accept.until(1)
                stage.files.server = stage.files.authority.issue("collector", names=["DNS:localhost"], usage=[SERVER])
                stage.files.write()
                assert stage.contexts.reload()
                await stage.until(lambda: not stage.syslog._listener._contexts_changed.is_set())
                await asyncio.sleep(0.1)
                await asyncio.to_thread(client.sendall, GOOD)
                await stage.accept.until(2)


async def wait_for(condition: Callable[[], Awaitable[bool]]) -> None:
    """Poll an asynchronous condition."""
    async with asyncio.timeout(WAIT_SECONDS):
        while not await condition():
            await asyncio.sleep(0.05)


async def test_files_that_change_on_disk_are_picked_up(start: Start) -> None:
    """The watcher, real inotify: a certificate alone is half a pair and is ignored until its key comes."""
    async with start() as stage:
        watching = asyncio.create_task(stage.contexts.watch())
        server = stage.files.authority.issue("renewed", names=["DNS:localhost"], usage=[SERVER])
        context = stage.device()
        directory = stage.files.directory
        rejected: Callable[[], float | None] = lambda: stage.metrics.registry.get_sample_value(  # noqa: E731
            "nd_reloads_total", {"what": "tls", "result": "refused"}
        )
        await asyncio.sleep(0.2)  # the watcher tells nobody when it is ready; too early only means one round more
        (directory / "server.crt").write_bytes(server.pem())
        await stage.until(lambda: rejected() == 1)
        await stage.send(context, GOOD)
        await stage.accept.until(1)
        (directory / "server.key").write_bytes(server.key_pem())

        async def is_new() -> bool:
            client = await stage.connect(context)
            with client:
                return ("commonName", "renewed") in client.getpeercert()["subject"][0]  # type: ignore[index,operator]

        await wait_for(is_new)
        watching.cancel()
        await asyncio.wait({watching})


def test_the_defaults_are_those_of_the_manual() -> None:
    """DESIGN §6: addresses and limits that others lean on."""
    config = Config()
    assert [str(one) for one in config.listen] == ["0.0.0.0:6514", "0.0.0.0:6515"]
    assert config.max_message_bytes == 65536
    assert (config.limits.connections, config.limits.connections_per_address) == (20_000, 2_000)
    assert config.limits.handshakes_per_second == 1_000
    assert config.limits.idle_timeout == 0
    assert timedelta(seconds=config.limits.handshake_timeout) == timedelta(seconds=10)
