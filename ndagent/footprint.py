"""What keeps the agent small: it shares its host with the work that the host is there for.

Promises: `keep_small`, called first in a process of the agent's own, and `pretending`, around an import, change what is
loaded and how memory is given back, never what the agent does; each measure says what it saves (resident memory, as
measured on Debian 12). Refuses: being called where the process is somebody else's (tests, the collector).
"""

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import ModuleType

from ndagent.late_methods import compile_late

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
"""mallopt(3)."""
_LARGE_BYTES = 128 * 1024
_ZONES = ("/usr/share/zoneinfo", "/usr/lib/zoneinfo", "/usr/share/lib/zoneinfo", "/etc/zoneinfo")
"""CPython's own default for TZPATH."""
_ABSENT = ("isal", "bz2", "lzma")
"""1 MB. zlib has the same CRC-32 as isal, and an agent's few MB/s cost it less than 0.2 % of a core; shutil brings the
other two along, for archives."""


def keep_small() -> None:
    """Before anything heavy is imported. Call it once, first."""
    _give_back_memory()
    compile_late()
    _load_small_zoneinfo()
    _load_small_pydantic()
    for name in _ABSENT:
        sys.modules.setdefault(name, None)  # type: ignore[arg-type]  # None: importing it fails, as documented


@contextmanager
def pretending(modules: Mapping[str, ModuleType | None]) -> Iterator[None]:
    """While the context is open, modules that are not loaded yet are what is given here; None: not installed."""
    ours = {name: module for name, module in modules.items() if name not in sys.modules}
    sys.modules.update(ours)  # type: ignore[arg-type]  # as above
    try:
        yield
    finally:
        for name in ours:
            del sys.modules[name]


def stand_in(name: str, **members: object) -> ModuleType:
    """A module that has only these members."""
    module = ModuleType(name)
    vars(module).update(members)
    return module


def _give_back_memory() -> None:
    """2.3 MB: two heaps for all threads instead of one each, and what is large goes back to the kernel when freed.

    Left alone, glibc keeps large blocks for ever once it has seen a few of them freed.
    """
    if not sys.platform.startswith("linux"):
        return
    import ctypes  # inotify needs it anyway

    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:  # musl has none
        mallopt(_M_ARENA_MAX, 1)
        mallopt(_M_MMAP_THRESHOLD, _LARGE_BYTES)
        mallopt(_M_TRIM_THRESHOLD, _LARGE_BYTES)


class Unused(UserWarning):
    """Stands for what a package imports, annotates with or would warn of, and nothing here ever calls."""


def unused(name: str) -> ModuleType:
    """A module in which every name is there, and none may be used."""
    return stand_in(name, __getattr__=_unused_member)


def _unused_member(name: str) -> type[Unused]:
    if name.startswith("__"):
        raise AttributeError(name)
    return Unused


def _load_small_zoneinfo() -> None:
    """0.6 MB: to learn where the zones are, zoneinfo loads every setting that Python was built with.

    Where they are not in the usual place, it may ask.
    """
    if "PYTHONTZPATH" in os.environ or not os.path.isdir(_ZONES[0]):  # noqa: PTH112 - pathlib is not loaded yet
        return
    os.environ["PYTHONTZPATH"] = os.pathsep.join(_ZONES)
    try:
        import zoneinfo  # noqa: F401 - for its side effect: it has looked
    finally:
        del os.environ["PYTHONTZPATH"]


def _load_small_pydantic() -> None:
    """2.4 MB, 7 ms, and a look into every installed package at start.

    pydantic asks importlib.metadata, which brings email, zipfile and csv, whether a package has a plugin for it (1.6
    MB). An agent that runs as root runs no code because some other package says so; with plugins off, pydantic never
    asks. It makes a TypedDict of each kind of schema, for type checkers alone (0.5 MB); as plain classes they are the
    same dicts. It can write JSON schemas (0.3 MB), which nobody asks an agent for.
    """
    os.environ["PYDANTIC_DISABLE_PLUGINS"] = "__all__"
    sys.modules.setdefault("pydantic.json_schema", unused("pydantic.json_schema"))  # which some fields ask for anew
    metadata = stand_in("importlib.metadata", entry_points=lambda **_: ())
    with pretending({metadata.__name__: metadata}):
        _load_schemas_without_types()
        from pydantic import create_model

        create_model("First")  # the first model is what makes it ask


class _Row(dict[str, object]):
    """In place of a TypedDict: takes what a class statement may say of one, and forgets it."""

    def __init_subclass__(cls, **_: object) -> None:
        cls.__annotations__ = {}


def _load_schemas_without_types() -> None:
    import typing

    import typing_extensions

    homes = (typing, typing_extensions)  # which one it takes depends on Python's version
    before = [home.TypedDict for home in homes]
    for home in homes:
        home.TypedDict = _Row  # type: ignore[attr-defined]  # for the time of one import
    try:
        import pydantic_core.core_schema  # noqa: F401 - for its side effect: the classes are made
    finally:
        for home, one in zip(homes, before, strict=True):
            home.TypedDict = one  # type: ignore[attr-defined]  # as above
