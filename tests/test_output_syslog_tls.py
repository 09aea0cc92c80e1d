"""The `syslog_tls` output against receivers that read, refuse, hang, close and die: what it knows, and what it does."""

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from services.process import free_port
from tls_peers import SERVER, Authority

from ndagent.core.interfaces import Unavailable
from ndagent.core.metrics import Metrics
from ndagent.core.settings import SettingError
from ndcollector.outputs import OutputContext, syslog_endpoint, syslog_tls
from ndcollector.outputs.syslog_connection import WRITE_BYTES
from ndcollector.outputs.syslog_tls import Config, SyslogTlsOutput
from tests.events import event_batch, sequences_in
from tests.syslog_receivers import Site, TlsReceiver


class Rig:
    """A receiver, and outputs to it that are closed at the end."""

    def __init__(self, directory: Path) -> None:
        self.site = Site(directory / "pki")
        self.receiver = TlsReceiver(self.site.context())
        self.metrics = Metrics()
        self.directory = directory
        self.outputs: list[SyslogTlsOutput] = []

    def output(self, **settings: Any) -> SyslogTlsOutput:
        defaults = {
            "endpoints": [f"127.0.0.1:{self.receiver.port}"],
            "tls": self.site.tls(server_name="localhost"),
            "replay_window": {"seconds": "100ms"},
        }
        context = OutputContext(state_dir=self.directory, metrics=self.metrics, clock=lambda: 0.0)
        self.outputs.append(syslog_tls.build("siem", Config(**defaults | settings), context))
        return self.outputs[-1]

    async def arrived(self) -> list[int]:
        """Once everything that is on its way was read."""
        for output in self.outputs:
            await output.aclose()
        await self.receiver.quiet()
        return sequences_in(b"\n".join(self.receiver.messages))

    @property
    def resent(self) -> float:
        return self.metrics.registry.get_sample_value("nd_output_resent_events_total", {"output": "siem"}) or 0.0


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    made = Rig(tmp_path)
    await made.receiver.start()
    yield made
    for output in made.outputs:
        await output.aclose()
    await made.receiver.stop()


async def attempt(output: SyslogTlsOutput, sequences: range) -> None:
    """A send and the sync behind it."""
    await output.send(event_batch(sequences))
    await output.sync()


async def lost(output: SyslogTlsOutput) -> None:
    """Until the output knows that its connection is no more."""
    while output.is_connected:
        await asyncio.sleep(0.01)


async def deliver(output: SyslogTlsOutput, sequences: range) -> None:
    """As the machine does: send, and again from the start where the sync says so."""
    while True:
        try:
            return await attempt(output, sequences)
        except Unavailable:
            pass


# ---- the way there ----


@pytest.mark.parametrize("framing", ["octet_counted", "lf"])
@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_events_arrive_in_either_framing(tmp_path: Path, framing: str, version: ssl.TLSVersion) -> None:
    """Each line is a message, without its line feed; a batch is more than one piece."""
    rig = Rig(tmp_path)
    rig.receiver = TlsReceiver(rig.site.context(version), framing=framing)
    await rig.receiver.start()
    batch = event_batch(range(6000))
    assert len(batch.ndjson) > 3 * WRITE_BYTES
    output = rig.output(framing=framing)
    await output.send(batch)
    await output.sync()
    await rig.arrived()
    assert rig.receiver.messages == batch.ndjson.splitlines()
    assert rig.receiver.connections == 1
    await rig.receiver.stop()


async def test_a_receiver_with_another_name_gets_nothing(rig: Rig) -> None:
    """A good certificate of somebody else's."""
    output = rig.output(tls=rig.site.tls(server_name="siem.example.net"))
    with pytest.raises(Unavailable, match="certificate is refused: Hostname mismatch"):
        await output.send(event_batch(range(3)))
    assert await rig.arrived() == []


async def test_the_hosts_own_name_counts_where_no_other_is_given(rig: Rig) -> None:
    """127.0.0.1 stands in the certificate."""
    output = rig.output(tls=rig.site.tls())
    await output.send(event_batch(range(3)))
    assert await rig.arrived() == [0, 1, 2]


