"""The agent's one output: which way a batch goes, what a failure of a way costs, what it keeps to."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import orjson
import pytest
from https_site import AGENT, Site

from ndagent.core.dead_letters import DeadLetters
from ndagent.core.delivery import Delivery, wrap
from ndagent.core.interfaces import Rejected, Unavailable
from ndagent.core.metrics import Metrics
from ndagent.https_client import Place
from ndagent.outputs import Target
from ndagent.outputs.collector import Collector, DeliveryConfig
from ndagent.wire.envelope import Header, Limits, pack, unpack
from tests.agent import tls_server
from tests.agent.collector_output import real, seal, transport
from tests.agent.tls_server import head, serving
from tests.events import StillTime, event_batch, sequences_in, settle

A, B, C = (Target("mqtt", Place(name, 1)) for name in "abc")


class Way:
    """A transport that does what its script says: one entry a send, the last one for ever."""

    sign = None

    def __init__(self, target: Target) -> None:
        self.target = target
        self.script: list[Exception | str] = ["ok"]
        self.probe_script: list[Exception | str] = ["ok"]
        self.taken: list[Header] = []
        self.packed: list[bytes] = []
        self.reports: list[bytes] = []
        self.probes = 0
        self.closed = 0

    async def _play(self, script: list[Exception | str]) -> None:
        step = script.pop(0) if len(script) > 1 else script[0]
        if isinstance(step, Exception):
            raise step
        if step == "silence":
            await asyncio.Event().wait()

    async def send(self, packed: bytes, header: Header) -> None:
        self.packed.append(packed)
        await self._play(self.script)
        self.taken.append(header)

    async def report(self, document: bytes) -> None:
        await self._play(self.script)
        self.reports.append(document)

    async def probe(self) -> None:
        self.probes += 1
        await self._play(self.probe_script)

    async def aclose(self) -> None:
        self.closed += 1


class Stage:
    """A collector output on still time, its ways by target."""

    def __init__(self, *targets: Target, **config: object) -> None:
        self.time = StillTime()
        self.targets: Sequence[Target] | Exception = targets
        self.looked = 0
        self.ways: dict[Target, Way] = {}
        self.opened: list[Way] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.out = Collector(
            DeliveryConfig(**config),  # type: ignore[arg-type]
            targets=self._targets,
            open_way=self._open,
            seal=seal,
            clock=self.time.clock,
            sleep=self.time.sleep,
            random=lambda: 0.5,
        )

    async def _targets(self) -> list[Target]:
        self.looked += 1
        await self.gate.wait()
        if isinstance(self.targets, Exception):
            raise self.targets
        return list(self.targets)

    def _open(self, target: Target) -> Way:
        way = self.ways.setdefault(target, Way(target)) if target not in self.ways else Way(target)
        self.ways[target] = way
        self.opened.append(way)
        return way

    async def send(self, first: int = 0, count: int = 3) -> None:
        await self.out.send(event_batch(range(first, first + count)))

    def script(self, target: Target, *steps: Exception | str) -> None:
        self.ways[target].script = list(steps)


def away(reason: str, retry_after: float | None = None) -> Unavailable:
    return Unavailable(reason, retry_after)


@asynccontextmanager
async def staged(*targets: Target, **config: object) -> AsyncIterator[Stage]:
    stage = Stage(*targets, **config)
    await stage.out._discover()
    try:
        yield stage
    finally:
        await stage.out.aclose()
        await stage.out.aclose()


# ---- which way


async def test_the_first_target_gets_everything_while_it_takes_it() -> None:
    """The others are not even asked."""
    async with staged(A, B) as stage:
        for first in range(0, 30, 3):
            await stage.send(first)
        assert [header.first for header in stage.ways[A].taken] == list(range(0, 30, 3))
        assert stage.ways[B].packed == []
        assert stage.out.endpoint == "mqtt://a:1"


async def test_the_next_one_takes_over_with_the_same_bytes_and_the_first_gets_it_back() -> None:
    """Same key, so that a collector which has it already stores it once; after a probe traffic returns."""
    async with staged(A, B) as stage:
        stage.script(A, away("a is away"))
        stage.ways[A].probe_script = [away("still away"), "ok"]
        await stage.send()
        assert stage.ways[A].packed == stage.ways[B].packed
        assert unpack(stage.ways[B].packed[0], Limits(1 << 20, 1000)).header.key == "s-0-2-3"
        assert stage.out.endpoint == "mqtt://b:1"
        stage.script(A, "ok")
        await stage.send(3)
        assert len(stage.ways[A].packed) == 1
        await stage.time.advance(30)
        assert stage.ways[A].probes == 2
        await stage.send(6)
        assert [header.first for header in stage.ways[A].taken] == [6]
        assert stage.out.endpoint == "mqtt://a:1"


async def test_probes_come_with_full_jitter_and_doubling() -> None:
    """0.5 · (0.5, 1, 2, 4 …), rounded up to the look every second, at most 30 s on average."""
    async with staged(A, B) as stage:
        stage.script(A, away("a"))
        stage.ways[A].probe_script = [away("a")]
        await stage.send()
        await stage.time.advance(64)
        first_minute = stage.ways[A].probes
        assert 5 <= first_minute <= 8
        await stage.time.advance(600)
        assert stage.ways[A].probes - first_minute <= 21


async def test_when_all_are_away_every_reason_is_told_and_each_is_tried() -> None:
    """Whether its probe is due or not: nothing else can be done."""
    async with staged(A, B, C) as stage:
        for target in (A, B, C):
            stage.script(target, away(f"{target} is away"))
        for tries in (1, 2):
            with pytest.raises(
                Unavailable, match=r"mqtt://a:1 is away; mqtt://b:1 is away; mqtt://c:1 is away"
            ) as told:
                await stage.send()
            assert told.value.retry_after_seconds is None
            assert [len(stage.ways[target].packed) for target in (A, B, C)] == [tries] * 3
        assert stage.out.endpoint == ""


async def test_a_way_that_does_not_answer_in_time_is_left_for_the_next() -> None:
    """A collector that hangs must not hold up what another one would take."""
    async with staged(A, B, timeout=0.05) as stage:
        stage.script(A, "silence")
        await stage.send()
        assert len(stage.ways[B].taken) == 1
        await stage.send(3)
        assert len(stage.ways[A].packed) == 1


async def test_retry_after_is_kept_and_the_soonest_counts() -> None:
    """No send and no probe before it; only where one asked for no time is it tried before."""
    async with staged(A, B) as stage:
        stage.script(A, away("busy", 30.0), "ok")
        await stage.send()
        await stage.time.advance(29)
        assert stage.ways[A].probes == 0
        await stage.time.advance(3)
        assert stage.ways[A].probes == 1
    async with staged(A, B) as stage:
        stage.script(A, away("busy", 30.0))
        stage.script(B, away("busy too", 20.0))
        with pytest.raises(Unavailable) as told:
            await stage.send()
        assert told.value.retry_after_seconds == pytest.approx(20.0)
        stage.time.now += 10
        with pytest.raises(Unavailable, match="asked for more time") as told:
            await stage.send()
        assert told.value.retry_after_seconds == pytest.approx(10.0)
        assert len(stage.ways[A].packed) == len(stage.ways[B].packed) == 1
        stage.time.now += 11
        stage.script(B, away("gone"))
        with pytest.raises(Unavailable, match="gone") as told:
            await stage.send()
        assert told.value.retry_after_seconds is None
        assert len(stage.ways[A].packed) == 1


async def test_sends_that_fail_together_are_one_failure() -> None:
    """Or a window of sends would put the next probe off by minutes."""
    async with staged(A, B) as stage:
        stage.script(A, away("a"))
        await asyncio.gather(*(stage.send(first) for first in range(0, 48, 3)))
        assert len(stage.ways[B].taken) == 16
        await stage.time.advance(2)
        assert stage.ways[A].probes == 1


async def test_a_way_that_answers_probes_and_refuses_batches_is_tried_less_and_less() -> None:
    """403 to every batch, say: what was refused counts until something is taken."""
    async with staged(A, B) as stage:
        stage.script(A, away("refused"))
        for first in range(0, 600, 3):
            await stage.send(first)
            await stage.time.advance(1)
        assert len(stage.ways[B].taken) == 200
        assert len(stage.ways[A].packed) < 20


async def test_a_probe_that_crashes_does_not_end_probing(caplog: pytest.LogCaptureFixture) -> None:
    """It is told, and asked again."""
    async with staged(A, B) as stage:
        stage.script(A, away("a"), "ok")
        stage.ways[A].probe_script = [RuntimeError("a bug"), "ok"]
        await stage.send()
        await stage.time.advance(10)
        await stage.send()
        assert len(stage.ways[A].taken) == 1
        assert "please report this traceback" in caplog.text


async def test_rejected_goes_to_the_caller_and_the_way_stays_up() -> None:
    """Another collector would say the same; dead letters are the machine's."""
    async with staged(A, B) as stage:
        stage.script(A, Rejected("never"), "ok")
        with pytest.raises(Rejected):
            await stage.send()
        await stage.send()
        assert stage.ways[B].packed == []


