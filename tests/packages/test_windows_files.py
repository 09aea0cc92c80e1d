"""The input `file` on Windows, as far as wine is one: sharing, rotation, identity, UTF-16 (windows_file_input.py)."""

import re
from pathlib import Path

import pytest
from packages.wine import PROJECT, Wine

pytestmark = pytest.mark.packages


def test_files_are_followed_as_windows_programs_write_them(wine: Wine, tmp_path: Path) -> None:
    scenarios = Path(__file__).with_name("windows_file_input.py")
    wine.import_paths([PROJECT, PROJECT / "tests" / "inputs"])
    options = ("--noconftest", "--rootdir", tmp_path, "-o", "asyncio_mode=auto", "-p", "no:cacheprovider", "-q")
    result = wine.python("-m", "pytest", *options, scenarios, timeout=600, check=False)
    wanted = len(re.findall(r"^async def test_", scenarios.read_text(encoding="utf-8"), re.MULTILINE))
    assert result.returncode == 0, result.stdout
    assert f"{wanted} passed" in result.stdout
