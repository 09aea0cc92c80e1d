"""What all tests share."""

from hypothesis import HealthCheck, settings

# No deadlines: how long an example takes depends on what else the machine does, and speed is the benchmarks' subject.
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")