async def test_a_report_that_nobody_can_read_takes_no_way_down() -> None:
    """It is Unavailable to whoever reports, and says nothing about events."""
    async with staged(A, B) as stage:
        stage.script(A, Rejected("what is this"), "ok")
        with pytest.raises(Unavailable, match="what is this"):
            await stage.out.report(b"{}")
        await stage.out.report(b"{}")
        assert stage.ways[A].reports == [b"{}"]
        assert stage.ways[B].reports == []


# ---- who is there


async def test_nobody_known_is_unavailable_and_looked_for_at_each_try() -> None:
    """At boot DNS may come after the agent; nobody wants to wait a minute then."""
    stage = Stage()
    for tries in (1, 2):
        with pytest.raises(Unavailable, match="no collector is known"):
            await stage.send()
        assert stage.looked == tries
    stage.targets = [A]
    await stage.send()
    assert len(stage.ways[A].taken) == 1
    await stage.out.aclose()


async def test_targets_are_looked_for_again_beside_the_sends() -> None:
    """A resolver that hangs holds nobody up; who is gone is closed, who stayed keeps its connection."""
    async with staged(A, B, rediscover_every="60s") as stage:
        await stage.send()
        stage.targets = [C, A]
        stage.gate.clear()
        await stage.time.advance(61)
        await stage.send()
        assert len(stage.ways[A].taken) == 2
        stage.gate.set()
        await settle()
        await stage.send()
        assert len(stage.ways[C].taken) == 1
        assert (stage.ways[A].closed, stage.ways[B].closed) == (0, 1)


