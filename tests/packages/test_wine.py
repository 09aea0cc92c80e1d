"""The Windows that the other tests stand on: it runs our Python and our wheels."""

import pytest
from packages.wine import Wine

pytestmark = pytest.mark.packages


def test_it_is_windows_with_the_agents_wheels(wine: Wine) -> None:
    program = "import sys, win32evtlog, orjson, msgpack, cryptography.x509, aiohttp, re2; print(sys.platform)"
    assert wine.python("-c", program).stdout.strip() == "win32"
