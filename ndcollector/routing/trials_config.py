"""`tests:` in the configuration: messages, and what each output is expected to make of them.

    tests:
      passwords do not leave:
        input: "<38>Nov 25 23:00:00 fw-1 app: password=hunter2"
        expect:
          siem: {fields: {message: "password=[redacted]"}, absent: [event.original]}
          archive: {delivered: false}

They are checked with the rest of the configuration, and carried out by `ndcollector check --tests` (trials.py).
"""

import base64
import binascii
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from ndagent.core.settings import Kind, OutputConfig, SettingError, Settings
from ndagent.core.validation import did_you_mean
from ndcollector.routing.paths import parse_path

DEFAULT_RECEIVED_AT = "2026-01-01T00:00:00Z"


def _check_base64(text: str) -> str:
    try:
        base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise ValueError("is not base64") from None
    return text


def _check_time(text: str) -> str:
    nanoseconds(text)
    return text


def nanoseconds(text: str) -> int:
    """Unix time of an RFC 3339 text; raises ValueError that shows a good one."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        moment = None
    if moment is None or moment.tzinfo is None:
        raise ValueError(f"{text!r} is not a time; write it such as {DEFAULT_RECEIVED_AT}")
    since = moment - datetime(1970, 1, 1, tzinfo=UTC)
    return (since.days * 86400 + since.seconds) * 10**9 + since.microseconds * 1000


def _check_name(text: str) -> str:
    parse_path(text)
    return text


FieldName = Annotated[str, AfterValidator(_check_name), Kind("a field such as user.name")]


class TrialOrigin(Settings):
    """Who is said to have sent the message."""

    input: str = Field(default="syslog_tls", description="Name of the input that took it.")
    address: str = Field(default="192.0.2.1", description="The peer's address.")
    port: int = Field(default=0, ge=0, le=65535, description="The peer's port; 0: none.")
    subject: str = Field(default="", description="Subject of its certificate.")
    serial: str = Field(default="", description="Serial number of its certificate.")
    names: tuple[str, ...] = Field(
        default=(), description="Alternative names of its certificate.", examples=[["URI:nd:device:fw-1"]]
    )


class TrialInput(Settings):
    """One message, or one event; `input: "<13>…"` is short for `input: {text: "<13>…"}`."""

    text: str | None = Field(default=None, description="A syslog message.")
    base64: Annotated[str, AfterValidator(_check_base64)] | None = Field(
        default=None, description="A syslog message in base64, for bytes that are not UTF-8."
    )
    event: dict[str, Any] | None = Field(default=None, description="An ECS event.")
    origin: TrialOrigin = Field(default=TrialOrigin(), description="Who is said to have sent it.")
    received_at: Annotated[str, AfterValidator(_check_time), Kind("a time (RFC 3339)")] = Field(
        default=DEFAULT_RECEIVED_AT, description="When it is said to have come: RFC 3164 has no year of its own."
    )

    @model_validator(mode="after")
    def _is_one(self) -> "TrialInput":
        given = [one for one in (self.text, self.base64, self.event) if one is not None]
        if len(given) != 1:
            raise ValueError("write one of text, base64 and event")
        return self

    @property
    def message(self) -> bytes:
        """The syslog message; empty where the input is an event."""
        if self.base64 is not None:
            return base64.b64decode(self.base64)
        return (self.text or "").encode()


class Expectation(Settings):
    """What one output is expected to get."""

    delivered: bool = Field(default=True, description="Whether the output gets it at all.")
    fields: dict[str, Any] = Field(default={}, description="Field: exactly this value, before `format`.")
    absent: tuple[FieldName, ...] = Field(default=(), description="Fields that are not there, before `format`.")
    line: str | None = Field(default=None, description="The whole line that is sent, after `format`.")

    @model_validator(mode="after")
    def _can_hold(self) -> "Expectation":
        for name in self.fields:
            try:
                parse_path(name)
            except ValueError as error:
                raise SettingError(("fields", name), str(error)) from None
        if not self.delivered and (self.fields or self.absent or self.line is not None):
            raise SettingError(("delivered",), "is false, so there are no fields and no line to look at")
        return self


def _text_alone(value: object) -> object:
    return {"text": value} if isinstance(value, str) else value


class TrialConfig(Settings):
    """One test of routes, transforms and formats."""

    input: Annotated[TrialInput, BeforeValidator(_text_alone), Kind("a syslog message, or settings")] = Field(
        description="What comes in.", examples=["<38>Nov 25 23:00:00 fw-1 sshd[17]: Accepted password for root"]
    )
    stream: str = Field(default="security_events", description="The stream that it comes on.")
    expect: dict[str, Expectation] = Field(min_length=1, description="Output: what it gets.", examples=[{}])


def check_outputs(trials: Mapping[str, TrialConfig], outputs: Mapping[str, OutputConfig] | Iterable[str]) -> None:
    """Every output that a test expects something of is there; raises SettingError."""
    known = list(outputs)
    for name, trial in trials.items():
        for output in trial.expect:
            if output not in known:
                raise SettingError(
                    ("tests", name, "expect", output), f"there is no such output{did_you_mean(output, known)}"
                )