@pytest.mark.parametrize("nothing", [[], Unavailable("this agent is not enrolled")])
async def test_finding_nobody_again_keeps_those_that_are_known(nothing: Sequence[Target] | Exception) -> None:
    """DNS that answers with nothing is no reason to stop."""
    async with staged(A) as stage:
        stage.targets = nothing
        await stage.time.advance(61)
        await stage.send()
        await settle()
        await stage.send()
        assert len(stage.ways[A].taken) == 2
        assert stage.ways[A].closed == 0


async def test_renewal_during_a_send_repeats_it_over_a_new_connection_under_the_same_key() -> None:
    """The old connection is closed under it; the batch goes out by the new one within the same call."""
    async with staged(A) as stage:
        old = stage.ways[A]
        cut = asyncio.Event()

        async def waits(packed: bytes, header: Header) -> None:
            old.packed.append(packed)
            await cut.wait()
            raise away("closed")

        async def closes() -> None:
            old.closed += 1
            cut.set()

        old.send, old.aclose = waits, closes  # type: ignore[method-assign]
        sending = asyncio.create_task(stage.send())
        await settle()
        await stage.out.renew()
        await sending
        new = stage.ways[A]
        assert new is not old
        assert new.packed == old.packed


async def test_renewal_during_discovery_leaves_no_connection_of_before() -> None:
    """Whichever comes first: after it, only new transports are used."""
    async with staged(A) as stage:
        await stage.time.advance(61)
        stage.gate.clear()
        await stage.send()
        await settle()
        renewing = asyncio.create_task(stage.out.renew())
        await settle()
        stage.gate.set()
        await renewing
        await stage.send(3)
        assert [way.closed for way in stage.opened[:-1]] == [1] * (len(stage.opened) - 1)
        assert [header.first for header in stage.opened[-1].taken] == [3]


async def test_a_send_that_is_cancelled_says_nothing_about_its_way() -> None:
    """A stop is no failure; the same batch may be sent again."""
    async with staged(A, B) as stage:
        stage.script(A, "silence", "ok")
        sending = asyncio.create_task(stage.send())
        await settle()
        sending.cancel()
        with suppress(asyncio.CancelledError):
            await sending
        await stage.send()
        assert len(stage.ways[A].taken) == 1


async def test_after_closing_nothing_is_opened() -> None:
    """Closed before the first send, twice, and while targets are looked for."""
    stage = Stage(A)
    await stage.out.aclose()
    await stage.out.aclose()
    with pytest.raises(Unavailable):
        await stage.send()
    assert stage.opened == []


# ---- caps


