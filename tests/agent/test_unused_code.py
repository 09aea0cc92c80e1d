"""Pages that are let go are those that the kernel can read again, and no others."""

import subprocess
import sys
from pathlib import Path

import pytest
from collector_process import ROOT

from ndagent.unused_code import let_go, never_written

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
    assert let_go(tmp_path / "smaps") == 0


@pytest.mark.skipif(sys.platform != "linux", reason="other systems keep what they mapped")
def test_a_process_goes_on_with_less_memory() -> None:
    """Threads, compiled code and a handshake's worth of OpenSSL run after it as before, again and again."""
    program = """
import ssl, threading, zlib, json, re, pydantic_core, yaml, hashlib
from pathlib import Path
from ndagent.unused_code import let_go

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
let_go()
after = file_kb()
while work_thread.is_alive():
    assert let_go() > 0
work_thread.join()
print(before, after)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    before, after = map(int, done.stdout.split())
    assert after < before / 2
