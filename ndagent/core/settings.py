"""Types that configuration is written in: strict models, sizes, durations, addresses, paths.

Promises: an unknown key, a wrong type or a bad unit is an error that says what was expected. `…Config` classes are what
users write; each stands in its plug's own file and derives from `Settings`. Refuses: reading files (see yaml_file.py)
and guessing: "yes" is not a boolean, true is not a number, "5" is not one either.
"""

import ipaddress
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    PlainSerializer,
    ValidationInfo,
)
from pydantic_core import CoreSchema

_SIZE_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_SIZE_UNITS |= {"KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}
_DURATION_UNITS = {"": 1.0, "ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}
_QUANTITY = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*")


class Kind(str):
    """Stands in a type's annotation and says in words what may be written there; the reference file prints it."""

    __slots__ = ()


class SettingError(ValueError):
    """A fault of one key, found by a validator of the section around it; `path` leads from that section to the key."""

    def __init__(self, path: tuple[str | int, ...], message: str) -> None:
        super().__init__(message)
        self.path = path


CONFIG_VERSION = 1
"""Of the configuration files that this program reads; a file without a version has this one."""


def _check_config_version(version: object) -> object:
    if type(version) is int and version > CONFIG_VERSION:
        raise ValueError(
            f"the file is written for version {version}, this program reads up to {CONFIG_VERSION}: install the newer "
            "program, or restore the file from before the update"
        )
    return version


ConfigVersion = Annotated[int, BeforeValidator(_check_config_version), Field(ge=1)]
"""What the file was written for; a later one may mean something else by the same keys."""


def _make_scalars_strict(schema: object) -> None:
    if isinstance(schema, dict):
        if schema.get("type") in ("int", "float", "bool"):
            schema.setdefault("strict", True)
        for part in schema.values():
            _make_scalars_strict(part)
    elif isinstance(schema, list | tuple):
        for part in schema:
            _make_scalars_strict(part)


class Settings(BaseModel):
    """A frozen section of the configuration; every field carries its help text, which the reference file prints.

    Defaults are validated like what users write (`revalidate_instances`: sections inside defaults too), so that a
    relative path that is a default ends beside the configuration file as well.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, revalidate_instances="always")

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """The model's schema with strict scalars; lists still become tuples and text still becomes paths."""
        schema = handler(source)
        _make_scalars_strict(schema)
        return schema


def parse_size(value: object) -> int:
    """Bytes from an int or text such as "64MiB", "20 GB"; raises ValueError that shows a good example."""
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    match = _QUANTITY.fullmatch(value) if isinstance(value, str) else None
    unit = _SIZE_UNITS.get(match[2].upper()) if match else None
    if match is None or unit is None:
        raise ValueError(f"{value!r} is not a size; write bytes or a number with a unit, such as 64MiB or 20GB")
    return int(float(match[1]) * unit)


def parse_duration(value: object) -> float:
    """Seconds from a number or text such as "250ms", "90s", "7d"; raises ValueError that shows a good example."""
    if isinstance(value, int | float) and not isinstance(value, bool) and value >= 0:
        return float(value)
    match = _QUANTITY.fullmatch(value) if isinstance(value, str) else None
    unit = _DURATION_UNITS.get(match[2]) if match else None
    if match is None or unit is None:
        raise ValueError(f"{value!r} is not a duration; write seconds, or a number with a unit such as 250ms, 90s, 7d")
    return float(match[1]) * unit


def format_size(size: int) -> str:
    """The shortest exact text that parse_size() reads back."""
    for unit, name in ((2**40, "TiB"), (2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if size and size % unit == 0:
            return f"{size // unit}{name}"
    return str(size)


def format_duration(seconds: float) -> str:
    """The shortest text that parse_duration() reads back, exact to the microsecond."""
    for unit, name in ((86400, "d"), (3600, "h"), (60, "m")):
        if seconds and seconds % unit == 0:
            return f"{int(seconds // unit)}{name}"
    milliseconds = f"{seconds * 1000:.3f}".rstrip("0").rstrip(".")
    return f"{int(seconds)}s" if seconds == int(seconds) else f"{milliseconds}ms"


ByteSize = Annotated[
    int,
    BeforeValidator(parse_size),
    PlainSerializer(format_size, when_used="json"),
    Kind("a size (bytes, or 64MiB, 20GB)"),
]
Duration = Annotated[
    float,
    BeforeValidator(parse_duration),
    PlainSerializer(format_duration, when_used="json"),
    Kind("a duration (seconds, or 250ms, 90s, 7d)"),
]


class Listen(NamedTuple):
    """An address to listen on; `host` is a literal address or a name, `port` 0 lets the kernel choose (tests)."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_listen(value: object) -> Listen:
    """Listen from "0.0.0.0:6514" or "[::]:6514"; raises ValueError that shows a good example."""
    if isinstance(value, Listen):
        return value
    host, _, port = value.rpartition(":") if isinstance(value, str) else ("", "", "")
    if not host or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise ValueError(f"{value!r} is not an address to listen on; write host:port such as 0.0.0.0:6514 or [::]:6514")
    return Listen(host.removeprefix("[").removesuffix("]"), int(port))


ListenAddress = Annotated[
    Any,
    BeforeValidator(parse_listen),
    PlainSerializer(str, when_used="json"),
    Kind("an address to listen on (host:port)"),
]


def is_address(text: str) -> bool:
    """Whether this is a literal IPv4 or IPv6 address."""
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


class Text(str):
    """Text from a configuration file that remembers the directory of that file."""

    __slots__ = ("directory",)
    directory: Path

    @classmethod
    def of(cls, text: str, directory: Path) -> "Text":
        """The text, standing in a file of this directory."""
        result = cls(text)
        result.directory = directory
        return result


def resolve_path(value: object, info: ValidationInfo) -> object:
    """A path against the directory of the file it stands in; a default against that of the main file.

    Without a file (settings made by a program) relative paths stay as they are.
    """
    if isinstance(value, str) and (not value or "\0" in value):
        raise ValueError("is not a path; write one, or leave the key out for its default")
    directory = getattr(value, "directory", None) or (info.context or {}).get("directory")
    return directory / value if directory is not None and isinstance(value, str | Path) else value


ConfigPath = Annotated[Path, BeforeValidator(resolve_path), Kind("a path (relative to this file)")]
"""A path in the configuration; see `resolve_path`."""


class RetryConfig(Settings):
    """Waiting between tries; there is no last try for spooled data."""

    initial: Duration = Field(
        default=0.5,
        gt=0,
        description="Upper bound of the first wait; each wait is drawn from 0 to the bound (full jitter).",
    )
    maximum: Duration = Field(default=60.0, gt=0, description="Upper bound of every later wait, reached by doubling.")


class BreakerConfig(Settings):
    """When to stop trying for a while; each stream for itself."""

    failures: int = Field(
        default=5, ge=1, description="Failures of a stream that open its breaker: within `window`, or in a row."
    )
    window: Duration = Field(
        default=60.0, gt=0, description="Failures older than this are forgotten, if anything was answered since."
    )
    open_for: Duration = Field(
        default=10.0, gt=0, description="How long the breaker stays open before one probe is let through."
    )


class RateConfig(Settings):
    """What an output may send; one second's worth may go at once, the rest waits in the spool."""

    events_per_second: float | None = Field(default=None, gt=0, description="Events a second; null means no limit.")
    bytes_per_second: ByteSize | None = Field(
        default=None, ge=1024, description="Bytes of JSON a second, before compression; null means no limit."
    )


class OutputConfig(Settings):
    """What every output has, whatever its type."""

    fills_batches: ClassVar[bool] = False
    """Whether a send wants as much of `batch_bytes` as there is; else large decoded pieces go as they come."""

    type: str = Field(description="Which kind of output; defaults to the name it is configured under.")
    streams: tuple[str, ...] | None = Field(default=None, description="Streams this output gets; null means all.")
    on_full: Literal["block", "drop_oldest"] = Field(
        default="block",
        description="When this output alone has filled the spool: block the inputs, or let its cursor jump (counted).",
    )
    start: Literal["earliest", "latest"] = Field(
        default="earliest", description="Where an output that is new to the spool begins."
    )
    timeout: Duration = Field(default=30.0, gt=0, description="A send that takes longer counts as unavailable.")
    in_flight: int = Field(default=4, ge=1, le=64, description="Sends under way at a time per stream.")
    batch_bytes: ByteSize = Field(
        default=4 * 2**20, ge=1024, description="Events decoded and sent together, at most about this many bytes."
    )
    batch_age: Duration = Field(
        default=0.0,
        ge=0,
        le=60,
        description="How long a batch that is not full waits for more events; 0 sends what there is at once.",
    )
    retry: RetryConfig = RetryConfig()
    breaker: BreakerConfig = BreakerConfig()
    dead_letter_max_bytes: ByteSize = Field(
        default=2**30, ge=1024, description="A dead-letter file this large blocks the output until it is purged."
    )

    def wants(self, stream: str) -> bool:
        """Whether the output gets this stream."""
        return self.streams is None or stream in self.streams


def transport_of(settings: Settings) -> Literal["tcp", "udp"]:
    """What an input listens with; an address of the one is no address of the other."""
    found: Literal["tcp", "udp"] = getattr(settings, "transport", "tcp")
    return found


def listen_addresses(settings: Settings) -> Iterator[tuple[tuple[str | int, ...], Listen]]:
    """Where an input listens, whatever its type, and the key below it that says so."""
    listen = getattr(settings, "listen", ())
    if isinstance(listen, Listen):
        yield ("listen",), listen
        return
    for index, one in enumerate(listen):
        yield ("listen", index), one
