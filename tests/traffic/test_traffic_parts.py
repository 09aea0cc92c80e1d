"""The parts that need no network: balance, concurrency, outliers, an endpoint's states, what an answer means."""

import logging
from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ndagent.core.interfaces import Rejected, Unavailable
from ndagent.core.metrics import Metrics
from ndcollector.traffic.balance import Balance
from ndcollector.traffic.concurrency import Concurrency
from ndcollector.traffic.config import ConcurrencyConfig, HttpOutputConfig, OutlierConfig
from ndcollector.traffic.discovery import Target
from ndcollector.traffic.endpoint import Condition, Endpoint
from ndcollector.traffic.outliers import Tally, outliers
from ndcollector.traffic.refused_events import refused
from ndcollector.traffic.request import Answer, judge, retry_after
from ndcollector.traffic.size_limit import LEAST_BYTES, TRY_AGAIN_SECONDS, SizeLimit
from ndcollector.traffic.taken import Taken
from tests.events import event_batch


@dataclass(eq=False)
class One:
    """What Balance asks of an endpoint."""

    name: str
    outstanding: int = 0
    weight: float = 1.0
    priority: int = 0
    turn: int = 0
    credit: float = 0.0


def shares(kind: str, ones: list[One], draws: int) -> Counter[str]:
    """How often each is chosen; nothing is under way but what they say."""
    numbers = iter([(index * 0.618033988749895) % 1 for index in range(2 * draws + 2)])
    balance = Balance(kind, random=lambda: next(numbers))
    return Counter(balance.choose(ones).name for _ in range(draws))


def test_round_robin_is_even_and_by_weight() -> None:
    """And a heavy one does not come in a row: 3:1 is never four times the same."""
    assert shares("round_robin", [One("a"), One("b"), One("c")], 300) == {"a": 100, "b": 100, "c": 100}
    heavy = [One("a", weight=3), One("b")]
    balance = Balance("round_robin", random=lambda: 0.0)
    assert "".join(balance.choose(heavy).name for _ in range(8)) == "aabaaaba"


def test_least_outstanding_takes_the_idle_and_shares_among_equals() -> None:
    """Two requests at one with double weight are as one request at another."""
    assert shares("least_outstanding", [One("a", outstanding=3), One("b", outstanding=1)], 5) == {"b": 5}
    assert shares("least_outstanding", [One("a"), One("b"), One("c")], 30) == {"a": 10, "b": 10, "c": 10}
    assert shares("least_outstanding", [One("a", outstanding=2, weight=4), One("b", outstanding=0)], 5) == {"a": 5}


def test_power_of_two_never_takes_the_busiest_of_three() -> None:
    """Whichever two are drawn, one of them is less busy; the others share."""
    found = shares("power_of_two", [One("a", outstanding=9), One("b"), One("c")], 300)
    assert found["a"] == 0
    assert min(found["b"], found["c"]) > 75


def test_ordered_takes_the_first_and_priority_comes_before_all() -> None:
    """A lower SRV priority is used only when the better one is not among the candidates."""
    assert shares("ordered", [One("a", outstanding=9), One("b")], 3) == {"a": 3}
    for kind in ("round_robin", "least_outstanding", "power_of_two", "ordered"):
        assert shares(kind, [One("spare", priority=20), One("main", priority=10, outstanding=5)], 3) == {"main": 3}


def run_rounds(
    places: Concurrency, rounds: int, *, seconds: float | None, pushed_back: bool = False, now: float = 0.0
) -> float:
    """So many rounds with all places taken, each request taking as long; returns the time after them."""
    for _ in range(rounds):
        now += 10.0
        while places.has_room:
            places.begin()
        for _ in range(places.outstanding):
            places.done(seconds, pushed_back=pushed_back, now=now)
    return now


def test_concurrency_grows_by_one_a_round_up_to_the_maximum() -> None:
    """Only while all places are taken: what is not used is no proof."""
    places = Concurrency(ConcurrencyConfig(maximum=8))
    assert places.limit == 4
    run_rounds(places, 20, seconds=0.1)
    assert places.limit == 8
    idle = Concurrency(ConcurrencyConfig(maximum=8))
    for now in range(20):
        idle.begin()
        idle.done(0.1, pushed_back=False, now=now)
    assert idle.limit == 4