@pytest.mark.parametrize(("config", "seconds"), [({"events_per_second": 10}, 19.0), ({}, 0.0)])
async def test_the_rate_of_events_is_exact(config: dict[str, int], seconds: float) -> None:
    """200 events at 10 a second: ten at once, the last 19 s later; a batch larger than a second's worth as well."""
    async with staged(A, **config) as stage:
        sending = asyncio.gather(*(stage.send(first, 50) for first in range(0, 200, 50)))
        await stage.time.advance(max(0.0, seconds - 0.1))
        assert sending.done() == (seconds == 0.0)
        await stage.time.advance(0.2)
        await sending


async def test_the_bandwidth_counts_what_goes_over_the_network() -> None:
    """Compressed envelopes, not events."""
    async with staged(A, bytes_per_second=1024) as stage:
        began = stage.time.now
        sending = asyncio.gather(*(stage.send(first, 200) for first in range(0, 2000, 200)))
        while not sending.done():
            await stage.time.advance(0.01)
        spent = sum(map(len, stage.ways[A].packed))
        assert stage.time.now - began == pytest.approx(spent / 1024 - 1, abs=0.05)


# ---- the contract, over the real https input


async def test_https_against_the_real_input(tmp_path: Path) -> None:
    """Events go through the machine's own chain, arrive once under their own ids, and add up."""
    site = Site(tmp_path)
    await site.start()
    try:
        target = Target("https", Place("localhost", site.port, "127.0.0.1"))
        out = real(site.context(), target)
        config = DeliveryConfig()
        letters = DeadLetters(tmp_path / "letters", output="c", max_bytes=1 << 20, clock=lambda: 0.0)
        time = StillTime()
        plumbing = {"clock": time.clock, "sleep": time.sleep, "random": lambda: 0.5}
        chain = wrap(out, name="c", config=config, metrics=Metrics(), **plumbing)  # type: ignore[arg-type]
        delivery = Delivery(chain, name="c", config=config, dead_letters=letters, **plumbing)  # type: ignore[arg-type]
        buried = await asyncio.gather(*(delivery.deliver(event_batch(range(at, at + 10))) for at in range(0, 200, 10)))
        assert not any(buried)
        found = sequences_in(b"\n".join(site.disk.lines))
        assert sorted(found) == list(range(200))
        await delivery.deliver(event_batch(range(10)))  # again, as after a lost answer: stored once
        assert len(site.disk.lines) == 200
        await out.report(status_report())
        assert [agent for agent, _ in site.fleet.reports] == [AGENT]
        with pytest.raises(Unavailable, match=r"refused: .*\(bad_request\)"):
            await out.report(b"{}")
        await delivery.deliver(event_batch(range(200, 210)))
        site.fleet.refused[AGENT] = "agent is revoked"
        with pytest.raises(Unavailable, match=r"answers 403: agent is revoked.*\(not_admitted\)"):
            await out.send(event_batch(range(3)))
        await delivery.aclose()
    finally:
        await site.stop()


async def test_what_is_too_large_for_the_input_goes_in_smaller_pieces(tmp_path: Path) -> None:
    """413 in the collector's words is Rejected, which the machine bisects: nothing is buried, each event arrives."""
    site = Site(tmp_path, max_batch_events=4)
    await site.start()
    try:
        out = real(site.context(), Target("https", Place("localhost", site.port, "127.0.0.1")))
        with pytest.raises(Rejected, match=r"refused: .*\(too_large\)"):
            await out.send(event_batch(range(5)))
        letters = DeadLetters(tmp_path / "letters", output="c", max_bytes=1 << 20, clock=lambda: 0.0)
        config, time = DeliveryConfig(), StillTime()
        delivery = Delivery(
            out, name="c", config=config, dead_letters=letters, clock=time.clock, sleep=time.sleep, random=lambda: 0.5
        )
        assert await delivery.deliver(event_batch(range(50))) == []
        assert sorted(sequences_in(b"\n".join(site.disk.lines))) == list(range(50))
        await delivery.aclose()
    finally:
        await site.stop()


async def test_however_large_the_window_an_agent_does_not_run_into_the_inputs_limit(tmp_path: Path) -> None:
    """Three streams with windows of their own: what waits, waits here, not in a 429."""
    site = Site(tmp_path)
    await site.start()
    try:
        site.disk.room.clear()
        way = transport(site.context(), Target("https", Place("localhost", site.port, "127.0.0.1")))
        batches = [event_batch(range(at, at + 3)) for at in range(0, 90, 3)]
        sending = [asyncio.create_task(way.send(pack(seal(one), one.ndjson), seal(one))) for one in batches]
        async with asyncio.timeout(20):
            while site.disk.asked < 6:
                await asyncio.sleep(0.005)
        site.disk.room.set()
        await asyncio.gather(*sending)
        assert site.answered("batches", 429) == 0
        assert len(site.disk.lines) == 90
        await way.aclose()
    finally:
        await site.stop()