async def test_a_receiver_of_an_unknown_authority_gets_nothing(rig: Rig) -> None:
    """Whoever is in between has some certificate."""
    stranger = Authority("stranger").issue("siem", names=["DNS:localhost"], usage=[SERVER])
    stranger.write(rig.site.receiver["cert"], rig.site.receiver["key"])
    await rig.receiver.stop()
    rig.receiver.context = rig.site.context()
    await rig.receiver.start()
    with pytest.raises(Unavailable, match="certificate is refused: unable to get local issuer certificate"):
        await rig.output().send(event_batch(range(3)))


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize("fault", ["expired", "unknown"])
async def test_a_receiver_that_refuses_us_is_unavailable_until_the_file_is_good(
    tmp_path: Path, version: ssl.TLSVersion, fault: str
) -> None:
    """TLS 1.3 refuses after the handshake, when we may have sent already: the window is what keeps those events."""
    rig = Rig(tmp_path)
    rig.receiver.context = rig.site.context(version)
    await rig.receiver.start()
    if fault == "expired":
        rig.site.admit(rig.site.files.authority, days=-0.5)
    else:
        rig.site.admit(Authority("stranger"))
    output = rig.output()
    for _ in range(2):
        with pytest.raises(Unavailable, match=r"refused the connection: .*alert.*; see tls\.cert_file"):
            await attempt(output, range(3))
    rig.site.admit(rig.site.files.authority)
    await deliver(output, range(3))
    assert await rig.arrived() == [0, 1, 2]
    await rig.receiver.stop()


async def test_the_next_receiver_is_used_when_the_first_is_away(rig: Rig) -> None:
    """In the order in which they are written."""
    first = f"127.0.0.1:{free_port()}"
    output = rig.output(endpoints=[first, f"127.0.0.1:{rig.receiver.port}"])
    await output.send(event_batch(range(3)))
    assert await rig.arrived() == [0, 1, 2]


