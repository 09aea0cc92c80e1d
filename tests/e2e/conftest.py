"""What end-to-end tests share: a collector that runs, with its own PKI."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from collector_site import Site


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    """A running collector with a file output; it must have stopped well at the end."""
    found = Site(tmp_path)
    with found.collector:
        yield found
