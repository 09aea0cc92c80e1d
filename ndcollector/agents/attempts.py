"""How often an address may be wrong: a bounded table, so that guessing and broken automation stay cheap to refuse.

Promises: whoever was wrong `per_minute` times within a minute is refused until that minute is over, without a look at
what it brings; of more than `MAX_ADDRESSES` the longest silent are forgotten. IPv6 counts by /64, which one host has.
"""

import ipaddress
from collections import OrderedDict
from collections.abc import Callable

MAX_ADDRESSES = 4096
WINDOW_SECONDS = 60.0


class Attempts:
    """`clock` is monotonic seconds."""

    def __init__(self, per_minute: int, *, clock: Callable[[], float]) -> None:
        self.per_minute = per_minute
        self._clock = clock
        self._wrong: OrderedDict[str, tuple[float, int]] = OrderedDict()  # since when, how often; the oldest first

    def wait_seconds(self, address: str) -> float:
        """How long this address must wait; 0 where it may try."""
        since, count = self._wrong.get(_host(address), (0.0, 0))
        return max(0.0, since + WINDOW_SECONDS - self._clock()) if count >= self.per_minute else 0.0

    def wrong(self, address: str) -> None:
        """It was wrong once more."""
        host, now = _host(address), self._clock()
        since, count = self._wrong.pop(host, (now, 0))
        self._wrong[host] = (since, count + 1) if now - since < WINDOW_SECONDS else (now, 1)
        if len(self._wrong) > MAX_ADDRESSES:
            self._wrong.popitem(last=False)


def _host(address: str) -> str:
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if found.version == 4:
        return str(found)
    return str(found.ipv4_mapped or ipaddress.ip_network((found, 64), strict=False))
