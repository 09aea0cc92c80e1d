"""A test that needs a real counterpart: skipped, saying why, where it cannot be had; failed where it is required."""

import shutil
import subprocess

import pytest

from services import fetch


def need(service: fetch.Service | fetch.Jars) -> None:
    """Fetch it if need be; skip the running test, or fail it under `CI=true` or `ND_REQUIRE_SERVICES=1`."""
    try:
        fetch.ensure(service)
    except fetch.ServiceMissingError as error:
        if fetch.required():
            pytest.fail(str(error))
        pytest.skip(str(error))


def need_namespace(kind: str = "--mount") -> None:
    """Skip the running test, or fail it where services are required, if unshare(1) may not make such a namespace."""
    probe = subprocess.run(["unshare", kind, "true"], capture_output=True, text=True, check=False)
    if probe.returncode:
        _lacking(f"no namespace of its own here: {probe.stderr.strip()}")


def need_program(name: str) -> None:
    """Skip the running test, or fail it where services are required, if the host has no such program."""
    if not shutil.which(name):
        _lacking(f"{name} is not installed here")


def _lacking(what: str) -> None:
    if fetch.required():
        pytest.fail(what)
    pytest.skip(what)
