"""Retry(Breaker(Timeout(output))): never gives up, waits as told, buries only the guilty."""

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path

import orjson
import pytest

from ndagent.core.breaker import State
from ndagent.core.dead_letters import DeadLetters
from ndagent.core.delivery import Delivery, wrap
from ndagent.core.interfaces import LONGEST_RETRY_AFTER_SECONDS, Rejected, Unavailable
from ndagent.core.metrics import Metrics
from ndagent.core.settings import BreakerConfig, OutputConfig, RetryConfig
from tests.events import StillTime, SwiftTime, event_batch, settle
from tests.far_side import FarSide, failing

CALM = BreakerConfig(failures=1000)  # for tests of retries alone


class Setting:
    """A Delivery around a FarSide, with time and randomness in the test's hands."""

    def __init__(self, directory: Path, *, time: StillTime | None = None, **config: object) -> None:
        self.time = time or SwiftTime()
        self.far_side = FarSide()
        self.metrics = Metrics()
        self.config = OutputConfig(type="test", **config)
        self.dead_letters = DeadLetters(
            directory, output="siem", max_bytes=self.config.dead_letter_max_bytes, clock=lambda: 0.0
        )
        plumbing = {"clock": self.time.clock, "sleep": self.time.sleep, "random": lambda: 1.0}
        self.output = wrap(self.far_side, name="siem", config=self.config, metrics=self.metrics, **plumbing)
        self.delivery = Delivery(
            self.output, name="siem", config=self.config, dead_letters=self.dead_letters, **plumbing
        )

    def states(self) -> dict[str, float]:
        """Of each stream's breaker, as the metrics have it."""
        (family,) = self.metrics.breaker_state.collect()
        return {sample.labels["stream"]: sample.value for sample in family.samples}

    def buried(self) -> list[int]:
        if not self.dead_letters.path.exists():
            return []
        return [orjson.loads(line)["sequence"] for line in self.dead_letters.path.read_bytes().splitlines()]


async def test_a_send_is_tried_until_it_succeeds_with_doubling_waits(tmp_path: Path) -> None:
    """No last try for spooled data; the waits follow the configuration."""
    setting = Setting(tmp_path, breaker=CALM, retry=RetryConfig(initial=1, maximum=5))
    setting.far_side.judge = failing(6, lambda: Unavailable("down"))
    assert await setting.delivery.deliver(event_batch(range(3))) == []
    assert setting.far_side.taken == [0, 1, 2]
    assert setting.time.slept == [1, 2, 4, 5, 5, 5]


async def test_a_thousand_failures_later_it_still_tries(tmp_path: Path) -> None:
    """An outage of a weekend must not end in a silent drop."""
    setting = Setting(tmp_path)
    setting.far_side.judge = failing(1000, lambda: Unavailable("down"))
    await setting.delivery.deliver(event_batch(range(3)))
    assert setting.far_side.taken == [0, 1, 2]
    assert setting.metrics.registry.get_sample_value("nd_output_unavailable_total", {"output": "siem"}) == 1000


async def test_retry_after_is_the_lower_bound_of_the_wait(tmp_path: Path) -> None:
    """The far side's own wish comes first, jitter on top of it."""
    setting = Setting(tmp_path, breaker=CALM, retry=RetryConfig(initial=0.5))
    setting.far_side.judge = failing(1, lambda: Unavailable("slow down", retry_after_seconds=17))
    await setting.delivery.deliver(event_batch(range(1)))
    assert setting.time.slept == [17, 0.5]


async def test_an_absurd_retry_after_is_capped(tmp_path: Path) -> None:
    """A far side that says "in ten years" must not stop the output for good."""
    setting = Setting(tmp_path, breaker=CALM)
    setting.far_side.judge = failing(1, lambda: Unavailable("?", retry_after_seconds=3e8))
    await setting.delivery.deliver(event_batch(range(1)))
    assert setting.time.slept[0] == LONGEST_RETRY_AFTER_SECONDS


