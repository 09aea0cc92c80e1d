"""The Neurodefender collector: mTLS syslog and agents in, durable spool, ECS events out."""

from ndagent import __version__

__all__ = ["__version__"]
