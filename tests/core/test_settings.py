"""The types that configuration is written in."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field, ValidationError

from ndagent.core.settings import (
    ByteSize,
    ConfigPath,
    Duration,
    Listen,
    ListenAddress,
    Settings,
    Text,
    format_duration,
    format_size,
    parse_duration,
    parse_listen,
    parse_size,
)


class Inner(Settings):
    """A section."""

    path: ConfigPath = Path("inner.txt")


class Outer(Settings):
    """A section with one of everything."""

    count: int = 1
    ratio: float = 0.5
    flag: bool = False
    size: ByteSize = Field(default=1024, ge=1)
    wait: Duration = 1.0
    listen: ListenAddress = "127.0.0.1:1"
    path: ConfigPath = Path("default.txt")
    paths: tuple[ConfigPath, ...] | None = None
    inner: Inner = Inner()


@pytest.mark.parametrize(
    ("text", "size"), [("64MiB", 64 << 20), ("20 GB", 20 * 10**9), ("1.5KiB", 1536), ("7", 7), (7, 7), ("0", 0)]
)
def test_sizes_are_bytes_or_a_number_with_a_unit(text: object, size: int) -> None:
    """Both families of units, with and without a space."""
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "MiB", "-1", -1, "1 parsec", True, None, 1.5, "1e3"])
def test_what_is_no_size_is_refused_with_an_example(text: object) -> None:
    """A boolean is not 1, and no unit is guessed."""
    with pytest.raises(ValueError, match="such as 64MiB"):
        parse_size(text)


@pytest.mark.parametrize(("text", "seconds"), [("250ms", 0.25), ("90s", 90), ("7d", 604800), ("1.5h", 5400), (3, 3.0)])
def test_durations_are_seconds_or_a_number_with_a_unit(text: object, seconds: float) -> None:
    """m is minutes; there are no months."""
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "s", "-1s", -1, True, "1M", "1 year"])
def test_what_is_no_duration_is_refused_with_an_example(text: object) -> None:
    """1M could be a minute or a month."""
    with pytest.raises(ValueError, match="such as 250ms"):
        parse_duration(text)


@given(st.integers(min_value=0, max_value=2**50))
def test_a_size_reads_back_as_it_was_written(size: int) -> None:
    """The reference file prints what the program can read."""
    assert parse_size(format_size(size)) == size


@given(st.integers(min_value=0, max_value=10**9))
def test_a_duration_reads_back_as_it_was_written(milliseconds: int) -> None:
    """To the millisecond."""
    seconds = milliseconds / 1000
    assert parse_duration(format_duration(seconds)) == pytest.approx(seconds, abs=0.0005, rel=1e-9)


def test_an_address_keeps_its_brackets_only_where_it_needs_them() -> None:
    """IPv6 round-trips."""
    assert parse_listen("[::]:6514") == Listen("::", 6514)
    assert str(Listen("::", 6514)) == "[::]:6514"
    assert str(parse_listen("0.0.0.0:0")) == "0.0.0.0:0"


@pytest.mark.parametrize("text", ["6514", "host:", ":6514", "host:65536", "host:-1", 6514, None])
def test_what_is_no_address_is_refused_with_an_example(text: object) -> None:
    """A port alone does not say which interface."""
    with pytest.raises(ValueError, match=r"such as 0\.0\.0\.0:6514"):
        parse_listen(text)


@pytest.mark.parametrize(
    "wrong",
    [{"count": "5"}, {"count": True}, {"count": 5.0}, {"ratio": True}, {"ratio": "0.5"}, {"flag": "yes"}, {"flag": 1}],
)
def test_scalars_are_strict(wrong: dict[str, object]) -> None:
    """true is not 1, "5" is not 5, and yes is not true."""
    with pytest.raises(ValidationError):
        Outer.model_validate(wrong)


def test_a_whole_number_is_a_number() -> None:
    """Strict does not mean pedantic."""
    assert Outer(ratio=2).ratio == 2.0


def test_paths_belong_to_the_file_they_stand_in() -> None:
    """In unions, lists and nested defaults too; a default belongs to the main file."""
    here, there = Path("/here"), Path("/there")
    settings = Outer.model_validate(
        {"path": Text.of("a", there), "paths": [Text.of("b", there), Text.of("/c", there)]}, context={"directory": here}
    )
    assert settings.path == there / "a"
    assert settings.paths == (there / "b", Path("/c"))
    assert settings.inner.path == here / "inner.txt"


def test_without_a_file_paths_stay_as_they_are() -> None:
    """Settings made by a program."""
    assert Outer(path="x").path == Path("x")
    assert Outer().path == Path("default.txt")


@pytest.mark.parametrize("text", ["", "a\0b"])
def test_an_empty_path_is_not_the_current_directory(text: str) -> None:
    """`${UNSET:-}` must not become a directory by accident."""
    with pytest.raises(ValidationError, match="is not a path"):
        Outer.model_validate({"path": text})