async def test_a_closing_breaker_ends_the_others_waits(tmp_path: Path) -> None:
    """After recovery nothing idles through a wait of a minute that was drawn while the far side was down."""
    time = StillTime()
    setting = Setting(tmp_path, time=time, breaker=BreakerConfig(failures=4, open_for=10))
    setting.far_side.judge = failing(4, lambda: Unavailable("down"))
    sends = [asyncio.ensure_future(setting.output.send(event_batch(range(n, n + 1)))) for n in range(4)]
    await settle()
    assert setting.far_side.sends == 4
    await time.advance(9.9)
    assert setting.far_side.sends == 4
    await time.advance(0.2)
    await asyncio.gather(*sends)
    assert sorted(setting.far_side.taken) == [0, 1, 2, 3]
    assert setting.far_side.sends == 8


async def test_what_waits_for_a_breaker_reaches_the_output_in_the_order_of_asking(tmp_path: Path) -> None:
    """An output that keeps order keeps that of its calls; whose wait ends first must not decide who goes first."""
    time = StillTime()
    config = {"breaker": BreakerConfig(failures=1, open_for=10), "retry": RetryConfig(initial=10), "in_flight": 4}
    setting = Setting(tmp_path, time=time, **config)
    probe: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    answers: list[object] = [None, probe]
    asked: list[int] = []

    def judge(sequences: list[int]) -> object:
        asked.append(sequences[0])
        if len(asked) == 1:
            raise Unavailable("down")
        return answers.pop() if answers else None

    setting.far_side.judge = judge
    sends = [asyncio.ensure_future(setting.output.send(event_batch(range(1))))]  # opens the breaker, and is its probe
    await time.advance(11)
    sends.append(asyncio.ensure_future(setting.output.send(event_batch(range(1, 2)))))
    await time.advance(5)
    probe.set_exception(Unavailable("still down"))
    await time.advance(1)
    sends.append(asyncio.ensure_future(setting.output.send(event_batch(range(2, 3)))))
    await time.advance(100)
    await asyncio.gather(*sends)
    assert list(dict.fromkeys(asked)) == [0, 1, 2]


async def test_waiting_can_be_cancelled_and_leaves_nothing_behind(tmp_path: Path) -> None:
    """Stopping the daemon while an output is down is the normal case."""
    time = StillTime()
    setting = Setting(tmp_path, time=time)
    setting.far_side.judge = failing(1000, lambda: Unavailable("down"))
    send = asyncio.ensure_future(setting.output.send(event_batch(range(1))))
    await settle()
    send.cancel()
    with pytest.raises(asyncio.CancelledError):
        await send
    assert time.sleepers == 0
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_a_send_that_never_ends_is_cut_off_and_sent_again(tmp_path: Path) -> None:
    """A far side that went silent amid a call is an outage like any other."""
    setting = Setting(tmp_path, timeout="5ms")
    silence = asyncio.get_running_loop().create_future()
    answers: list[object] = [silence, None]
    setting.far_side.judge = lambda _sequences: answers.pop(0)
    await setting.delivery.deliver(event_batch(range(1)))
    assert setting.far_side.taken == [0]
    assert silence.cancelled()