def test_concurrency_is_halved_by_push_back_and_shrinks_when_answers_slow_down() -> None:
    """Down to the minimum; and it comes back."""
    places = Concurrency(ConcurrencyConfig(minimum=2, maximum=64))
    now = run_rounds(places, 40, seconds=0.1)
    before = places.limit
    now = run_rounds(places, 1, seconds=None, pushed_back=True, now=now)
    assert before / 3 < places.limit <= before / 2 + 1
    at = places.limit
    now = run_rounds(places, 1, seconds=1.0, now=now)
    assert places.limit < at
    now = run_rounds(places, 50, seconds=None, pushed_back=True, now=now)
    assert places.limit == 2
    run_rounds(places, 10, seconds=0.1, now=now)
    assert places.limit > 5


@given(st.lists(st.tuples(st.floats(0, 100) | st.none(), st.booleans(), st.floats(0, 5)), max_size=200))
def test_concurrency_never_leaves_its_bounds(history: list[tuple[float | None, bool, float]]) -> None:
    """Whatever the endpoint does; and the places always add up."""
    places = Concurrency(ConcurrencyConfig(minimum=2, maximum=9))
    now = 0.0
    for seconds, pushed_back, pause in history:
        now += pause
        if places.has_room:
            places.begin()
        if places.outstanding > 1:
            places.done(seconds, pushed_back=pushed_back, now=now)
        assert 2 <= places.limit <= 9
        assert 0 <= places.outstanding <= 9


def test_without_adaption_it_is_the_maximum() -> None:
    """For whoever knows better."""
    places = Concurrency(ConcurrencyConfig(maximum=5, adaptive=False))
    run_rounds(places, 5, seconds=9.0, pushed_back=True)
    assert places.limit == 5


def tallies(**rates: tuple[float, float]) -> dict[str, Tally]:
    """Of a hundred requests each: (share that failed, mean seconds)."""
    return {
        name: Tally(requests=100, failed=round(100 * rate), seconds=seconds * (100 - round(100 * rate)))
        for name, (rate, seconds) in rates.items()
    }


def test_an_endpoint_that_fails_more_or_takes_longer_than_its_peers_is_an_outlier() -> None:
    """The reason has the figures; a slow hour of all is nobody's fault."""
    config = OutlierConfig()
    found = outliers(tallies(a=(0.0, 0.1), b=(0.5, 0.1), c=(0.02, 0.1)), config, out_already=0)
    assert list(found) == ["b"]
    assert "50% of its requests failed, of its peers' 1%" in found["b"]
    found = outliers(tallies(a=(0.0, 0.1), b=(0.0, 0.1), c=(0.0, 0.9)), config, out_already=0)
    assert found == {"c": "its requests take 0.9s, its peers' 0.1s"}
    assert outliers(tallies(a=(0.9, 5.0), b=(0.9, 5.0), c=(0.9, 5.0)), config, out_already=0) == {}
    assert outliers(tallies(a=(0.0, 0.001), b=(0.0, 0.02)), config, out_already=0) == {}


def test_at_most_half_are_out_the_worst_first() -> None:
    """Never the only one; those who are out already count; few requests prove nothing."""
    config = OutlierConfig()
    bad = tallies(a=(0.0, 0.1), b=(0.0, 0.1), c=(0.0, 0.1), d=(0.6, 0.1), e=(0.9, 0.1))
    assert list(outliers(bad, config, out_already=0)) == ["e", "d"]
    assert list(outliers(bad, config, out_already=1)) == ["e", "d"]
    assert list(outliers({key: bad[key] for key in "ade"}, config, out_already=1)) == ["e"]
    assert outliers(tallies(a=(1.0, 9.0)), config, out_already=0) == {}
    assert outliers({"a": Tally(4, 4, 0.0), **tallies(b=(0.0, 0.1))}, config, out_already=0) == {}


def endpoint(metrics: Metrics | None = None, **settings: object) -> Endpoint:
    config = HttpOutputConfig(type="test", url="https://a.example", **settings)
    return Endpoint(Target("https://a.example"), config, name="siem", metrics=metrics or Metrics())


def fail(one: Endpoint, now: float) -> None:
    one.failed(one.begin(now), now, reason="https://a.example is away", timed_out=False)


def shown_state(metrics: Metrics) -> Condition:
    labels = {"output": "siem", "endpoint": "https://a.example"}
    return Condition(int(metrics.registry.get_sample_value("nd_output_endpoint_state", labels)))


