"""Methods of dataclasses that are compiled when they are first called, which most never are.

A dataclass has up to six methods beside `__init__`, and Python compiles each from text where the class is made: in a
starting agent 514 of them, of our classes and of the packages' we use. Left until they are called they cost 45 ms less
of start, and 0.2 MB.

Promises: what a class does stays the same, and so does the text that is compiled; after its first call a method is
what it would have been from the start. Refuses: `__init__`, which nearly all of them need; Pythons whose dataclasses
are made otherwise (3.13): there nothing changes.
"""

import dataclasses
import inspect
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

LATE = frozenset(
    {"__repr__", "__eq__", "__lt__", "__le__", "__gt__", "__ge__", "__hash__", "__setattr__", "__delattr__"}
)
Method = Callable[..., Any]


def compile_late() -> None:
    """For classes that are made from now on, in this process."""
    eager: Method | None = getattr(dataclasses, "_create_fn", None)
    if eager is None or getattr(eager, "is_late", False):
        return

    def create(name: str, *arguments: Any, **options: Any) -> Method:
        if name in LATE:
            return _late(name, lambda: eager(name, *arguments, **options))
        made: Method = eager(name, *arguments, **options)
        return made

    create.is_late = True  # type: ignore[attr-defined]  # so that a second call finds it
    setattr(dataclasses, "_create_fn", create)  # noqa: B010 - private: what `@dataclass` calls for each method
    # A class without a docstring, which -OO makes all of them, gets its signature for one: 60 µs each.
    without = {**vars(inspect), "signature": lambda _: "()"}
    dataclasses.inspect = SimpleNamespace(**without)  # type: ignore[attr-defined]  # for that module alone


def _late(name: str, compile_it: Callable[[], Method]) -> Method:
    """A method that makes itself the compiled one. Two threads may both compile; either result will do."""
    compiled: Method | None = None

    def method(self: object, *others: object) -> Any:
        nonlocal compiled
        if compiled is None:
            compiled = compile_it()
            for owner in type(self).__mro__:
                if vars(owner).get(name) is method:
                    compiled.__qualname__ = method.__qualname__
                    type.__setattr__(owner, name, compiled)
        return compiled(self, *others)

    method.__name__ = name
    return method
