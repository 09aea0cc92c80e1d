"""@timestamp as other formats write it."""

from datetime import UTC, datetime
from functools import lru_cache

MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_SECONDS_CACHED = 4096


def utc_of(timestamp: str) -> datetime | None:
    """The moment in UTC; None for what is no RFC 3339 time."""
    if len(timestamp) > 19 and timestamp[-1] == "Z" and timestamp[19] in ".Z":
        whole = _second(timestamp[:19])
        digits = timestamp[20:26].rstrip("Z")
        if whole is None or not digits.isdigit():
            return whole if not digits else None
        return whole.replace(microsecond=int(digits.ljust(6, "0")))
    try:
        found = datetime.fromisoformat(timestamp)
        return found.astimezone(UTC) if found.tzinfo is not None else None
    except (ValueError, OverflowError):
        return None


def epoch_ms(timestamp: str) -> int | None:
    """Milliseconds since 1970, or None."""
    moment = utc_of(timestamp)
    if moment is None:
        return None
    since = moment - _EPOCH
    return since.days * 86_400_000 + since.seconds * 1000 + since.microseconds // 1000


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@lru_cache(_SECONDS_CACHED)
def _second(text: str) -> datetime | None:
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        return None
    return found.replace(tzinfo=UTC) if found.tzinfo is None else None
