"""What every output of the collector has beside what the machine gives it: which events it gets, and in which form."""

from ndagent.core.settings import OutputConfig, RateConfig


class RoutedConfig(OutputConfig):
    """The collector's outputs derive from this one."""

    rate: RateConfig = RateConfig()