async def test_the_first_receiver_is_used_again_when_it_is_back(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the second holds leaves its window first: nothing is sent twice, nothing overtakes."""
    first = TlsReceiver(rig.site.context())
    first.port = free_port()
    output = rig.output(endpoints=[f"127.0.0.1:{first.port}", f"127.0.0.1:{rig.receiver.port}"])
    await output.send(event_batch(range(3)))
    await first.start()
    await output.send(event_batch(range(3, 6)))
    monkeypatch.setattr(syslog_endpoint, "RETURN_SECONDS", 0.0)
    syncing = asyncio.ensure_future(output.sync())
    await output.send(event_batch(range(6, 9)))
    await syncing
    await output.sync()
    assert await rig.arrived() == list(range(6))
    await first.quiet()
    assert sequences_in(b"\n".join(first.messages)) == [6, 7, 8]
    await first.stop()


async def test_nobody_answers(rig: Rig) -> None:
    """The reason names them all."""
    ports = free_port(), free_port()
    output = rig.output(endpoints=[f"127.0.0.1:{port}" for port in ports])
    with pytest.raises(Unavailable, match=rf"127.0.0.1:{ports[0]}: .*refused.*; 127.0.0.1:{ports[1]}: "):
        await output.send(event_batch(range(3)))


async def test_a_receiver_that_takes_the_connection_and_says_nothing(rig: Rig) -> None:
    """No handshake within connect_timeout: the next one is tried."""
    with socket.create_server(("127.0.0.1", 0)) as silent:  # the kernel takes it, nobody else does
        ports = silent.getsockname()[1], rig.receiver.port
        output = rig.output(endpoints=[f"127.0.0.1:{port}" for port in ports], connect_timeout="200ms")
        await output.send(event_batch(range(3)))
    assert await rig.arrived() == [0, 1, 2]


# ---- what is known, and what is not ----


async def test_a_receiver_that_never_reads_holds_the_send_and_little_memory(rig: Rig) -> None:
    """What does not fit into the kernel stays in the batch, which is bounded; nothing else waits in this process."""
    rig.receiver.manner = "hold"
    output = rig.output()
    sending = asyncio.ensure_future(output.send(event_batch(range(400_000))))
    while output.held_bytes == 0:
        await asyncio.sleep(0.01)
        assert not sending.done()
    await asyncio.sleep(0.1)
    assert not sending.done()
    assert output.held_bytes <= WRITE_BYTES + 4096
    sending.cancel()
    with suppress(asyncio.CancelledError):
        await sending


async def test_a_receiver_that_never_reads_does_not_keep_the_others_from_it(rig: Rig) -> None:
    """It took the connection, so only the send that is given up can tell; the next one goes to another receiver."""
    hung = TlsReceiver(rig.site.context())
    hung.manner = "hold"
    await hung.start()
    endpoints = [f"127.0.0.1:{hung.port}", f"127.0.0.1:{rig.receiver.port}"]
    output = rig.output(endpoints=endpoints, timeout="1200ms")
    much = event_batch(range(400_000))
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(1.2):  # as delivery.Timeout does
            await output.send(much)
    await deliver(output, range(3))
    assert await rig.arrived() == [0, 1, 2]
    await hung.stop()


async def test_a_receiver_that_closes_at_once_is_never_believed(rig: Rig) -> None:
    """Its TCP may have taken the bytes; its FIN says that nobody read them."""
    rig.receiver.manner = "close"
    output = rig.output()
    for _ in range(5):
        with pytest.raises(Unavailable, match=r"closed|reset|Broken pipe"):
            await attempt(output, range(3))
    rig.receiver.manner = "read"
    await deliver(output, range(3))
    assert await rig.arrived() == [0, 1, 2]


async def test_a_connection_that_breaks_inside_the_window_has_everything_sent_again(rig: Rig) -> None:
    """sync() says so, once, and at once; what is sent again is counted."""
    output = rig.output(replay_window={"seconds": "20s"})
    await output.send(event_batch(range(10)))
    syncing = asyncio.ensure_future(output.sync())
    await asyncio.sleep(0)
    await rig.receiver.stop()
    with pytest.raises(Unavailable, match=r"127\.0\.0\.1:"):
        await asyncio.wait_for(syncing, 10)
    await rig.receiver.start()
    await output.sync()
    assert rig.resent == 0
    await output.send(event_batch(range(12)))
    assert rig.resent == 10
    assert set(await rig.arrived()) == set(range(12))


async def test_a_connection_that_breaks_after_the_window_costs_nothing(rig: Rig) -> None:
    """A receiver may be restarted while nothing comes."""
    output = rig.output()
    await output.send(event_batch(range(10)))
    await output.sync()
    await rig.receiver.stop()
    await rig.receiver.start()
    await lost(output)
    await output.sync()
    await output.send(event_batch(range(10, 20)))
    assert await rig.arrived() == list(range(20))
    assert rig.resent == 0


@pytest.mark.parametrize(("seconds", "lost"), [("0s", True), ("20s", False)])
async def test_what_the_window_is_for(rig: Rig, seconds: str, lost: bool) -> None:
    """A receiver dies with bytes unread that its TCP had acknowledged: gone without a window, sent again with one."""
    rig.receiver.manner = "hold"
    output = rig.output(replay_window={"seconds": seconds})
    await output.send(event_batch(range(10)))
    syncing = asyncio.ensure_future(output.sync())
    if lost:
        await syncing
    await rig.receiver.stop()
    rig.receiver.manner = "read"
    await rig.receiver.start()
    if not lost:
        with pytest.raises(Unavailable):
            await syncing
        await output.send(event_batch(range(10)))
    assert await rig.arrived() == ([] if lost else list(range(10)))


async def test_bytes_behind_it_end_the_window_too(rig: Rig) -> None:
    """Otherwise a busy output would have minutes to send again."""
    output = rig.output(replay_window={"seconds": "20s", "bytes": "1KiB"})
    await output.send(event_batch(range(10)))
    syncing = asyncio.ensure_future(output.sync())
    await asyncio.sleep(0)
    await output.send(event_batch(range(10, 13)))
    assert not syncing.done()
    await output.send(event_batch(range(13, 100)))
    await asyncio.wait_for(syncing, 10)


async def test_what_is_new_waits_until_the_machine_was_told_of_a_break(rig: Rig) -> None:
    """Order: it begins again at its cursor, which stands before what must be sent again."""
    output = rig.output(replay_window={"seconds": "20s"})
    await output.send(event_batch(range(10)))
    await rig.receiver.stop()
    await rig.receiver.start()
    await lost(output)
    sending = asyncio.ensure_future(output.send(event_batch(range(10, 20))))
    await asyncio.sleep(0.1)
    assert not sending.done()
    with pytest.raises(Unavailable):
        await output.sync()
    await asyncio.wait_for(sending, 10)


async def test_a_machine_that_never_asks_does_not_block_for_ever(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may have nothing settled to ask about: half of a batch that is being bisected, say."""
    monkeypatch.setattr(syslog_tls, "_ORDER_SECONDS", 0.05)
    output = rig.output(replay_window={"seconds": "20s"})
    await output.send(event_batch(range(10)))
    await rig.receiver.stop()
    await rig.receiver.start()
    await lost(output)
    await asyncio.wait_for(output.send(event_batch(range(10, 20))), 10)
    with pytest.raises(Unavailable):
        await output.sync()


async def test_a_send_that_is_given_up_amid_a_frame_ends_the_connection(rig: Rig) -> None:
    """The next message would be read as the rest of that one."""
    rig.receiver.manner = "hold"
    output = rig.output()
    sending = asyncio.ensure_future(output.send(event_batch(range(400_000))))
    while output.held_bytes == 0:
        await asyncio.sleep(0.01)
    sending.cancel()
    with suppress(asyncio.CancelledError):
        await sending
    rig.receiver.manner = "read"
    await deliver(output, range(10))
    await output.aclose()
    assert [one for one in rig.receiver.messages if one] == event_batch(range(10)).ndjson.splitlines()


async def test_replayed_events_are_not_counted_as_sent_again(rig: Rig) -> None:
    """An operator asked for them."""
    output = rig.output()
    await output.send(event_batch(range(10)))
    await output.send(event_batch(range(10)).select(range(5)))
    assert rig.resent == 5


# ---- settings ----


def settings(**others: Any) -> Config:
    return Config(endpoints=["siem:6514"], **others)


def test_the_message_as_it_came_is_the_default() -> None:
    """A relay changes nothing."""
    assert settings().format.name == "raw"


@pytest.mark.parametrize(
    ("name", "header"),
    [("cef", "rfc3164"), ("leef", "rfc3164"), ("ecs", "rfc5424"), ("flat", "rfc5424"), ("rfc5424", "none")],
)
def test_a_format_without_a_syslog_header_gets_one(name: str, header: str) -> None:
    """A receiver of syslog reads nothing else; who asks for another one gets that."""
    assert settings(format=name).format.syslog_header == header
    assert settings(format={"name": name}).format.syslog_header == header
    if header != "none":
        assert settings(format={"name": name, "syslog_header": "none"}).format.syslog_header == "none"


@pytest.mark.parametrize("endpoint", ["siem", "siem:0", "siem:65536", "https://siem:6514", ":6514", "a b:1"])
def test_what_is_no_address_is_refused(endpoint: str) -> None:
    """With a good example."""
    with pytest.raises(ValidationError, match="write host:port such as siem-1:6514"):
        Config(endpoints=[endpoint])


def test_a_timeout_within_the_window_is_refused() -> None:
    """Every sync would end before its window."""
    with pytest.raises((ValidationError, SettingError), match=r"more than replay_window\.seconds"):
        settings(timeout="30s", replay_window={"seconds": "30s"})
