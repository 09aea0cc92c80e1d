"""Dataclasses whose methods are compiled at their first call are those that Python makes."""

import copy
import dataclasses
from typing import Any

import pytest

from ndagent.late_methods import LATE, compile_late


@pytest.fixture(params=["eager", "late"])
def make(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    """`dataclass` as Python has it, and as an agent has it."""
    if not hasattr(dataclasses, "_create_fn"):
        pytest.skip("this Python makes dataclasses otherwise, and agents leave them as they are")
    monkeypatch.setattr(dataclasses, "_create_fn", dataclasses._create_fn)
    monkeypatch.setattr(dataclasses, "inspect", dataclasses.inspect)  # type: ignore[attr-defined]  # its import
    if request.param == "late":
        compile_late()
        compile_late()  # which is once
    return dataclasses.dataclass


@pytest.mark.parametrize("slots", [False, True])
def test_a_frozen_class_compares_hashes_orders_and_refuses(make: Any, slots: bool) -> None:
    """Each at the first call and at the second, which are different functions."""

    @make(frozen=True, slots=slots, order=True)
    class Version:
        major: int
        minor: int = 0

    for _ in range(2):
        one = Version(1)
        assert one == Version(1, 0) != Version(1, 1)
        assert one.__eq__((1, 0)) is NotImplemented
        assert hash(one) == hash(Version(1)) == hash((1, 0))
        assert one < Version(2) >= Version(1)
        assert one <= Version(1)
        assert not one > Version(1)
        assert repr(one).endswith("Version(major=1, minor=0)")
        with pytest.raises(dataclasses.FrozenInstanceError, match="cannot assign to field 'major'"):
            one.major = 2
        with pytest.raises(dataclasses.FrozenInstanceError, match="cannot delete field 'minor'"):
            del one.minor
        assert copy.copy(one) == one
    assert Version.__eq__.__qualname__.endswith("Version.__eq__")


def test_a_subclass_uses_what_it_inherits(make: Any) -> None:
    """The method is called on a class that is not the one it was made for, and replaced where it belongs."""

    @make
    class Shape:
        edges: int

    class Square(Shape):
        pass

    assert Square(4) == Square(4) != Square(5)
    assert Square(4) != Shape(4)
    assert repr(Square(4)).endswith("Square(edges=4)")
    assert "__eq__" not in vars(Square)
    with pytest.raises(TypeError, match="unhashable"):
        hash(Square(4))


def test_a_method_is_the_compiled_one_after_its_first_call(make: Any) -> None:
    """So that what is called often costs what it did."""

    @make
    class Pair:
        left: int

    assert Pair(1) == Pair(1)
    assert Pair.__eq__.__code__.co_varnames == ("self", "other")


def test_a_method_of_its_own_stays(make: Any) -> None:
    """As @dataclass promises."""

    @make
    class Loud:
        word: str

        def __repr__(self) -> str:
            return self.word.upper()

    assert repr(Loud("oh")) == "OH"


def test_every_method_that_is_left_for_later_is_one_that_python_makes() -> None:
    """`__init__` is called of nearly all of them."""
    assert "__init__" not in LATE
    assert all(hasattr(object, name) for name in LATE)
