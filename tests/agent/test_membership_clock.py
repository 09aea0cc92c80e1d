"""A running agent's membership while the host's clock is set: what waits, waits by a clock that never jumps."""

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from ndagent import membership
from ndagent.identity import IdentityStore
from ndagent.membership import Membership

TEN_YEARS = 10 * 365 * 86400.0


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.001)


async def test_a_clock_that_is_set_back_does_not_put_off_what_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A board without a battery boots in 2036: NTP must not cost it ten years without a certificate."""
    tries: list[tuple[str, ...]] = []
    times = {"unix": 2_000_000_000.0, "steady": 0.0}

    async def refused(*arguments: str) -> tuple[int, str]:
        tries.append(arguments)
        return 75, "no collector answers"

    async def changed() -> None:
        pass

    monkeypatch.setattr(membership, "run_ndagent", refused)
    monkeypatch.setattr(membership, "LOOK_SECONDS", 0.001)
    member = Membership(
        IdentityStore(tmp_path),
        config_path=tmp_path / "ndagent.yaml",
        environ={"ND_COLLECTOR_URL": "https://localhost:1", "ND_ENROLL_TOKEN": "t"},
        clock=lambda: times["unix"],
        monotonic=lambda: times["steady"],
        random=lambda: 1.0,
        changed=changed,
    )
    running = asyncio.create_task(member.run())
    try:
        await until(lambda: len(tries) == 1)
        times["unix"] -= TEN_YEARS
        times["steady"] += 901
        await until(lambda: len(tries) == 2)
        times["unix"] += 2 * TEN_YEARS
        await asyncio.sleep(0.05)
        assert len(tries) == 2  # nor does a clock that is set on make it hurry
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
