"""A test that needs a real counterpart: skipped, saying why, where it cannot be had; failed where it is required."""

import pytest

from services import fetch


def need(service: fetch.Service | fetch.Jars) -> None:
    """Fetch it if need be; skip the running test, or fail it under `CI=true` or `ND_REQUIRE_SERVICES=1`."""
    try:
        fetch.ensure(service)
    except fetch.ServiceMissingError as error:
        if fetch.required():
            pytest.fail(str(error))
        pytest.skip(str(error))