def status_report() -> bytes:
    from ndagent.wire.status import AgentStatus, SpoolStatus

    spool = SpoolStatus(stream="security_events", spool_id="0123456789abcdef", pending_events=0, bytes=0, max_bytes=1)
    return AgentStatus(
        run_id="ab" * 8, sent_at_ns=1, version="1", os="linux", hostname="h", spools=(spool,), inputs=(), shed=(),
        policy=None, trust_bundle="", certificate_not_after=0, endpoint="",
    ).to_json()  # fmt: skip


# ---- every status of an HTTPS answer

COLLECTORS = orjson.dumps({"reason": "why", "error": "what", "remedy": "help", "message": "what: help"})
ENROLLERS = orjson.dumps({"reason": "used_token", "message": "it was used"})
TABLE: list[tuple[int, bytes, type[Exception] | None, str]] = [
    (200, b"{}", None, ""),
    (202, b"", None, ""),
    (204, b"", None, ""),
    (302, b"", Unavailable, "says no more"),
    (400, COLLECTORS, Rejected, r"refused: what: help \(why\)"),
    (400, orjson.dumps({"reason": "malformed_request", "message": "m"}), Unavailable, "malformed_request"),
    (400, b"<html>Bad Request</html>", Unavailable, "is there a proxy in between"),
    (400, b'{"message": "Forbidden"}', Unavailable, "is there a proxy in between"),
    (401, COLLECTORS, Unavailable, "401: what: help"),
    (403, ENROLLERS, Unavailable, r"403: it was used \(used_token\)"),
    (404, b"not found", Unavailable, "404"),
    (408, b"", Unavailable, "408"),
    (413, COLLECTORS, Rejected, "what: help"),
    (413, b"<html>nginx</html>", Unavailable, "is there a proxy in between"),
    (415, COLLECTORS, Rejected, "what: help"),
    (422, COLLECTORS, Rejected, "what: help"),
    (429, COLLECTORS, Unavailable, "429"),
    (500, b"\xff\x00", Unavailable, "500"),
    (503, COLLECTORS, Unavailable, "503: what: help"),
]


@pytest.mark.parametrize(("status", "body", "error", "words"), TABLE, ids=range(len(TABLE)))
async def test_what_each_answer_means(
    tmp_path: Path, status: int, body: bytes, error: type[Exception] | None, words: str
) -> None:
    """Rejected only for what a collector itself says it will never take; Retry-After goes along."""
    pki = tls_server.Site(tmp_path)

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await head(reader)
            fields = b"Retry-After: 7\r\nContent-Length: %d\r\n" % len(body) if status not in (204, 304) else b""
            writer.write(b"HTTP/1.1 %d X\r\n%s\r\n%s" % (status, fields, body))

    async with serving(talk, pki.server) as seen:
        way = transport(pki.client, Target("https", Place("localhost", seen.port, "127.0.0.1")))
        events = event_batch(range(3))
        if error is None:
            await way.send(b"x", seal(events))
        else:
            with pytest.raises(error, match=words) as told:
                await way.send(b"x", seal(events))
            if isinstance(told.value, Unavailable):
                assert told.value.retry_after_seconds == 7
        await way.aclose()


async def test_a_probe_asks_as_an_agent_and_brings_the_policy(tmp_path: Path) -> None:
    """A revoked agent is not told that its collector is back; the same policy is not handed on twice."""
    site = Site(tmp_path)
    await site.start()
    try:
        offered: list[bytes] = []
        way = transport(site.context(), Target("https", Place("localhost", site.port, "127.0.0.1")), offered)
        await way.probe()
        site.fleet.policies[AGENT] = b"signed"
        await way.probe()
        await way.report(status_report())
        assert offered == [b"signed"]
        site.fleet.policies[AGENT] = b"newer"
        await way.report(status_report())
        assert offered == [b"signed", b"newer"]
        site.fleet.refused[AGENT] = "agent is revoked"
        with pytest.raises(Unavailable, match="agent is revoked"):
            await way.probe()
        await way.aclose()
        await way.aclose()
    finally:
        await site.stop()
