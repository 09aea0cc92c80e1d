"""Replays of dead letters inside the machine: what leaves, what stays, and what live traffic notices of it."""

import asyncio
from array import array
from dataclasses import replace
from pathlib import Path

import orjson
import pytest
from aiohttp import web
from letter_desk import WAIT_SECONDS, Setting, refusing, running, until
from letter_site import SPOOL_ID, body_letter, letter, sequences, write_letters

from ndagent.core.interfaces import Routed, Unavailable
from ndagent.core.settings import RetryConfig
from ndagent.wire.record import EventBatch
from ndcollector.dead_letters.desk import Busy
from ndcollector.dead_letters.letters import Wanted
from ndcollector.dead_letters.progress import Progress, progress_path
from ndcollector.outputs import OutputContext
from ndcollector.traffic.config import HttpOutputConfig
from ndcollector.traffic.pool import Pool
from ndcollector.traffic.request import Request, judge
from tests.events import event_batch


async def test_what_the_far_side_takes_leaves_and_what_it_refuses_stays_with_the_new_reason(tmp_path: Path) -> None:
    """Only the wanted are sent; each letter ends in one place."""
    path = write_letters(tmp_path, b"".join(letter(n, reason="a" if n < 60 else "b") for n in range(100)))
    async with running(Setting(tmp_path)) as setting:
        setting.far["archive"].judge = refusing(lambda n: n % 10 == 0)
        ended = await setting.replay(reason="a")
        assert (ended["replayed"], ended["refused"], ended["ended"]) == (54, 6, "done")
        assert setting.far["archive"].taken == [n for n in range(60) if n % 10]
        assert setting.far["archive"].replayed == setting.far["archive"].taken
        assert setting.value("nd_dead_letters_replayed_events_total") == 54
        assert setting.value("nd_dead_letters_events") == setting.figures()["events"] == 46
    assert sorted(sequences(path)) == [*range(0, 60, 10), *range(60, 100)]
    again = [orjson.loads(line) for line in path.read_bytes().splitlines()][-6:]
    assert {(one["reason"], one["response"], one["origin"]) for one in again} == {
        ("still wrong", "400", "nd:device:fw-1")
    }
    assert b'"kind":"dead_letters_replay"' in (tmp_path / "audit.ndjson").read_bytes()


async def test_a_replay_goes_to_another_output_and_what_that_refuses_stays_where_it_was(tmp_path: Path) -> None:
    """The letters of an output that is gone, too: nobody is left to send them but another one."""
    path = write_letters(tmp_path, b"".join(map(letter, range(10))), output="gone")
    async with running(Setting(tmp_path)) as setting:
        setting.far["other"].judge = refusing(lambda n: n == 3)
        with pytest.raises(LookupError, match="no output 'gone' is configured"):
            await setting.replay("gone")
        ended = await setting.replay("gone", to="other")
        assert (ended["replayed"], ended["refused"]) == (9, 1)
        assert setting.far["other"].taken == [n for n in range(10) if n != 3]
        with pytest.raises(LookupError, match="no dead letters of 'nobody'"):
            await setting.replay("nobody", to="other")
    assert sequences(path) == [3]


async def test_a_record_goes_if_it_can_be_decoded_now(tmp_path: Path) -> None:
    """A decoder that was mended reads what the old one could not; what is damaged stays, as a record."""
    path = write_letters(tmp_path, body_letter(5, [b"<13>a", b"<13>b"]) + body_letter(9, [b"<13>c"], is_damaged=True))
    async with running(Setting(tmp_path)) as setting:
        assert setting.figures()["events"] == 3
        ended = await setting.replay()
        assert (ended["replayed"], ended["refused"]) == (2, 1)
        assert setting.far["archive"].taken == [5, 6]
    (left,) = [orjson.loads(line) for line in path.read_bytes().splitlines()]
    assert (left["sequence"], left["count"], left["received_at_ns"]) == (9, 1, 1_700_000_000 * 10**9)
    assert left["reason"].startswith("corrupt_body")


async def test_what_never_passed_a_route_passes_it_before_it_is_sent(tmp_path: Path) -> None:
    """A redaction that failed made the letter: sent as it is, it would leak what was to be hidden."""
    path = write_letters(tmp_path, letter(1, unrouted=True) + letter(2) + body_letter(3, [b"<13>a"]))
    async with running(Setting(tmp_path)) as setting:
        delivery, passed = setting.deliveries["archive"], []

        async def route(events: EventBatch) -> Routed:
            passed.append(list(events.sequences))
            is_bad = 1 in events.sequences
            return Routed(events.select([]), failed=[(events, "redact: no match")]) if is_bad else Routed(events)

        delivery.route = route
        ended = await setting.replay()
        assert (passed, setting.far["archive"].taken) == ([[1], [3]], [2, 3])
        assert (ended["replayed"], ended["refused"]) == (2, 1)
    (left,) = [orjson.loads(line) for line in path.read_bytes().splitlines()]
    assert (left["sequence"], left["unrouted"], left["reason"]) == (1, True, "redact: no match")


