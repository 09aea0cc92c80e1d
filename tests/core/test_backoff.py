"""Full jitter: the bound doubles, the draw decides, and nothing overflows."""

import pytest

from ndagent.core.backoff import full_jitter


@pytest.mark.parametrize(
    ("attempt", "bound"), [(0, 0.5), (1, 1.0), (4, 8.0), (7, 60.0), (10_000_000, 60.0)], ids=str
)
def test_the_bound_doubles_up_to_the_maximum(attempt: int, bound: float) -> None:
    """An output that fails for a year still has a finite, sane wait."""
    assert full_jitter(attempt, initial_seconds=0.5, maximum_seconds=60.0, random=lambda: 1.0) == bound


@pytest.mark.parametrize("draw", [0.0, 0.25, 0.999])
def test_the_wait_is_the_draws_share_of_the_bound(draw: float) -> None:
    """Full jitter means from zero on: half-jitter would keep a herd together."""
    assert full_jitter(3, initial_seconds=1.0, maximum_seconds=60.0, random=lambda: draw) == 8.0 * draw
