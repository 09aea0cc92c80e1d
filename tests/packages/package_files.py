"""The packages that are tested: built once for all tests of this run, in two revisions of the same sources.

ND_PACKAGES=DIRECTORY takes what `python -m ndpackages build --release 1 --release 2` left there, for one who built it.
"""

import os
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
from services import fetch
from services.need import need_program

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class PackageFiles:
    """Built packages of one revision."""

    agent: Path
    collector: Path
    agent_rpm: Path
    collector_rpm: Path


def package_files(release: str = "1") -> PackageFiles:
    """Build them, or skip the running test where the machine cannot; failed where services are required."""
    if os.geteuid():
        reason = "packages are built and booted as root"
        pytest.fail(reason) if fetch.required() else pytest.skip(reason)
    subprocess.run(["sh", str(ROOT / "packaging/prerequisites")], check=False)
    for program in ("debootstrap", "systemd-nspawn", "lintian", "rpm"):
        need_program(program)
    directory = _built()
    names = [f"{name}_*-{release}_*.deb" for name in ("ndagent", "ndcollector")]
    names += [f"{name}-*-{release}.*.rpm" for name in ("ndagent", "ndcollector")]
    return PackageFiles(*(next(directory.glob(name)) for name in names))


@cache
def _built() -> Path:
    given = os.environ.get("ND_PACKAGES")
    if given:
        return Path(given)
    output = ROOT / "build/packages/tested"
    environ = {**os.environ, "PYTHONPATH": str(ROOT / "packaging")}
    command = [sys.executable, "-m", "ndpackages", "build", "--output", str(output), "--release", "1", "--release", "2"]
    subprocess.run(command, check=True, env=environ)
    return output
