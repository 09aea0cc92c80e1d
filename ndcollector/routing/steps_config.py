"""What may stand under `transform`: the steps, each a mapping with one step's key and, if it is not for all, `where`.

Promises: what cannot work, or would take from an event what receivers and outputs find it again by (`@timestamp`,
`event.id`, …), is an error with its place, not a surprise at three in the morning. Refuses: carrying steps out
(steps.py).
"""

from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, model_validator

from ndagent.core.settings import Kind, SettingError, Settings
from ndagent.wire.where import WhereError, compile_where
from ndcollector.routing import finder
from ndcollector.routing.finder import Finder, check_pattern
from ndcollector.routing.paths import Path, Pattern, parse_path

MAX_STEPS = 32
MAX_FIELDS = 64
MAX_TEXT = 1024
SHORTEST_SECRET = 16
PROTECTED = tuple(map(parse_path, ("@timestamp", "event.id", "event.created", "ndcollector.position")))
"""Receivers tell repeats by event.id; outputs find their place again, date records and choose files by the others."""
_OBJECTS = tuple(
    map(
        parse_path,
        (
            "agent", "ecs", "error", "event", "host", "log", "log.syslog", "log.syslog.facility", "log.syslog.severity",
            "log.syslog.structured_data", "ndcollector", "observer", "process", "source", "tls", "tls.client",
        ),
    )
)  # fmt: skip
STEPS = ("drop_fields", "rename", "redact", "hash", "add")


def check_where(text: str) -> str:
    """An expression; raises ValueError with the column inside it."""
    try:
        compile_where(text)
    except WhereError as error:
        raise ValueError(str(error).removeprefix("where: ")) from None
    return text


def check_field(text: str) -> str:
    """A path that may have globs; raises ValueError."""
    Pattern(text)
    return text


WhereText = Annotated[str, AfterValidator(check_where), Kind("an expression, see docs/where.md")]
FieldText = Annotated[str, AfterValidator(check_field), Kind("a field such as user.name, process.* or **.password")]
PatternText = Annotated[str, AfterValidator(check_pattern), Kind("a pattern's name, or a regular expression (RE2)")]
Value = str | int | float | bool


class RedactConfig(Settings):
    """Put something else where a pattern is found."""

    patterns: tuple[PatternText, ...] = Field(
        default=("card_number", "secret"),
        min_length=1,
        max_length=finder.MAX_PATTERNS,
        description="card_number, email, secret (which is password, bearer_token, aws_key, access_token, jwt, "
        "private_key, url_password and password_hash), and regular expressions of your own.",
    )
    fields: tuple[FieldText, ...] = Field(
        default=(),
        max_length=MAX_FIELDS,
        description="Only in these fields and in the raw message; empty means in every text of the event.",
    )
    replacement: str = Field(default="[redacted]", max_length=64, description="What stands there instead.")

    @model_validator(mode="after")
    def _fits_in_memory(self) -> "RedactConfig":
        try:
            Finder(self.patterns)
        except ValueError as error:
            raise SettingError(("patterns",), f"together they are too large: {error}") from None
        return self


class HashConfig(Settings):
    """Put a hash in place of a value."""

    fields: tuple[FieldText, ...] = Field(
        min_length=1, max_length=MAX_FIELDS, description="Each value of these fields.", examples=[["user.name"]]
    )
    secret: SecretStr | None = Field(
        default=None,
        description="For HMAC-SHA-256, 16 characters or more. Without it plain SHA-256, which anybody can reverse "
        "where there are few possible values: names, addresses, telephone numbers.",
    )

    @model_validator(mode="after")
    def _is_long_enough(self) -> "HashConfig":
        if self.secret is not None and len(self.secret.get_secret_value()) < SHORTEST_SECRET:
            raise SettingError(("secret",), f"has fewer than {SHORTEST_SECRET} characters, which can be guessed")
        return self


def _fields_alone(value: object) -> object:
    return {"fields": value} if isinstance(value, list) else value


