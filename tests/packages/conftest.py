"""What the tests of the packages share."""

from collections.abc import Iterator

import pytest
from packages.wine import Wine
from services import fetch


@pytest.fixture(scope="session")
def wine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Wine]:
    """A Windows, for all tests of this run; skipped where there can be none, failed where it is required."""
    try:
        with Wine(tmp_path_factory.mktemp("wine")) as prefix:
            yield prefix
    except fetch.ServiceMissingError as error:
        if fetch.required():
            pytest.fail(str(error))
        pytest.skip(str(error))
