"""What all tests share."""

import os

import pytest
from hypothesis import HealthCheck, settings

# No deadlines: how long an example takes depends on what else the machine does, and speed is the benchmarks' subject.
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
# A gate must give the same answer to the same code: there the examples are drawn by the test's own text, not by chance.
settings.register_profile("gate", settings.get_profile("any machine"), derandomize=True)
settings.load_profile("gate" if os.environ.get("CI") else "any machine")


@pytest.hookimpl(tryfirst=True)  # before xdist looks at the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Kafka's tests share one broker, so they stay with one of the processes that tests run in; the first to begin."""
    kafka = [item for item in items if "kafka" in item.path.parts]
    others = [item for item in items if "kafka" not in item.path.parts]
    for item in kafka:
        item.add_marker(pytest.mark.xdist_group("kafka"))
    items[:] = kafka + others
