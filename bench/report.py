"""The table at the end of a benchmark, and every target with what was reached."""

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any, NamedTuple

Runs = Mapping[str, Sequence[Mapping[str, float]]]
_MIB = 2**20
_COLUMNS = (12, 26, 22, 7, 6, 9, 7, 6, 9, 7)
_HEADS = ("", "events/s", "CPU µs/event", "x rate", "x CPU", "peak MiB", "B/line", "lost", "unordered", "client")


class Target(NamedTuple):
    """A figure that was promised."""

    reached: bool
    text: str


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
    for target in targets:
        print(f"  {'reached   ' if target.reached else 'FALL SHORT'}  {target.text}")
    if lost:
        print(f"\nLOST {lost} events")
    return int(lost > 0)


def _middle(runs: Sequence[Mapping[str, float]], key: str) -> float:
    return median(run[key] for run in runs)


def _print_table(title: str, runs: Runs) -> None:
    """One line a contender: medians, the spread in brackets, x = times rsyslog's; `client` is its CPU µs per event."""
    print(f"{title} (medians of {max(map(len, runs.values()))}, lowest to highest in brackets; x: times rsyslog's)")
    _print_row(_HEADS)
    rival = runs.get("rsyslog", ())
    for name, results in runs.items():
        _print_row(
            (
                name,
                _spread(results, "events_per_second", 1e-3, "{:,.0f}") + " k",
                _spread(results, "cpu_us_per_event", 1.0, "{:.2f}"),
                _times(results, rival, "events_per_second"),
                _times(results, rival, "cpu_us_per_event"),
                f"{_middle(results, 'peak_rss_bytes') / _MIB:.0f}",
                f"{_middle(results, 'bytes_per_line'):.0f}",
                str(sum(int(run["missing"]) for run in results)),
                str(sum(int(run["out_of_order"]) for run in results)),
                f"{_middle(results, 'client_cpu_us_per_event'):.2f}",
            )
        )
    print()


def _print_row(cells: Sequence[str]) -> None:
    first, *others = (cell.rjust(width) for cell, width in zip(cells, _COLUMNS, strict=True))
    print("  " + first.strip().ljust(_COLUMNS[0]) + " ".join(others))


def _spread(runs: Sequence[Mapping[str, float]], key: str, scale: float, form: str) -> str:
    values = sorted(run[key] * scale for run in runs)
    return f"{form.format(median(values))} [{form.format(values[0])}..{form.format(values[-1])}]"


def _times(runs: Sequence[Mapping[str, float]], rival: Sequence[Mapping[str, float]], key: str) -> str:
    return f"{_middle(runs, key) / _middle(rival, key):.2f}" if rival else ""


def _ratios(runs: Runs) -> tuple[float, float] | None:
    """Ours to rsyslog's: rate, CPU per event."""
    ours, rival = runs.get("ndcollector"), runs.get("rsyslog")
    if not ours or not rival:
        return None
    rate = _middle(ours, "events_per_second") / _middle(rival, "events_per_second")
    return rate, _middle(ours, "cpu_us_per_event") / _middle(rival, "cpu_us_per_event")


def _bulk_targets(runs: Runs) -> list[Target]:
    ratios = _ratios(runs)
    if ratios is None:
        return []
    rate, cpu = ratios
    return [
        Target(rate >= 1.5, f"bulk: {rate:.2f} times rsyslog's rate (at least 1.5, aim 3)"),
        Target(cpu <= 0.5, f"bulk: {cpu:.2f} of rsyslog's CPU per event (at most 0.5, aim 0.33)"),
    ]


def _single_targets(runs: Runs) -> list[Target]:
    ratios = _ratios(runs)
    if ratios is None:
        return []
    return [Target(ratios[0] >= 1, f"500 connections: {ratios[0]:.2f} times rsyslog's rate (at least 1)")]


def _idle_targets(idle: Mapping[str, float]) -> list[Target]:
    each, wait = idle["bytes_per_connection"], idle["streamed_longest_wait_seconds"]
    idle_text = (
        f"{idle['connections']} idle connections: {each / 1000:.1f} KB each (at most 60), "
        f"{idle['rss_held_bytes'] / _MIB:.0f} MiB in all, {idle['idle_cpu_share']:.1%} of a core"
    )
    storm_text = (
        f"all reconnecting at once: served after {idle['served_seconds']:.1f} s (at most 60), {idle['missing']} lost, "
        f"{idle['refused_at_first']} refused at first; a connection that streamed meanwhile waited {wait:.2f} s"
    )
    served = idle["served_seconds"] <= 60 and not idle["missing"]
    return [Target(each <= 60_000, idle_text), Target(served, storm_text)]


def _overload_targets(overload: Mapping[str, float]) -> list[Target]:
    growth, full = overload["rss_growth_bytes"], overload["rss_first_full_bytes"]
    text = (
        f"{overload['seconds']:.0f} s with a stopped output: memory grew {growth / _MIB:.1f} MiB beyond "
        f"{full / _MIB:.0f} MiB (at most 5 %); {overload['missing']} lost once it worked again"
    )
    flat = growth <= 0.05 * full and not overload["missing"]
    return [Target(flat, text)]
