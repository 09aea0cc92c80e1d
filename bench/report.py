"""The table at the end of a benchmark, and every target with what was reached."""

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

Runs = Mapping[str, Sequence[Mapping[str, float]]]
_MIB = 2**20


def print_report(found: Mapping[str, Any]) -> int:
    """Print all parts there are; 1 if one of ours lost an event."""
    lost = 0
    for part, title in (("bulk", "one bulk connection"), ("single", "500 connections, one event per TLS record")):
        if part in found:
            _print_table(title, found[part])
            lost += sum(int(run["missing"]) for run in found[part].get("ndcollector", ()))
    targets = [*_bulk_targets(found.get("bulk", {})), *_single_targets(found.get("single", {}))]
    for part, check in (("idle", _idle_targets), ("overload", _overload_targets)):
        if part in found:
            targets += check(found[part])
            lost += int(found[part]["missing"])
    for reached, text in targets:
        print(f"  {'reached   ' if reached else 'FALL SHORT'}  {text}")
    if lost:
        print(f"\nLOST {lost} events")
    return int(lost > 0)


def _middle(runs: Sequence[Mapping[str, float]], key: str) -> float:
    return median(run[key] for run in runs)


def _print_table(title: str, runs: Runs) -> None:
    rival = runs.get("rsyslog", ())
    print(f"{title} (medians of {max(map(len, runs.values()))}; lowest to highest in brackets)")
    print(f"  {'':12} {'events/s':>26} {'CPU µs/event':>22} {'×rate':>6} {'×CPU':>6} {'peak MiB':>9} {'B/line':>7} "
          f"{'lost':>5} {'unordered':>9} {'client µs':>9}")  # fmt: skip
    for name, results in runs.items():
        rate, cpu = _middle(results, "events_per_second"), _middle(results, "cpu_us_per_event")
        ratios = ("", "")
        if rival:
            ratios = (
                f"{rate / _middle(rival, 'events_per_second'):.2f}",
                f"{cpu / _middle(rival, 'cpu_us_per_event'):.2f}",
            )
        print(
            f"  {name:12} {_spread(results, 'events_per_second', '{:,.0f}', 1e-3):>25}k "
            f"{_spread(results, 'cpu_us_per_event', '{:.2f}'):>22} {ratios[0]:>6} {ratios[1]:>6} "
            f"{_middle(results, 'peak_rss_bytes') / _MIB:>9.0f} {_middle(results, 'bytes_per_line'):>7.0f} "
            f"{sum(int(r['missing']) for r in results):>5} {sum(int(r['out_of_order']) for r in results):>9} "
            f"{_middle(results, 'client_cpu_us_per_event'):>9.2f}"
        )
    print()


def _spread(runs: Sequence[Mapping[str, float]], key: str, form: str, scale: float = 1.0) -> str:
    values = sorted(run[key] * scale for run in runs)
    return f"{form.format(median(values))} [{form.format(values[0])}–{form.format(values[-1])}]"


def _ratios(runs: Runs) -> tuple[float, float] | None:
    """Ours to rsyslog's: rate, CPU per event."""
    ours, rival = runs.get("ndcollector"), runs.get("rsyslog")
    if not ours or not rival:
        return None
    rate = _middle(ours, "events_per_second") / _middle(rival, "events_per_second")
    return rate, _middle(ours, "cpu_us_per_event") / _middle(rival, "cpu_us_per_event")


def _bulk_targets(runs: Runs) -> list[tuple[bool, str]]:
    ratios = _ratios(runs)
    if ratios is None:
        return []
    rate, cpu = ratios
    return [
        (rate >= 1.5, f"bulk: {rate:.2f} times rsyslog's rate; at least 1.5, aim 3"),
        (cpu <= 0.5, f"bulk: {cpu:.2f} of rsyslog's CPU per event; at most 0.5, aim 0.33"),
    ]


def _single_targets(runs: Runs) -> list[tuple[bool, str]]:
    ratios = _ratios(runs)
    return [] if ratios is None else [(ratios[0] >= 1.0, f"500 connections: {ratios[0]:.2f} times rsyslog's rate; at least 1")]


def _idle_targets(idle: Mapping[str, float]) -> list[tuple[bool, str]]:
    per = idle["bytes_per_connection"]
    served = idle["served_seconds"]
    return [
        (
            per <= 60_000,
            f"{idle['connections']} idle connections: {per / 1000:.1f} KB each "
            f"({idle['rss_held_bytes'] / _MIB:.0f} MiB in all), {idle['idle_cpu_share']:.1%} of a core; at most 60 KB",
        ),
        (
            served <= 60 and not idle["missing"],
            f"all reconnecting at once: served after {served:.1f} s, {idle['missing']} events lost, the other "
            f"connection's longest wait {idle['streamed_longest_wait_seconds']:.2f} s; at most 60 s, nothing lost",
        ),
    ]


def _overload_targets(overload: Mapping[str, float]) -> list[tuple[bool, str]]:
    growth = overload["rss_growth_bytes"]
    return [
        (
            growth <= 0.05 * overload["rss_first_full_bytes"] and not overload["missing"],
            f"{overload['seconds']:.0f} s with a stopped output: memory grew {growth / _MIB:.1f} MiB beyond "
            f"{overload['rss_first_full_bytes'] / _MIB:.0f} MiB (5 % allowed), {overload['missing']} events lost afterwards",
        )
    ]
