"""Pages that are let go are those that the kernel can read again, and no others."""

import asyncio
import ctypes
import mmap
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from collector_process import ROOT

from ndagent import unused_code
from ndagent.unused_code import look, never_written

_MAPPING = """\
7f0000001000-7f0000003000 {mode} 00000000 fe:00 {inode}{path}
Size:                  8 kB
Rss:                   8 kB
Anonymous:             {anonymous} kB
Swap:                  {swap} kB
VmFlags: {flags} 
"""  # noqa: W291 - as the kernel writes it
_CODE = {
    "mode": "r-xp", "inode": "18500", "path": "                      /usr/lib/libx.so.1", "anonymous": "0", "swap": "0",
    "flags": "rd ex mr mw me",
}  # fmt: skip


def found(**changes: str) -> list[tuple[int, int]]:
    """What may be let go of one mapping that is like code but for these."""
    return list(never_written(_MAPPING.format(**{**_CODE, **changes}).encode().splitlines(keepends=True)))


@pytest.mark.parametrize("mode", ["r-xp", "r--p"])
def test_code_and_constants_of_a_library_may_go(mode: str) -> None:
    """Also of one that an upgrade has replaced meanwhile: its file is there as long as we have it open."""
    assert found(mode=mode) == [(0x7F0000001000, 0x7F0000003000)]
    assert found(mode=mode, path="       /usr/lib/libx.so.1 (deleted)") != []


@pytest.mark.parametrize(
    "changes",
    [
        {"mode": "rw-p"},
        {"mode": "r-xs"},
        {"mode": "r--p", "anonymous": "4"},
        {"mode": "r--p", "swap": "4"},
        {"mode": "r--p", "flags": "rd mr mw me ac"},
        {"inode": "0", "path": ""},
        {"inode": "0", "path": "       [vdso]"},
        {"inode": "0", "path": "       [heap]"},
    ],
    ids=str,
)
def test_what_holds_anything_of_ours_stays(changes: dict[str, str]) -> None:
    """Relocated tables that are protected now, in memory or in swap, would come back as they stand in the file."""
    assert found(**changes) == []


def test_a_mapping_is_judged_by_its_own_lines() -> None:
    """Not by those of the one before."""
    heap = {"inode": "0", "path": "", "mode": "rw-p", "anonymous": "8"}
    both = _MAPPING.format(**{**_CODE, **heap}) + _MAPPING.format(**_CODE)
    assert len(list(never_written(both.encode().splitlines(keepends=True)))) == 1


def test_without_proc_nothing_is_let_go(tmp_path: Path) -> None:
    """And nothing fails."""
    assert look(tmp_path / "smaps") == set()


@pytest.mark.skipif(sys.platform != "linux", reason="other systems keep what they mapped")
def test_a_process_goes_on_with_less_memory() -> None:
    """Threads, compiled code and a handshake's worth of OpenSSL run after it as before, again and again."""
    program = """
import ssl, threading, zlib, json, re, pydantic_core, yaml, hashlib
from pathlib import Path
from ndagent.unused_code import let_go, look

def file_kb():
    return int(Path("/proc/self/status").read_text().partition("RssFile:")[2].split()[0])

def work():
    for number in range(60):
        ssl.create_default_context().set_alpn_protocols(["mqtt"])
        assert yaml.load(json.dumps({"a": [number]}), yaml.CSafeLoader) == {"a": [number]}
        assert zlib.decompress(zlib.compress(b"x" * number)) == b"x" * number
        hashlib.sha256(b"x").hexdigest()

work_thread = threading.Thread(target=work)
work_thread.start()
before = file_kb()
seen = look()
let_go(seen & look())
after = file_kb()
while work_thread.is_alive():
    assert let_go(seen & look()) > 0
work_thread.join()
print(before, after)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    before, after = map(int, done.stdout.split())
    assert after < before / 2


@pytest.mark.skipif(sys.platform != "linux", reason="other systems keep what they mapped")
async def test_a_library_that_is_being_loaded_keeps_what_was_written_to_it(tmp_path: Path, monkeypatch) -> None:
    """A loader maps all of the file first, and its data over that: a look between the two must not cost the data."""
    page = mmap.PAGESIZE
    library = tmp_path / "libx.so"
    library.write_bytes(b"f" * page)
    map_pages = ctypes.CDLL(None).mmap
    map_pages.restype = ctypes.c_void_p
    map_pages.argtypes = (
        ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long,
    )  # fmt: skip
    loaded: list[int] = []

    def met_while_loading(smaps: Iterable[bytes]) -> Iterator[tuple[int, int]]:
        with library.open("rb") as file:
            address = map_pages(None, page, mmap.PROT_READ, mmap.MAP_PRIVATE, file.fileno(), 0)
        assert ctypes.string_at(address, 1) == b"f"
        found = list(never_written(smaps))
        assert any(begin <= address < end for begin, end in found), "the look did not meet it"
        fixed_anonymous = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x10
        map_pages(address, page, mmap.PROT_READ | mmap.PROT_WRITE, fixed_anonymous, -1, 0)
        ctypes.memset(address, ord("d"), page)
        loaded.append(address)
        yield from found

    monkeypatch.setattr(unused_code, "never_written", met_while_loading)
    monkeypatch.setattr(unused_code, "_AFTER_SECONDS", 0)
    monkeypatch.setattr(unused_code, "_EVERY_SECONDS", 0)
    letting_go = asyncio.create_task(unused_code.run())
    async with asyncio.timeout(20):
        while len(loaded) < 5:
            await asyncio.sleep(0)
            assert not letting_go.done(), letting_go.result()
    letting_go.cancel()
    assert [ctypes.string_at(address, 1) for address in loaded] == [b"d"] * len(loaded)
