"""Time zones, years and the text of instants: where devices say too little, the receive time decides."""

import json
import random
import shutil
import zoneinfo
from datetime import UTC, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from decode_twins import Decode, messages_body

from ndagent.wire.ecs import DecodeSettings
from ndagent.wire.times import POSIX_ZONES, load_zone, received_text

ZONES = [
    "Europe/Berlin",
    "America/New_York",
    "Australia/Lord_Howe",  # half an hour of summer time
    "Africa/Casablanca",  # a month of it
    "Asia/Kathmandu",
    "America/Nuuk",
]


def stamp(decode: Decode, message: str, *, received: datetime, zone: str = "UTC") -> str:
    """@timestamp of one message received then by a collector with that zone."""
    received_at_ns = int(received.timestamp()) * 10**9
    batch = decode(DecodeSettings("c", timezone=zone), messages_body([message.encode()]), received_at_ns=received_at_ns)
    return str(json.loads(batch.ndjson)["@timestamp"])


@pytest.mark.parametrize("name", ZONES)
def test_a_zone_table_says_what_zoneinfo_says(name: str) -> None:
    """Both twins use our table; zoneinfo is the truth for every instant from 1970 to 2100."""
    table, truth = load_zone(name), ZoneInfo(name)
    some = random.Random(3164)  # any number does
    instants = [some.randrange(0, 4_102_000_000) for _ in range(2000)]
    instants += [change + step for change in table.starts[1:] for step in (-1, 0, 1)]
    for utc in instants:
        offset = datetime.fromtimestamp(utc, truth).utcoffset()
        assert offset == timedelta(seconds=table.offset_at(utc)), utc


@pytest.mark.parametrize("name", ZONES)
def test_a_device_on_local_time_is_read_right_all_year(decode: Decode, name: str) -> None:
    """Every three hours of a year, received two seconds later: also on both sides of each change and of the year."""
    zone, moment = ZoneInfo(name), datetime(2024, 1, 1, 0, 30, 15, tzinfo=UTC)
    while moment < datetime(2025, 1, 3, tzinfo=UTC):
        local = moment.astimezone(zone)
        message = f"<13>{local:%b} {local.day:2d} {local:%H:%M:%S} h t: m"
        got = stamp(decode, message, received=moment + timedelta(seconds=2), zone=name)
        assert got == f"{moment:%Y-%m-%dT%H:%M:%SZ}", message
        moment += timedelta(hours=3)


@pytest.mark.parametrize("days", [-300, -30, -1, 0, 1, 2.9])
@pytest.mark.parametrize("received", ["2023-12-31T23:59:59", "2024-01-01T00:00:00", "2024-02-29T12:00:00"])
def test_the_year_is_the_one_nearest_to_the_reception(decode: Decode, days: float, received: str) -> None:
    """Late by months (a buffer was drained) or early by less than three days (a wrong clock): the year is right."""
    at = datetime.fromisoformat(received).replace(tzinfo=UTC)
    moment = at + timedelta(days=days)
    message = f"<13>{moment:%b} {moment.day:2d} {moment:%H:%M:%S} h t: m"
    assert stamp(decode, message, received=at) == f"{moment:%Y-%m-%dT%H:%M:%SZ}"


def test_the_receive_time_has_microseconds_and_rounds_down() -> None:
    """event.created never lies in the future of the reception."""
    assert received_text(1_710_504_000_123_456_999) == b"2024-03-15T12:00:00.123456Z"
    assert received_text(0) == b"1970-01-01T00:00:00.000000Z"


def test_offsets_reach_from_the_first_day_to_the_last(decode: Decode) -> None:
    """The compiled twin has its own calendar arithmetic: ends of months over ten millennia against datetime's."""
    received = datetime(2024, 3, 15, tzinfo=UTC)
    for year in (1, 4, 100, 400, 1600, 1900, 1969, 1970, 2000, 2023, 2024, 2100, 9998):
        for month in range(1, 13):
            moment = datetime(year, month, 1, 0, 30, tzinfo=UTC)
            got = stamp(decode, f"<13>1 {moment.isoformat()[:19]}-01:45 h a 1 m - x", received=received)
            assert got == (moment + timedelta(minutes=105)).isoformat()[:19] + "Z"
            if year > 1:
                got = stamp(decode, f"<13>1 {moment.isoformat()[:19]}+01:45 h a 1 m - x", received=received)
                assert got == (moment - timedelta(minutes=105)).isoformat()[:19] + "Z"


@pytest.mark.parametrize("name", POSIX_ZONES)
def test_names_that_are_rules_need_no_package_of_legacy_zones(name: str, tmp_path: Path) -> None:
    """Debian 13 has EST5EDT and its kind in tzdata-legacy: a database that has the place alone gives the same table."""
    place = POSIX_ZONES[name]
    source = next(path for path in (Path(root, place) for root in zoneinfo.TZPATH) if path.exists())
    (tmp_path / place).parent.mkdir(parents=True)
    shutil.copy(source, tmp_path / place)
    wanted = load_zone(place)
    before = zoneinfo.TZPATH
    try:
        zoneinfo.reset_tzpath([tmp_path])
        ZoneInfo.clear_cache()
        found = load_zone.__wrapped__(name)
    finally:
        zoneinfo.reset_tzpath(before)
        ZoneInfo.clear_cache()
    assert (found.starts, found.offsets, found.abbreviations) == (wanted.starts, wanted.offsets, wanted.abbreviations)