class StepConfig(Settings):
    """One step: exactly one of the keys beside `where`."""

    where: WhereText | None = Field(default=None, description="Only for events that match; null means all.")
    drop_fields: tuple[FieldText, ...] | None = Field(
        default=None, max_length=MAX_FIELDS, description="Take these fields away."
    )
    rename: Annotated[dict[str, str], Field(max_length=MAX_FIELDS)] | None = Field(
        default=None, description="Old name: new name. A field that has the new name already is replaced."
    )
    redact: RedactConfig | None = Field(default=None, description="Put something else where a pattern is found.")
    hash: Annotated[HashConfig, BeforeValidator(_fields_alone)] | None = Field(
        default=None, description="Put a hash in place of a value."
    )
    add: Annotated[dict[str, Value], Field(max_length=MAX_FIELDS)] | None = Field(
        default=None, description="Field: value. What the field had is replaced."
    )

    @model_validator(mode="before")
    @classmethod
    def _has_one_step(cls, written: Any) -> Any:
        if not isinstance(written, dict):
            return written
        found = [key for key in written if key in STEPS]
        unknown = [key for key in written if key not in (*STEPS, "where")]
        if len(found) > 1:
            raise SettingError((found[1],), f"a step does one thing; write `- {found[1]}:` as a step of its own")
        if not found and not unknown:
            raise ValueError(f"does nothing; write one of {', '.join(STEPS)}")
        if found and written[found[0]] in (None, {}, []) and found[0] != "redact":
            raise SettingError((found[0],), "is empty; name a field, or take the step out")
        return {**written, "redact": {}} if found == ["redact"] and written["redact"] is None else written

    @model_validator(mode="after")
    def _names_fields(self) -> "StepConfig":
        for index, text in enumerate(self.drop_fields or ()):
            _check_spared(text, ("drop_fields", index))
        for index, text in enumerate(self.redact.fields if self.redact else ()):
            _check_spared(text, ("redact", "fields", index))
        for index, text in enumerate(self.hash.fields if self.hash else ()):
            _check_spared(text, ("hash", "fields", index))
        _check_added(self.add or {})
        _check_renamed(self.rename or {})
        return self


def _check_spared(text: str, place: tuple[str | int, ...]) -> None:
    pattern = Pattern(text)
    for path in PROTECTED:
        if pattern.reaches(path):
            raise SettingError(place, f"{text!r} takes {path} along, by which events are found again; name the others")


def _check_added(fields: dict[str, Value]) -> None:
    for name, value in fields.items():
        _check_target(_path(name, ("add", name)), ("add", name))
        if isinstance(value, str) and len(value) > MAX_TEXT:
            raise SettingError(("add", name), f"is longer than {MAX_TEXT} characters")


def _check_renamed(fields: dict[str, str]) -> None:
    targets: list[Path] = []
    for old, new in fields.items():
        place = ("rename", old)
        source, target = _path(old, place), _path(new, place)
        for path in PROTECTED:
            if _is_around(source, path):
                raise SettingError(place, f"{old!r} takes {path} along, by which events are found again")
        _check_target(target, place)
        for other in (source, *targets):
            if _is_around(target, other) or _is_around(other, target):
                raise SettingError(place, f"{new!r} is {other}, or around or inside it; choose another name")
        targets.append(target)


def _check_target(target: Path, place: tuple[str | int, ...]) -> None:
    for path in PROTECTED:
        if _is_around(target, path) or _is_around(path, target):
            raise SettingError(place, f"{target} is {path}, or around or inside it, by which events are found again")
    if _names(target) in map(_names, _OBJECTS):
        raise SettingError(place, f"{target} is where events have other fields, all of which would go; name one field")


def _path(text: str, place: tuple[str | int, ...]) -> Path:
    try:
        return parse_path(text)
    except ValueError as error:
        raise SettingError(place, str(error)) from None


def _is_around(outer: Path, inner: Path) -> bool:
    return _names(inner)[: len(_names(outer))] == _names(outer)


def _names(path: Path) -> list[str]:
    """A quoted name with dots means the same field as the names one by one (paths.py)."""
    return str(path).split(".")
