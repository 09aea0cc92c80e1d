"""The Neurodefender agent, and (in `wire` and `core`) the machine it shares with the collector."""

__version__ = "0.1.0"
