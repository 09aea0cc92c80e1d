"""How an event looks to the far side: ECS as it is, flat JSON, CEF, LEEF, RFC 5424, or the message as it came.

A formatter makes of a batch of ECS lines the same batch with other lines (`EventBatch.format` says which): as many of
them, in the same order, each ending in its only LF. It is called in threads, and is a pure function.

It costs Python for each event (docs/formats.md has the figures), so it is for whoever asks for it: `ecs`, the default,
is what the codec wrote. What a format cannot carry is left out, never invented; docs/formats.md says what that is.
"""

from collections.abc import Callable
from importlib import import_module
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from ndagent.core.settings import Kind, SettingError, Settings
from ndagent.wire.record import EventBatch
from ndcollector import __version__
from ndcollector.formats.lines import Render, behind, each
from ndcollector.formats.syslog_header import header_of

Formatter = Callable[[EventBatch], EventBatch]

FORMATS = ("flat", "cef", "leef", "raw", "rfc5424")
"""Each in the module of its name, whose `make(config)` gives a Render; loaded only where configured."""

_HEADER = r"^[^|\\\x00-\x1f]{1,63}$"
"""Text of a CEF or LEEF header: LEEF has no way to escape a bar."""


class FormatConfig(Settings):
    """The form of events; `format: cef` is short for `format: {name: cef}`."""

    name: Literal["ecs", "flat", "cef", "leef", "raw", "rfc5424"] = Field(
        default="ecs",
        description="ecs: JSON as it is. flat: JSON of one level. cef, leef: text for ArcSight, QRadar and their like. "
        "raw: the message as it came, rfc5424 where it was not kept. rfc5424: syslog, made from the fields.",
    )
    syslog_header: Literal["none", "rfc3164", "rfc5424"] = Field(
        default="none",
        description="In front of ecs, flat, cef and leef, for a syslog receiver. raw and rfc5424 bring their own.",
    )
    separator: str = Field(
        default=".", pattern=r"^[._:/-]{1,2}$", description="For flat: stands between the names of a path."
    )
    vendor: str = Field(default="Neurodefender", pattern=_HEADER, description="For cef and leef: Device Vendor.")
    product: str = Field(default="ndcollector", pattern=_HEADER, description="For cef and leef: Device Product.")
    version: str | None = Field(
        default=None, pattern=_HEADER, description="For cef and leef: Device Version; null means the collector's own."
    )
    message_length: int = Field(
        default=1023,
        ge=16,
        le=65535,
        description="For cef: most characters of `msg`. The specification says 1023; many receivers take more.",
    )
    delimiter: Literal["tab", "^"] = Field(default="tab", description="For leef: what stands between attributes.")
    event_id: bool = Field(
        default=True,
        description='For rfc5424: add event.id as structured data, [nd@32473 id="…"], by which receivers can tell a '
        "repeat.",
    )

    @property
    def device(self) -> tuple[str, str, str]:
        """Vendor, product and version."""
        return self.vendor, self.product, self.version or __version__

    @model_validator(mode="after")
    def _has_one_header(self) -> "FormatConfig":
        if self.name in ("raw", "rfc5424") and self.syslog_header != "none":
            raise SettingError(("syslog_header",), f"must be none with {self.name}, which has its own: leave it out")
        return self


def _name_alone(value: object) -> object:
    return {"name": value} if isinstance(value, str) else value


Format = Annotated[FormatConfig, BeforeValidator(_name_alone), Kind("a format's name, or its settings")]
"""A format in an output's settings."""


def formatter(config: FormatConfig) -> Formatter | None:
    """What makes events look like that; None where they are as they should be."""
    if config.name == "ecs" and config.syslog_header == "none":
        return None
    make = as_it_is if config.name == "ecs" else import_module(f"{__name__}.{config.name}").make
    render: Render = make(config)
    if config.syslog_header == "none":
        return each(render, name=config.name)
    return each(behind(header_of(config.syslog_header), render), name=config.syslog_header)


def as_it_is(_config: FormatConfig) -> Render:
    """ECS JSON, for behind a syslog header."""
    return lambda _event, line: line