def test_an_endpoints_way_down_and_up(caplog: pytest.LogCaptureFixture) -> None:
    """Closed, open, one try, closed; a line of log for down and one for up, however often it is tried between."""
    caplog.set_level(logging.INFO)
    metrics = Metrics()
    one = endpoint(metrics)
    for now in (0.0, 1.0, 2.0):
        assert one.may_be_tried(now)
        fail(one, now)
    assert shown_state(metrics) is Condition.BREAKER_OPEN
    assert not one.may_be_tried(6.9)
    for now in (7.0, 12.0, 17.0):
        assert one.may_be_tried(now)
        fail(one, now)
    permit = one.begin(22.0)
    assert shown_state(metrics) is Condition.BEING_TRIED
    assert not one.may_be_tried(22.0)
    assert one.is_being_tried(22.0)
    one.answered(permit, 0.1, 22.0)
    assert shown_state(metrics) is Condition.WELL
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]
    assert "left alone after 3 failures, last: https://a.example is away" in caplog.text


def test_retry_after_holds_one_endpoint_back_and_is_bounded() -> None:
    """A thousand years are an hour."""
    one = endpoint()
    one.pushed_back(one.begin(0.0), 0.0, reason="busy", retry_after_seconds=30.0, busy=True)
    assert not one.may_be_tried(29.9)
    assert one.wait_seconds(10.0) == 20.0
    assert "busy; it asked to be left alone for 20s more" in one.why_not(10.0)
    assert one.may_be_tried(30.0)
    one.pushed_back(one.begin(30.0), 30.0, reason="busy", retry_after_seconds=3e10, busy=True)
    assert one.wait_seconds(30.0) == 3600.0


def test_429_says_that_it_is_well() -> None:
    """Being asked to slow down a hundred times opens no breaker; being told 503 does."""
    one = endpoint()
    for now in range(100):
        one.pushed_back(one.begin(now), now, reason="slow down", retry_after_seconds=0.0, busy=True)
    assert one.may_be_tried(100.0)
    for now in (100.0, 101.0, 102.0):
        one.pushed_back(one.begin(now), now, reason="503", retry_after_seconds=0.0, busy=False)
    assert not one.may_be_tried(102.0)


def test_health_checks_take_it_out_and_bring_it_back(caplog: pytest.LogCaptureFixture) -> None:
    """After two bad answers in a row, until the first good one; it can still be used when there is no other."""
    caplog.set_level(logging.INFO)
    one = endpoint(health={"path": "/health"})
    for is_well in (False, True, False):
        one.checked(is_well, 0.0)
    assert one.may_be_tried(0.0)
    one.checked(False, 0.0)
    one.checked(False, 0.0)
    assert not one.may_be_tried(0.0)
    assert one.may_be_tried(0.0, whatever_checks_say=True)
    one.checked(True, 0.0)
    assert one.may_be_tried(0.0)
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]


def test_ejection_lasts_longer_each_time_in_a_row(caplog: pytest.LogCaptureFixture) -> None:
    """30 s, then a minute; and a good while makes it forgotten."""
    caplog.set_level(logging.INFO)
    metrics = Metrics()
    one = endpoint(metrics)
    one.compared("slow", 0.0)
    assert shown_state(metrics) is Condition.EJECTED
    assert (one.may_be_tried(29.0), one.may_be_tried(30.0)) == (False, True)
    one.compared("slow", 30.0)
    assert (one.may_be_tried(89.0), one.may_be_tried(90.0)) == (False, True)
    for now in (90.0, 100.0, 110.0, 120.0):
        one.compared(None, now)
    one.compared("slow", 130.0)
    assert (one.may_be_tried(159.0), one.may_be_tried(160.0)) == (False, True)
    assert caplog.text.count("gets its share again") == 1
    labels = {"output": "siem", "endpoint": "https://a.example"}
    assert metrics.registry.get_sample_value("nd_output_endpoint_ejections_total", labels) == 3


def test_an_endpoint_that_is_gone_leaves_no_figures() -> None:
    """Addresses come and go for years: the number of series is bounded by those that are there."""
    metrics = Metrics()
    one = endpoint(metrics)
    fail(one, 0.0)
    one.retire()
    left = [sample for family in metrics.registry.collect() for sample in family.samples if "endpoint" in sample.labels]
    assert left == []


def said(status: int, **headers: str) -> Answer:
    return Answer(status, {name.replace("_", "-"): text for name, text in headers.items()}, b"text", "https://a")


