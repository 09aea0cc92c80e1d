"""The lock: every Python package that goes in or builds, by version and SHA-256; no index is named in it.

Promises: `write` resolves anew what pyproject.toml and requirements.in ask for; `fetch` downloads exactly the files of
the lock, from whatever index pip is configured for, or fails. Refuses: choosing versions at build time.
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ndpackages.root import Root

LOCK = Path(__file__).parents[1] / "requirements.lock"
_HEAD = """\
# Made by `make packages-lock`: what the packages of {extras} are built from and with,
# for CPython 3.11 on {machine}. Reviewed like code: a changed hash of the same version is an alarm.
"""
EXTRAS = "fast,kafka,host-metrics,srv,s3"
_PIP = ("python3", "-m", "pip", "--disable-pip-version-check")
_WHEELS = "/wheels"


def write(root: Root, machine: str) -> None:
    """Resolve in this root (sources in /src) and write the lock."""
    _resolver(root)
    root.run(
        "/resolver/bin/pip", "install", "--dry-run", "--ignore-installed", "--quiet", "--report", "/report.json",
        f"/src[{EXTRAS}]", "-r", "/src/packaging/requirements.in", environ=_pip_settings(), network=True,
    )  # fmt: skip
    report = json.loads((root.path / "report.json").read_bytes())
    LOCK.write_text(_HEAD.format(extras=EXTRAS, machine=machine) + "".join(_lines(report)), encoding="utf-8")


def fetch(root: Root, cache: Path) -> None:
    """Have every file of the lock in the root's /wheels; `cache` keeps them between builds."""
    target = root.path / _WHEELS.lstrip("/")
    cache.mkdir(parents=True, exist_ok=True)
    target.mkdir(parents=True, exist_ok=True)
    for file in cache.iterdir():
        os.link(file, target / file.name)
    _resolver(root)
    root.run(
        "/resolver/bin/pip", "download", "--quiet", "--require-hashes", "--no-deps", "--no-build-isolation",
        "--find-links", _WHEELS, "-d", _WHEELS, "-r", "/src/packaging/requirements.lock",
        environ=_pip_settings(), network=True,
    )  # fmt: skip
    for file in target.iterdir():
        if not (cache / file.name).exists():
            os.link(file, cache / file.name)


def _resolver(root: Root) -> None:
    """A pip of its own: the root's Python stays as Debian made it."""
    root.lend_network()
    root.run("python3", "-m", "venv", "/resolver")


def _pip_settings() -> dict[str, str]:
    """How the host's pip is told to reach its index."""
    names = [name for name in os.environ if name.startswith("PIP_") and name != "PIP_FIND_LINKS"]
    return {"PIP_DISABLE_PIP_VERSION_CHECK": "1", **{name: os.environ[name] for name in names}}


def _lines(report: dict[str, Any]) -> Iterator[str]:
    for item in sorted(report["install"], key=lambda one: one["metadata"]["name"].lower()):
        if item["download_info"]["url"].startswith("file:"):
            continue  # our own
        name, version = item["metadata"]["name"], item["metadata"]["version"]
        digest = item["download_info"]["archive_info"]["hashes"]["sha256"]
        yield f"{name}=={version} --hash=sha256:{digest}\n"