async def test_another_output_changes_and_filters_what_it_gets_and_the_rest_stays_as_it_was(tmp_path: Path) -> None:
    """Its redaction holds for letters too; a filter there is no reason to lose them here."""
    path = write_letters(tmp_path, b"".join(map(letter, range(6))))
    originals = path.read_bytes().splitlines()
    async with running(Setting(tmp_path)) as setting:

        async def route(events: EventBatch) -> Routed:
            chosen = events.select([index for index, sequence in enumerate(events.sequences) if sequence % 2])
            hidden = chosen.ndjson.replace(b"number", b"******")
            return Routed(replace(chosen, ndjson=hidden), filtered=array("I", [0] * 3))

        setting.deliveries["other"].route = route
        setting.far["other"].judge = refusing(lambda n: n == 5)
        ended = await setting.replay(to="other")
        assert (ended["replayed"], ended["refused"]) == (2, 4)
        assert setting.far["other"].taken == [1, 3]
    left = {one["sequence"]: one for one in map(orjson.loads, path.read_bytes().splitlines())}
    assert {n: one["event"] for n, one in left.items()} == {
        n: orjson.loads(originals[n])["event"] for n in (0, 2, 4, 5)
    }
    assert "configured not to get it" in left[0]["reason"]
    assert "unrouted" not in left[5]


async def test_another_output_gets_letters_of_its_streams_only(tmp_path: Path) -> None:
    """What it does not want stays a letter: a `where` says that, and `streams` no less."""
    path = write_letters(tmp_path, letter(1) + letter(2, stream="alerts") + letter(3))
    async with running(Setting(tmp_path, streams=["alerts"])) as setting:
        ended = await setting.replay(to="other")
        assert (ended["replayed"], ended["refused"]) == (1, 2)
        assert setting.far["other"].taken == [2]
    assert sequences(path) == [1, 3]


async def test_live_traffic_takes_turns_with_a_replay(tmp_path: Path) -> None:
    """With one place for sends: a live batch waits for the batch at hand, not for a hundred."""
    write_letters(tmp_path, b"".join(letter(n, response="x" * 900) for n in range(1500)))
    async with running(Setting(tmp_path, in_flight=1, batch_bytes=20_000)) as setting:
        far, order = setting.far["archive"], []

        def slowly(found: list[int]) -> "asyncio.Future[None]":
            order.append(found[0])
            answer = asyncio.get_running_loop().create_future()
            asyncio.get_running_loop().call_later(0.005, answer.set_result, None)
            return answer

        far.judge = slowly
        await setting.desk.replay("archive", wanted=Wanted(), to=None, uid=0)
        await until(lambda: far.sends >= 3)
        for first in range(10_000, 10_010):
            before = len(order)
            await setting.deliveries["archive"].deliver(event_batch(range(first, first + 1)))
            assert len(order) - before <= 3, "the one under way, one that asked before, and this one"
        assert setting.figures()["replay"] is not None, "the replay was under way all the time"
        await setting.ended()
        assert sorted(far.taken) == [*range(1500), *range(10_000, 10_010)]


async def test_an_outage_stops_a_replay_for_as_long_as_it_lasts(tmp_path: Path) -> None:
    """Unavailable is no refusal: nothing becomes a letter anew, nothing leaves."""
    path = write_letters(tmp_path, b"".join(map(letter, range(10))))
    async with running(Setting(tmp_path)) as setting:
        left = [5]

        def judge_them(_found: list[int]) -> None:
            if left[0]:
                left[0] -= 1
                assert len(sequences(path)) == 10
                raise Unavailable("down")

        setting.far["archive"].judge = judge_them
        assert (await setting.replay())["replayed"] == 10
    assert not path.exists()


async def test_what_a_failed_sync_left_in_doubt_is_sent_again_by_everybody(tmp_path: Path) -> None:
    """The replay sends its chunk anew, without a second letter for what was refused; the output's lane hears of it."""
    path = write_letters(tmp_path, b"".join(map(letter, range(10))))
    async with running(Setting(tmp_path)) as setting:
        far, failures = setting.far["archive"], [2]

        def judge_sync() -> None:
            if failures[0]:
                failures[0] -= 1
                raise Unavailable("fdatasync: Input/output error")

        far.judge, far.judge_sync = refusing(lambda n: n == 4), judge_sync
        assert (await setting.replay())["replayed"] == 9
        assert far.taken == 3 * [n for n in range(10) if n != 4]
        assert far.durable == 27
        assert setting.deliveries["archive"].failed_syncs == 2
    assert sequences(path) == [4]