async def test_an_outputs_own_timeout_error_is_not_mistaken_for_ours(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """ETIMEDOUT from a socket is an OSError that the output should have translated: reported, and tried again."""
    setting = Setting(tmp_path)
    setting.far_side.judge = failing(1, lambda: TimeoutError(110, "Connection timed out"))
    await setting.delivery.deliver(event_batch(range(1)))
    assert setting.far_side.taken == [0]
    assert "unexpected TimeoutError" in caplog.text


async def test_an_outage_is_said_once_and_its_end_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Also one too short for the breaker; nothing per event."""
    caplog.set_level(logging.INFO)
    setting = Setting(tmp_path, breaker=CALM)
    setting.far_side.judge = failing(50, lambda: Unavailable("401 Unauthorized"))
    for n in range(20):
        await setting.delivery.deliver(event_batch(range(n, n + 1)))
    down, up = (record.getMessage() for record in caplog.records)
    assert "not delivering stream security_events: 401 Unauthorized" in down
    assert "delivering again stream security_events" in up


async def test_a_stream_that_the_far_side_does_not_know_holds_back_no_other_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Its breaker opens, its events wait, its state is shown; the others' sends go through as if nothing were."""
    caplog.set_level(logging.INFO)
    time = StillTime()
    setting = Setting(tmp_path, time=time, breaker=BreakerConfig(failures=2, open_for=10))
    there: set[int] = set()  # of the alerts, once their topic was made

    def judge(sequences: list[int]) -> None:
        if min(sequences) >= 100 and not there:
            raise Unavailable("topic alerts is not there")

    setting.far_side.judge = judge
    waiting = asyncio.ensure_future(setting.delivery.deliver(event_batch(range(100, 103), stream="alerts")))
    await time.advance(100)
    assert setting.states() == {"alerts": State.OPEN}
    for n in range(50):
        await setting.delivery.deliver(event_batch(range(n, n + 1)))
    assert setting.far_side.taken == list(range(50))
    assert setting.states() == {"alerts": State.OPEN, "security_events": State.CLOSED}
    assert not waiting.done()
    there.add(100)
    await time.advance(100)
    assert await waiting == []
    assert setting.states() == {"alerts": State.CLOSED, "security_events": State.CLOSED}
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 4
    assert all("stream alerts" in line for line in said)


async def test_a_closed_output_shows_no_breaker(tmp_path: Path) -> None:
    """The last state of an output that is no longer configured would alarm for ever; closing twice is fine."""
    setting = Setting(tmp_path)
    await setting.delivery.deliver(event_batch(range(1)))
    assert setting.states() == {"security_events": State.CLOSED}
    for _ in range(2):
        await setting.delivery.aclose()
    assert setting.states() == {}


def rejecting(guilty: set[int]) -> Callable[[list[int]], None]:
    """A far side that refuses a batch for these events and does not say for which."""

    def judge(sequences: list[int]) -> None:
        if guilty & set(sequences):
            raise Rejected("mapper_parsing_exception")

    return judge


async def test_one_guilty_event_among_many_costs_about_two_sends_per_halving(tmp_path: Path) -> None:
    """1024 events, one bad: found in 21 sends, buried alone, the others delivered once."""
    setting = Setting(tmp_path)
    setting.far_side.judge = rejecting({700})
    assert await setting.delivery.deliver(event_batch(range(1024))) == [700]
    assert setting.buried() == [700]
    assert setting.far_side.taken == [n for n in range(1024) if n != 700]
    assert setting.far_side.sends <= 21


@pytest.mark.parametrize("guilty", [{0}, {9}, {0, 9}, {3, 4, 5}, set(range(10))], ids=str)
async def test_bisection_finds_exactly_the_guilty(tmp_path: Path, guilty: set[int]) -> None:
    """First, last, several, all: delivered + buried = sent."""
    setting = Setting(tmp_path)
    setting.far_side.judge = rejecting(guilty)
    assert sorted(await setting.delivery.deliver(event_batch(range(10)))) == sorted(guilty)
    assert sorted(setting.buried()) == sorted(guilty)
    assert setting.far_side.taken == [n for n in range(10) if n not in guilty]


async def test_named_events_are_buried_at_once_and_the_rest_sent_again(tmp_path: Path) -> None:
    """Where the far side says which, nothing needs to be searched."""
    setting = Setting(tmp_path)

    def judge(sequences: list[int]) -> None:
        if indexes := [index for index, sequence in enumerate(sequences) if sequence in (2, 7)]:
            raise Rejected("too large", indexes)

    setting.far_side.judge = judge
    assert await setting.delivery.deliver(event_batch(range(10))) == [2, 7]
    assert setting.buried() == [2, 7]
    assert setting.far_side.taken == [0, 1, 3, 4, 5, 6, 8, 9]
    assert setting.far_side.sends == 2


async def test_letters_say_each_events_own_reason_and_what_the_far_side_answered(tmp_path: Path) -> None:
    """A bulk API refuses items one by one; a person needs the item's words, also after other events were taken out."""
    setting = Setting(tmp_path)

    def judge(sequences: list[int]) -> None:
        reasons = {index: f"no {sequence}" for index, sequence in enumerate(sequences) if sequence in (2, 7)}
        if reasons:
            raise Rejected("2 items refused", reasons=reasons, response="200\n" + "x" * 10_000)

    setting.far_side.judge = judge
    assert await setting.delivery.deliver(event_batch(range(10))) == [2, 7]
    letters = [orjson.loads(line) for line in setting.dead_letters.path.read_bytes().splitlines()]
    assert [(letter["sequence"], letter["reason"]) for letter in letters] == [(2, "no 2"), (7, "no 7")]
    assert {letter["response"] for letter in letters} == {"200\n" + "x" * 1996}
    assert setting.far_side.taken == [0, 1, 3, 4, 5, 6, 8, 9]


async def test_names_that_make_no_sense_are_searched_for_instead(tmp_path: Path) -> None:
    """Indexes outside the batch must neither crash nor bury the innocent."""
    setting = Setting(tmp_path)

    def judge(sequences: list[int]) -> None:
        if 5 in sequences:
            raise Rejected("?", [99, -1])

    setting.far_side.judge = judge
    assert await setting.delivery.deliver(event_batch(range(10))) == [5]
    assert setting.buried() == [5]


async def test_an_outage_amid_a_bisection_costs_nothing(tmp_path: Path) -> None:
    """Unavailable and Rejected in any mixture: each event ends in one place."""
    setting = Setting(tmp_path, breaker=CALM)
    reject, turn = rejecting({4, 11}), [0]

    def judge(sequences: list[int]) -> None:
        turn[0] += 1
        if turn[0] % 3 == 0:
            raise Unavailable("flapping")
        reject(sequences)

    setting.far_side.judge = judge
    assert sorted(await setting.delivery.deliver(event_batch(range(16)))) == [4, 11]
    assert sorted(setting.buried()) == [4, 11]
    assert sorted(setting.far_side.taken) == [n for n in range(16) if n not in (4, 11)]


async def test_a_full_dead_letter_file_blocks_until_a_person_purges_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Never dropped: the send waits, says why once, and goes on by itself."""
    time = StillTime()
    setting = Setting(tmp_path, time=time, dead_letter_max_bytes=1400)
    setting.far_side.judge = rejecting(set(range(100)))
    await setting.delivery.deliver(event_batch(range(4)))
    blocked = asyncio.ensure_future(setting.delivery.deliver(event_batch(range(4, 12))))
    while not time.sleepers:
        await asyncio.sleep(0.001)  # the file is written in a thread
    assert "output blocked" in caplog.text
    assert "purge" in caplog.text
    kept = setting.buried()
    assert 4 < len(kept) < 12
    setting.dead_letters.path.unlink()
    while not blocked.done():
        await time.advance(60.0)
        await asyncio.sleep(0.001)
    assert sorted(await blocked) == list(range(4, 12))
    assert sorted({*kept, *setting.buried()}) == list(range(12))


async def test_sync_is_tried_once(tmp_path: Path) -> None:
    """A second fsync after a failed one may succeed without the data: the caller must send again instead."""
    setting = Setting(tmp_path)
    setting.far_side.judge_sync = failing(1, lambda: Unavailable("fdatasync: Input/output error"))
    with pytest.raises(Unavailable):
        await setting.delivery.sync()