def test_what_statuses_mean() -> None:
    """Success, a person must act, later, never."""
    for status in (200, 201, 202, 204):
        judge(said(status))
    not_about_events = (401, 402, 403, 404, 405, 406, 407, 410, 411, 414, 415, 417, 421, 426, 428, 431, 451)
    for status in (100, 301, 307, 408, 423, 425, 429, 500, 503, 599, *not_about_events):
        with pytest.raises(Unavailable, match=f"https://a answered {status}"):
            judge(said(status))
    for status in (400, 409, 412, 413, 422, 424):
        with pytest.raises(Rejected) as caught:
            judge(said(status))
        assert caught.value.response == f"{status}\ntext"


def test_a_redirect_names_where_it_points() -> None:
    """And what to do with that; however long it is."""
    with pytest.raises(Unavailable, match="points to 'https://b/', which is not followed; write that URL into"):
        judge(said(302, location="https://b/?key=ours"))
    with pytest.raises(Unavailable) as caught:
        judge(said(302, location="x" * 8000))
    assert len(caught.value.reason) < 600


NOW = datetime(2026, 11, 25, 12, 0, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "date", "seconds"),
    [
        ("120", "", 120.0),
        ("0", "", 0.0),
        (" 7 ", "", 7.0),
        ("9" * 400, "", 999999999.0),
        ("Wed, 25 Nov 2026 12:01:40 GMT", "", 100.0),
        ("Wed, 25 Nov 2026 12:01:40 GMT", "Wed, 25 Nov 2026 12:01:30 GMT", 10.0),  # its own clock is what counts
        ("Wed, 25 Nov 2026 11:00:00 GMT", "", 0.0),
        ("Fri, 31 Dec 9999 23:59:59 GMT", "", 251606692799.0),
        ("soon", "", None),
        ("-5", "", None),
        ("1.5", "", None),
        ("²", "", None),
        ("Wed, 99 Nov 2026 12:01:40 GMT", "", None),
        ("", "", None),
    ],
)
def test_retry_after(text: str, date: str, seconds: float | None) -> None:
    """Seconds or a date (RFC 9110 §10.2.3); what is neither says nothing."""
    assert retry_after(said(429, retry_after=text, date=date), now=NOW) == seconds


@given(st.text(max_size=60), st.text(max_size=60))
def test_whatever_retry_after_says_is_a_wait_or_nothing(text: str, date: str) -> None:
    """Never negative, never an exception."""
    found = retry_after(said(429, retry_after=text, date=date), now=NOW)
    assert found is None or 0 <= found <= 1e12


@given(st.binary(max_size=200) | st.recursive(
    st.none() | st.booleans() | st.integers(-3, 12) | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["a", "b"]), inner, max_size=2),
).map(orjson.dumps))  # fmt: skip
def test_whatever_an_answer_says_names_positions_or_is_a_value_error(body: bytes) -> None:
    """And only positions that there are."""
    try:
        found = refused(body, "a[].b", count=10)
    except ValueError:
        return
    assert all(0 <= one < 10 for one in found)
    assert found == sorted(set(found))


def test_a_size_is_learned_from_413_and_forgotten_after_an_hour() -> None:
    """Halved each time, never below the floor, never above what is configured."""
    limit = SizeLimit(1 << 20)
    assert limit.most_bytes(0.0) == 1 << 20
    assert limit.refused(1 << 20, 0.0) == 1 << 19
    assert limit.refused(1 << 19, 1.0) == 1 << 18
    assert limit.most_bytes(TRY_AGAIN_SECONDS) == 1 << 18
    assert limit.most_bytes(TRY_AGAIN_SECONDS + 1.0) == 1 << 20
    assert SizeLimit(1 << 20).refused(100, 0.0) == LEAST_BYTES
    assert SizeLimit(2048).refused(100, 0.0) == 2048


def test_only_what_was_noted_is_left_out() -> None:
    """Of the same stream and spool; a replay is sent whole; what is forgotten is sent again."""
    taken = Taken()
    batch = event_batch(range(10))
    assert taken.rest(batch) is batch
    taken.note(batch.select([2, 3, 7]))
    assert list(taken.rest(batch).sequences) == [0, 1, 4, 5, 6, 8, 9]
    other = event_batch(range(10), stream="alerts")
    assert taken.rest(other) is other
    taken.forget(batch)
    assert taken.rest(batch) is batch


def test_what_was_taken_is_remembered_within_bounds() -> None:
    """The oldest goes first: it is sent twice then, and nothing is lost."""
    taken = Taken(most_events=5)
    taken.note(event_batch(range(4)))
    taken.note(event_batch(range(10, 14)))
    assert list(taken.rest(event_batch([0, 1, 2, 3, 10, 11, 12, 13])).sequences) == [0, 1, 2]