async def test_a_full_disk_halts_a_replay_and_sends_nothing_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What was sent is sent: the replay waits with its progress until that can be written."""
    write_letters(tmp_path, b"".join(map(letter, range(10))))
    async with running(Setting(tmp_path)) as setting:
        failures, save = [3], Progress.save

        def failing_save(progress: Progress, path: Path) -> None:
            if progress.at and failures[0]:
                failures[0] -= 1
                raise OSError(28, "No space left on device")
            save(progress, path)

        monkeypatch.setattr(Progress, "save", failing_save)
        assert (await setting.replay())["replayed"] == 10
        assert failures == [0]
        assert setting.far["archive"].taken == list(range(10))
    assert "No space left" in caplog.text


async def test_a_letter_waits_for_its_outputs_own_cursor(tmp_path: Path) -> None:
    """A file finds its place by sequences: a letter ahead of the cursor would make it skip what lies between."""
    write_letters(tmp_path, b"".join(map(letter, range(10))))
    async with running(Setting(tmp_path)) as setting:
        cursor, asked = [5], []

        def coming(output: str, stream: str, spool_id: str, sequence: int) -> bool:
            asked.append((output, stream, spool_id))
            return sequence >= cursor[0]

        setting.coming = coming
        await setting.desk.replay("archive", wanted=Wanted(), to=None, uid=0)
        await until(lambda: len(asked) > 1)
        assert setting.far["archive"].sends == 0
        cursor[0] = 10
        await setting.ended()
        assert set(asked) == {("archive", "security_events", SPOOL_ID)}
        assert len(setting.far["archive"].taken) == 10


async def test_a_replay_goes_on_where_a_restart_or_reload_cut_it(tmp_path: Path) -> None:
    """At most the chunk at hand is sent twice."""
    count = 5000
    path = write_letters(tmp_path, b"".join(map(letter, range(count))))
    setting = Setting(tmp_path, batch_bytes=50_000)
    far = setting.far["archive"]
    for _ in range(4):
        async with running(setting):
            taken = len(far.taken)
            if setting.figures()["replay"] is None and not progress_path(path).exists():
                await setting.desk.replay("archive", wanted=Wanted(), to=None, uid=0)
            await until(lambda: len(far.taken) > taken + 500)  # noqa: B023 - awaited at once
        setting.desk = setting.make_desk()
    async with running(setting):
        with pytest.raises(Busy, match="under way"):
            await setting.desk.purge("archive", wanted=Wanted(), end=1, inode=1, uid=0)
        assert (await setting.ended())["replayed"] == count
    assert set(far.taken) == set(range(count))
    assert len(far.taken) - count <= 4 * 300, "a chunk of 50 kB holds less than 300 letters"
    assert not path.exists()
    assert not progress_path(path).exists()


async def test_a_replay_that_is_stopped_keeps_the_rest(tmp_path: Path) -> None:
    """What was sent leaves at once; the others stay as they were."""
    path = write_letters(tmp_path, b"".join(map(letter, range(2000))))
    async with running(Setting(tmp_path, batch_bytes=20_000)) as setting:
        far = setting.far["archive"]
        never = asyncio.get_running_loop().create_future()
        far.judge = lambda found: never if found[0] > 500 else None
        await setting.desk.replay("archive", wanted=Wanted(), to=None, uid=0)
        await until(lambda: far.sends > len(far.batches) and len(far.taken) > 500)  # in the chunk after the last one
        ended = await setting.desk.stop("archive", uid=0)
        assert ended["ended"] == "stopped"
        assert ended["replayed"] == len(far.taken)
        with pytest.raises(LookupError, match="no replay"):
            await setting.desk.stop("archive", uid=0)
        assert sequences(path) == list(range(len(far.taken), 2000))
        assert setting.figures()["events"] == 2000 - len(far.taken)


async def test_a_purge_wakes_an_output_that_a_full_file_blocked(tmp_path: Path) -> None:
    """No restart, and no wait for the next try of a minute."""
    setting = Setting(tmp_path, dead_letter_max_bytes=2048, retry=RetryConfig(initial=600.0, maximum=600.0))
    async with running(setting):
        delivery = setting.deliveries["archive"]
        setting.far["archive"].judge = refusing(lambda _n: True)
        await delivery.deliver(event_batch(range(12)))
        blocked = asyncio.ensure_future(delivery.deliver(event_batch(range(12, 14))))
        await until(lambda: delivery._throttle.allow("blocked") is None)
        await asyncio.sleep(0.05)
        assert not blocked.done()
        assert setting.value("nd_dead_letters_fill_ratio") > 0.8
        status = delivery.dead_letters.path.stat()
        seen = {"end": status.st_size, "inode": status.st_ino, "uid": 1000}
        with pytest.raises(Busy, match="changed meanwhile"):
            await setting.desk.purge("archive", wanted=Wanted(), **{**seen, "inode": seen["inode"] + 1})
        assert (await setting.desk.purge("archive", wanted=Wanted(), **seen))["purged"] == 12
        assert await asyncio.wait_for(blocked, WAIT_SECONDS) == [12, 13]
        assert sequences(delivery.dead_letters.path) == [12, 13]
        assert setting.value("nd_dead_letters_purged_events_total") == 12
        assert setting.value("nd_dead_letters_events") == 2
    assert b'"kind":"dead_letters_purged"' in (tmp_path / "audit.ndjson").read_bytes()
    assert b'"uid":1000' in (tmp_path / "audit.ndjson").read_bytes()


async def test_a_full_file_can_be_replayed(tmp_path: Path) -> None:
    """What is refused again takes the place it had: the limit must not keep it out."""
    data = b"".join(map(letter, range(20)))
    path = write_letters(tmp_path, data)
    async with running(Setting(tmp_path, dead_letter_max_bytes=len(data))) as setting:
        setting.far["archive"].judge = refusing(lambda n: n % 2 == 0)
        assert (await setting.replay())["replayed"] == 10
    assert sequences(path) == list(range(0, 20, 2))


async def test_a_replay_frees_the_output_whose_cursor_it_waits_for_from_a_full_file(tmp_path: Path) -> None:
    """The output waits for room, its letters for its cursor, which cannot pass before the next letter is written."""
    setting = Setting(tmp_path, dead_letter_max_bytes=2048)
    async with running(setting):
        delivery, far = setting.deliveries["archive"], setting.far["archive"]
        far.judge = refusing(lambda _n: True)
        await delivery.deliver(event_batch(range(12)))
        blocked = asyncio.ensure_future(delivery.deliver(event_batch(range(12, 14))))
        await until(lambda: delivery._throttle.allow("blocked") is None)
        setting.coming = lambda *_place: not blocked.done()
        far.judge = refusing(lambda _n: False)
        ended = await setting.replay()
        assert (ended["replayed"], ended["ended"]) == (12, "done")
        assert await blocked == [12, 13]
        assert sequences(delivery.dead_letters.path) == [12, 13]
        again = asyncio.ensure_future(delivery.dead_letters.append(event_batch(range(14, 30)), reason="no"))
        with pytest.raises(Unavailable, match="is full"):
            await again


async def test_four_fifths_of_the_limit_are_warned_of_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Before the output is blocked, and not with each letter."""
    async with running(Setting(tmp_path, dead_letter_max_bytes=4096)) as setting:
        setting.far["archive"].judge = refusing(lambda _n: True)
        number = 0
        while setting.deliveries["archive"].dead_letters.fill < 0.87:
            await setting.deliveries["archive"].deliver(event_batch(range(number, number + 1)))
            number += 1
    (warning,) = [one.getMessage() for one in caplog.records if "dead letters fill" in one.getMessage()]
    assert "ndcollector dlq show archive" in warning


