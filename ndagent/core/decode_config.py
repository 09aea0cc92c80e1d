"""The `decode` section: what the decoder must be told to make events of syslog; collector and agent have it.

Promises: a time zone and a family of devices that are accepted exist; a pattern that is nearly a network is an error
that says what is meant.
"""

import ipaddress
import zoneinfo
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, PlainValidator, model_validator

from ndagent.core.near_miss import near_miss
from ndagent.core.settings import Kind, SettingError, Settings, is_address
from ndagent.wire.devices import FAMILIES
from ndagent.wire.ecs import DecodeSettings


def check_zone(name: str) -> str:
    """A time zone of the machine's database; UTC needs none. Raises ValueError with a near miss."""
    if name == "UTC":
        return name
    try:
        zoneinfo.ZoneInfo(name)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
        near = near_miss(name, zoneinfo.available_timezones())
        remedy = f"did you mean '{near}'?" if near else "see: timedatectl list-timezones"
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


def check_family(name: object) -> str:
    """A family of devices; raises ValueError with a near miss."""
    if isinstance(name, str) and name in FAMILIES:
        return name
    near = near_miss(name, FAMILIES)
    remedy = f"did you mean '{near}'?" if near else f"there are {', '.join(FAMILIES)}"
    raise ValueError(f"{name!r} is not a family of devices; {remedy}")


def check_families(value: object) -> tuple[str, ...] | Literal["auto", "none"]:
    """`auto`, `none` or a list of families; raises ValueError."""
    if value in ("auto", "none"):
        return "auto" if value == "auto" else "none"
    if not isinstance(value, list | tuple):
        raise ValueError(f"{value!r} is neither auto nor none nor a list such as [cisco_asa, panos]")  # noqa: TRY004 - pydantic wants ValueError
    return tuple(map(check_family, value))


def check_device(name: object) -> str:
    """A family, or `none`; raises ValueError."""
    return "none" if name == "none" else check_family(name)


Families = Annotated[
    tuple[str, ...] | Literal["auto", "none"],
    PlainValidator(check_families),
    Kind("auto, none, or a list of families"),
]
Device = Annotated[str, PlainValidator(check_device), Kind("a family such as cisco_asa, or none")]
TimeZone = Annotated[str, AfterValidator(check_zone), Kind("a time zone such as UTC or Europe/Berlin")]


class OriginConfig(Settings):
    """Senders that need settings of their own."""

    match: Annotated[str, AfterValidator(check_match)] = Field(
        description="A network (10.2.0.0/16), or a pattern over the sender's identity (nd:device:fw-*).",
        examples=["10.2.0.0/16"],
    )
    timezone: TimeZone | None = Field(
        default=None,
        description="Zone of timestamps that carry none (RFC 3164); default: decode.timezone.",
        examples=["Europe/Berlin"],
    )
    device: Device | None = Field(
        default=None,
        description="The family that all its messages are of, whatever they begin with; none: of no family.",
        examples=["key_value"],
    )

    @model_validator(mode="after")
    def _says_something(self) -> "OriginConfig":
        if self.timezone is None and self.device is None:
            raise SettingError((), "has neither timezone nor device; give one of them")
        return self


class DecodeConfig(Settings):
    """How messages become events."""

    keep_original: Literal["always", "on_error", "never"] = Field(
        default="on_error", description="When event.original keeps the whole message as it came."
    )
    timezone: TimeZone = Field(default="UTC", description="Zone of timestamps that carry none; see origins.")
    origins: tuple[OriginConfig, ...] = Field(default=(), description="Exceptions by sender; the first match wins.")
    devices: Families = Field(
        default="auto",
        description="Families of devices whose messages get more ECS fields (docs/devices.md): auto is all of them, "
        "each message's told by how it begins.",
    )
    device_fields: Literal["added", "elastic"] = Field(
        default="added",
        description="added: source and observer stay the sender and who took it, what a device says of its own is "
        "client, server and device. elastic: source, destination and observer are the device's, as Elastic's "
        "integrations have them; the sender moves to log.source, the collector to ndcollector.name.",
    )

    def settings(self, observer_name: str, *, agent_version: str = "") -> DecodeSettings:
        """What the decoder is made with; see DecodeSettings for the arguments."""
        return DecodeSettings(
            observer_name=observer_name,
            keep_original=self.keep_original,
            timezone=self.timezone,
            origins=tuple((origin.match, origin.timezone or self.timezone) for origin in self.origins),
            agent_version=agent_version,
            devices=self._families(),
            origin_devices=self._origin_devices(),
            device_fields=self.device_fields,
        )

    def _families(self) -> tuple[str, ...]:
        if isinstance(self.devices, str):
            return FAMILIES if self.devices == "auto" else ()
        return self.devices

    def _origin_devices(self) -> tuple[tuple[str, str], ...]:
        """All origins where one has a device: the first match wins, also one that has none."""
        found = tuple((origin.match, origin.device or "") for origin in self.origins)
        return found if any(device for _, device in found) else ()
