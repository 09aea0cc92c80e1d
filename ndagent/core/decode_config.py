"""The `decode` section: what the decoder must be told to make events of syslog; collector and agent have it.

Promises: a time zone that is accepted exists; a pattern that is nearly a network is an error that says what is meant.
"""

import difflib
import ipaddress
import zoneinfo
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from ndagent.core.settings import Kind, Settings, is_address
from ndagent.wire.ecs import DecodeSettings


def check_zone(name: str) -> str:
    """A time zone of the machine's database; UTC needs none. Raises ValueError with a near miss."""
    if name == "UTC":
        return name
    try:
        zoneinfo.ZoneInfo(name)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
        near = difflib.get_close_matches(name, zoneinfo.available_timezones(), n=1)
        remedy = f"did you mean '{near[0]}'?" if near else "see: timedatectl list-timezones"
        raise ValueError(f"{name!r} is not a time zone; {remedy}") from None
    return name


def check_match(match: str) -> str:
    """A network, an address, or a glob over peers' identities; raises ValueError for what is nearly a network."""
    if not match:
        raise ValueError("is empty; write a network such as 10.2.0.0/16, or a pattern such as nd:device:fw-*")
    looks_numeric = match.replace(":", "").replace(".", "").replace("/", "").isdecimal()
    if not looks_numeric and "/" not in match:
        return match
    try:
        ipaddress.ip_network(match)
    except ValueError as error:
        if is_address(match.partition("/")[0]):
            raise ValueError(f"{match!r} is not a network: {error}{_network_of(match)}") from None
        if looks_numeric:
            raise ValueError(f"{match!r} is neither an address nor a network") from None
    return match


def _network_of(text: str) -> str:
    try:
        return f"; did you mean '{ipaddress.ip_network(text, strict=False)}'?"
    except ValueError:
        return ""


TimeZone = Annotated[str, AfterValidator(check_zone), Kind("a time zone such as UTC or Europe/Berlin")]


class OriginConfig(Settings):
    """Senders that need settings of their own."""

    match: Annotated[str, AfterValidator(check_match)] = Field(
        description="A network (10.2.0.0/16), or a pattern over the sender's identity (nd:device:fw-*).",
        examples=["10.2.0.0/16"],
    )
    timezone: TimeZone = Field(description="Zone of timestamps that carry none (RFC 3164).", examples=["Europe/Berlin"])


class DecodeConfig(Settings):
    """How messages become events."""

    keep_original: Literal["always", "on_error", "never"] = Field(
        default="on_error", description="When event.original keeps the whole message as it came."
    )
    timezone: TimeZone = Field(default="UTC", description="Zone of timestamps that carry none; see origins.")
    origins: tuple[OriginConfig, ...] = Field(default=(), description="Exceptions by sender; the first match wins.")

    def settings(self, observer_name: str, *, agent_version: str = "") -> DecodeSettings:
        """What the decoder is made with; see DecodeSettings for the arguments."""
        return DecodeSettings(
            observer_name=observer_name,
            keep_original=self.keep_original,
            timezone=self.timezone,
            origins=tuple((origin.match, origin.timezone) for origin in self.origins),
            agent_version=agent_version,
        )
