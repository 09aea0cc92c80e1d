"""Pages of programs and libraries that only the start needed are let go.

A start runs through much code that the agent never comes back to: importing, building the configuration's models, the
first handshake. Its pages stay mapped, and count as the agent's memory, until something tells the kernel that they are
not needed: 10 MB, of which 4 to 5 come back because they are.

Promises: only what the kernel can read again from the file is let go, mappings that are private, never written to and
hold no page of ours, and stood there at an earlier look too; a page that is needed after all is there again at its next
use (some 100 faults of 0.5 µs, from the page cache as a rule). Costs 2 ms each time. Refuses: our own data; systems
other than Linux, where it does nothing.
"""

import asyncio
import ctypes
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

_MADV_DONTNEED = 4
_AFTER_SECONDS = 20.0
"""A start is over by then: connected, a first round of everything."""
_EVERY_SECONDS = 300.0
_MAPPING = re.compile(rb"([0-9a-f]+)-([0-9a-f]+) r-[-x]p [0-9a-f]+ \S+ [1-9][0-9]* +/")
"""proc(5): private, not writable, with an inode and a path."""


async def run() -> None:
    """Let go once the start is over, and from time to time of what a burst or a reload brought.

    Only of what the look before saw too: between a look and the letting go, the dynamic linker may put the data of a
    library that it is loading over the first mapping of that one, or take the mapping away and something else its
    place. What would still deceive us is code that stood for that long and is unloaded in just those 2 ms (Python
    never unloads), or a load that both looks met half done at the same addresses.
    """
    if not sys.platform.startswith("linux"):
        return
    seen = look()
    await asyncio.sleep(_AFTER_SECONDS)
    while True:
        found = look()
        let_go(found & seen)
        seen = found
        await asyncio.sleep(_EVERY_SECONDS)


def look(smaps: Path = Path("/proc/self/smaps")) -> set[tuple[int, int]]:
    """The mappings that are never written to; none where the kernel does not say what is mapped."""
    try:
        with smaps.open("rb") as lines:
            return set(never_written(lines))
    except OSError:
        return set()


def let_go(mappings: Iterable[tuple[int, int]]) -> int:
    """Do it now, of mappings that are known to last; how many bytes of address space it was."""
    madvise = ctypes.CDLL(None).madvise
    madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    # Locked memory is refused, and stays.
    return sum(end - begin for begin, end in mappings if madvise(begin, end - begin, _MADV_DONTNEED) == 0)


def never_written(smaps: Iterable[bytes]) -> Iterator[tuple[int, int]]:
    """Where mappings begin and end that are a copy of their file and nothing else.

    What the dynamic linker wrote to and then protected looks like them, but is accounted for (`ac` among its flags),
    and has pages of our own, in memory or swapped out.
    """
    begin = end = own = 0
    for line in smaps:
        if found := _MAPPING.match(line):
            begin, end, own = int(found[1], 16), int(found[2], 16), 0
        elif line.startswith((b"Anonymous:", b"Swap:")):
            own += int(line.split()[1])
        elif line.startswith(b"VmFlags:"):  # the last of each
            if end and not own and b"ac" not in line.split():
                yield begin, end
            begin = end = 0