class _Posting:
    """The smallest output that speaks HTTP."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def send(self, events: EventBatch) -> None:
        judge(await self._pool(Request("POST", "/", events.ndjson)))

    async def sync(self) -> None:
        pass

    async def aclose(self) -> None:
        await self._pool.aclose()


async def test_401_403_and_404_wait_for_a_person_and_400_becomes_a_letter_with_the_answer(tmp_path: Path) -> None:
    """A wrong password or a missing index must never turn a night's events into dead letters."""
    answers, seen = [401, 403, 404, 401, 400], []

    async def answer(_request: web.Request) -> web.Response:
        seen.append(answers.pop(0) if answers else 200)
        return web.Response(status=seen[-1], text="no such field \x1b[2J")

    app = web.Application()
    app.add_routes([web.post("/", answer)])
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    setting = Setting(tmp_path)
    config = HttpOutputConfig(type="https", url=f"http://127.0.0.1:{port}", retry=RetryConfig(initial=0.001))
    pool = Pool("archive", config, OutputContext(tmp_path, setting.metrics, lambda: 0.0))
    setting.far["archive"] = _Posting(pool)  # type: ignore[assignment]  # an Output as well
    delivery = setting.make_delivery("archive", config)
    try:
        assert await delivery.deliver(event_batch(range(1))) == [0]
        assert seen == [401, 403, 404, 401, 400]
        assert await delivery.deliver(event_batch(range(1, 2))) == []
    finally:
        await delivery.aclose()
        await runner.cleanup()
    (kept,) = [orjson.loads(line) for line in delivery.dead_letters.path.read_bytes().splitlines()]
    assert kept["response"] == "400\nno such field \x1b[2J"
