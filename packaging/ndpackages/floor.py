"""The oldest C library that a frozen tree runs on: the highest GLIBC_ version that any of its files asks for."""

import re
import subprocess
from pathlib import Path

_WANTED = re.compile(r"\(GLIBC_(\d+)\.(\d+)")


def glibc_floor(tree: Path) -> str:
    """Such as `2.36`. Raises ValueError for a tree in which nothing asks for one."""
    wanted = set()
    for file in sorted(tree.rglob("*")):
        if file.is_file() and not file.is_symlink() and _is_elf(file):
            said = subprocess.run(["objdump", "-T", str(file)], capture_output=True, text=True, check=False).stdout
            wanted |= {(int(major), int(minor)) for major, minor in _WANTED.findall(said)}
    if not wanted:
        raise ValueError(f"nothing in {tree} asks for a C library")
    return ".".join(map(str, max(wanted)))


def _is_elf(file: Path) -> bool:
    with file.open("rb") as stream:
        return stream.read(4) == b"\x7fELF"
