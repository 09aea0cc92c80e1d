"""Which endpoints do so much worse than the others that they are better left out for a while.

Promises: an endpoint is compared with the median of its peers, never with a fixed number, so that a slow hour of all is
nobody's fault; at most half of them are out at a time, the worst first. Pure: time and figures come in.
Refuses: judging fewer requests than configured, and a lone endpoint.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median
from typing import TypeVar

from ndcollector.traffic.config import OutlierConfig

_LATENCY_FLOOR_SECONDS = 0.05
"""Four times a millisecond is nothing to leave an endpoint for."""

Key = TypeVar("Key")


@dataclass(slots=True)
class Tally:
    """What an endpoint did since the last comparison."""

    requests: int = 0
    failed: int = 0
    seconds: float = 0.0

    @property
    def failure_rate(self) -> float:
        """The share that failed."""
        return self.failed / self.requests if self.requests else 0.0

    @property
    def mean_seconds(self) -> float:
        """How long an answered one took."""
        answered = self.requests - self.failed
        return self.seconds / answered if answered else 0.0


def outliers(tallies: Mapping[Key, Tally], config: OutlierConfig, *, out_already: int) -> dict[Key, str]:
    """Who is to be left out, with the reason in words. `tallies` are of those that are in."""
    judged = {key: tally for key, tally in tallies.items() if tally.requests >= config.requests}
    found: list[tuple[float, Key, str]] = []
    for key, tally in judged.items():
        peers = [other for one, other in judged.items() if one != key]
        if not peers:
            continue
        verdict = _verdict(tally, peers, config)
        if verdict is not None:
            found.append((*verdict[:1], key, verdict[1]))
    room = (len(tallies) + out_already) // 2 - out_already
    found.sort(key=lambda one: -one[0])
    return {key: reason for _, key, reason in found[: max(room, 0)]}


def _verdict(tally: Tally, peers: list[Tally], config: OutlierConfig) -> tuple[float, str] | None:
    """How bad it is, and why; None: as good as the others."""
    usual = median(peer.failure_rate for peer in peers)
    if tally.failure_rate >= usual + config.failure_rate:
        return 1 + tally.failure_rate, f"{tally.failure_rate:.0%} of its requests failed, of its peers' {usual:.0%}"
    took = tally.mean_seconds
    usual = median(peer.mean_seconds for peer in peers)
    if took > max(config.latency_factor * usual, _LATENCY_FLOOR_SECONDS):
        return 1 - usual / took, f"its requests take {took:.3g}s, its peers' {usual:.3g}s"
    return None
