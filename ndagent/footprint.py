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

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
"""mallopt(3)."""
_LARGE_BYTES = 128 * 1024


_ABSENT = ("isal", "bz2", "lzma")
"""1 MB. zlib has the same CRC-32 as isal, and an agent's few MB/s cost it less than 0.2 % of a core; shutil brings the
other two along, for archives."""


def keep_small() -> None:
    """Before anything heavy is imported. Call it once, first."""
    _give_back_memory()
    _load_no_plugins_of_pydantic()
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


def _load_no_plugins_of_pydantic() -> None:
    """1.6 MB and a look into every installed package at start.

    pydantic asks importlib.metadata, which brings email, zipfile and csv, whether a package has a plugin for it. An
    agent that runs as root runs no code because some other package says so; with plugins off, pydantic never asks.
    """
    os.environ["PYDANTIC_DISABLE_PLUGINS"] = "__all__"
    metadata = stand_in("importlib.metadata", entry_points=lambda **_: ())
    with pretending({metadata.__name__: metadata}):
        from pydantic import create_model

        create_model("First")  # the first model is what makes it ask
