"""Each decoding test runs through both twins; without a compiled one it fails unless ND_PURE_CODEC=1 asked for that."""

import pytest
from decode_twins import PURE_ONLY, Decode, twin_decode


@pytest.fixture(params=["pure"] if PURE_ONLY else ["pure", "compiled"])
def decode(request: pytest.FixtureRequest) -> Decode:
    """decode(settings, body, **arguments) through one of the twins."""
    return twin_decode(request.param)
